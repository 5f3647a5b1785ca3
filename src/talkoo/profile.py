"""Who the caller is and which gateway it speaks to: the profile files that `talkoo up` writes.

`<home>/profile.toml` is the default user; `<home>/users/<name>/profile.toml` the others. Paths in a profile may be
relative to the home.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from talkoo_core.errors import Corrupt, InvalidInput, NotFound

HOME_VARIABLE = "TALKOO_HOME"
PROFILE_FILE = "profile.toml"
USERS_FOLDER = "users"
HOME_FOLDER = ".talkoo"

_FIELDS = (
    "federation",
    "organization",
    "gateway",
    "http",
    "trust_bundle",
    "certificate",
    "private_key",
    "account_key",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is needed to reach a gateway and to sign transactions."""

    home: Path
    federation: str
    organization: str
    gateway: str
    """host:port of the gateway's gRPC server."""
    http: str
    """host:port of its REST server, or an https:// address."""
    trust_bundle: Path
    certificate: Path
    private_key: Path
    account_key: Path
    user: str = ""

    @classmethod
    def direct(
        cls,
        *,
        endpoint: str,
        certificate: str | Path,
        private_key: str | Path,
        trust_bundle: str | Path,
        account_key: str | Path,
        organization: str = "",
        http: str = "",
    ) -> Profile:
        """A profile without a home on disk. `endpoint` is the gateway's host:port."""
        return cls(
            home=Path(),
            federation="",
            organization=organization,
            gateway=endpoint,
            http=http,
            trust_bundle=Path(trust_bundle),
            certificate=Path(certificate),
            private_key=Path(private_key),
            account_key=Path(account_key),
        )


def home_folder(given: str | Path | None = None) -> Path:
    """The folder of profiles: what was given, `TALKOO_HOME`, `./.talkoo` where there is one, else `~/.talkoo`."""
    if given:
        return Path(given).expanduser()
    if from_environment := os.environ.get(HOME_VARIABLE):
        return Path(from_environment).expanduser()
    here = Path.cwd() / HOME_FOLDER
    return here if here.is_dir() else Path.home() / HOME_FOLDER


def user_names(home: Path) -> list[str]:
    return sorted(path.parent.name for path in home.glob(f"{USERS_FOLDER}/*/{PROFILE_FILE}"))


def load_profile(home: str | Path | None = None, user: str | None = None) -> Profile:
    """Read a profile. Raises NotFound (codes `no_home`, `no_user`) or Corrupt (a damaged or incomplete file)."""
    folder = home_folder(home)
    path = folder / USERS_FOLDER / user / PROFILE_FILE if user else folder / PROFILE_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _missing(folder, user) from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}); choose a home with --home") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Corrupt(f"{path} is not TOML ({error}); run `talkoo up` again to write it anew") from None
    missing = [name for name in _FIELDS if not isinstance(values.get(name), str)]
    if missing:
        raise Corrupt(f"{path} lacks {', '.join(missing)}; run `talkoo up` again to write it anew")
    return Profile(
        home=folder,
        federation=values["federation"],
        organization=values["organization"],
        gateway=values["gateway"],
        http=values["http"],
        trust_bundle=folder / values["trust_bundle"],
        certificate=folder / values["certificate"],
        private_key=folder / values["private_key"],
        account_key=folder / values["account_key"],
        user=user or "",
    )


def _missing(folder: Path, user: str | None) -> NotFound:
    if not (folder / PROFILE_FILE).exists():
        return NotFound(
            f"there is no federation under {folder}; start one with `talkoo up`, or choose its folder with --home",
            code="no_home",
        )
    known = ", ".join(user_names(folder)) or "none"
    return NotFound(f"no user {user!r} under {folder}; the users are: {known}", code="no_user")

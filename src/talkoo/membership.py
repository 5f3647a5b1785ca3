"""What an organization's owner says about membership: apply, approve, change the consensus key, leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2
from talkoo_ledger.members import possession_bytes

from talkoo.client_async import AsyncClient
from talkoo_core.errors import NotFound
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PrivateKey, PublicKey
from talkoo_runtime.pki import read_authority

Record = Callable[[bytes], Awaitable[None]]
"""Gets a signed transaction before it is sent (`LedgerClient.submit`)."""


def application_of(
    chain_id: str,
    name: str,
    owner: PublicKey,
    consensus_key: PrivateKey,
    scheduler: str,
    validator: str,
    authority: bytes = b"",
) -> tx_pb2.ApplyMembership:
    """What a newcomer's owner signs; needs no connection with the federation.

    `scheduler` and `validator` are addresses of those services' keys, `authority` the newcomer's certificate authority
    (X.509, DER), which members trust once they have admitted it. Raises InvalidInput (code `bad_authority`).
    """
    if authority:
        read_authority(authority, name)
    return tx_pb2.ApplyMembership(
        name=name,
        owner_key=owner.raw,
        validator_key=consensus_key.public.raw,
        proof_of_possession=consensus_key.sign(possession_bytes(chain_id, name, address_of_key(owner.raw))),
        scheduler=scheduler,
        validator=validator,
        authority=authority,
    )


class Membership:
    """Over an organization's gateway, with the key of `client`: the owner's."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def applications(self) -> list[state_pb2.MembershipApplication]:
        return await self._client.ledger.list("applications", state_pb2.MembershipApplication)

    async def apply(
        self, name: str, consensus_key: PrivateKey, scheduler: str, validator: str, authority: bytes = b""
    ) -> service_pb2.TxResult:
        """Ask to become a member. Raises InvalidInput (code `bad_authority`)."""
        chain_id = (await self._client.status()).chain_id
        owner = self._client.key.public
        return await self._client.send(
            application_of(chain_id, name, owner, consensus_key, scheduler, validator, authority)
        )

    async def approve(self, name: str, record: Record | None = None) -> service_pb2.TxResult:
        """Consent to the application as it stands now.

        Raises NotFound, and InvalidInput (code `bad_authority`) where it names an authority that cannot be its own.
        """
        application = next((each for each in await self.applications() if each.name == name), None)
        if application is None:
            raise NotFound(f"nobody has applied as {name!r}; `talkoo member list` shows who has")
        if application.authority:
            read_authority(application.authority, name)
        return await self._client.send(
            tx_pb2.ApproveMember(name=name, validator_key=application.validator_key), record=record
        )

    async def rotate_key(
        self, name: str, consensus_key: PrivateKey, record: Record | None = None
    ) -> service_pb2.TxResult:
        """Another key votes from two heights later on."""
        message = tx_pb2.RotateKey(
            organization=name,
            validator_key=consensus_key.public.raw,
            proof_of_possession=await self._possession(name, consensus_key),
        )
        return await self._client.send(message, record=record)

    async def leave(self, name: str, record: Record | None = None) -> service_pb2.TxResult:
        return await self._client.send(tx_pb2.LeaveFederation(organization=name), record=record)

    async def _possession(self, name: str, key: PrivateKey) -> bytes:
        chain_id = (await self._client.status()).chain_id
        return key.sign(possession_bytes(chain_id, name, self._client.address))

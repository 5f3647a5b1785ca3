"""Settings of one agent."""

from __future__ import annotations

from talkoo_core.errors import InvalidInput
from talkoo_runtime.service_settings import ServiceSettings

HONEST = -1


class AgentSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node: what it lends, at what price, and whom it talks to."""

    ledger: str
    """Endpoint of the own organization's ledger node."""
    scheduler: str
    """Endpoint of the own organization's scheduler."""
    blobs: str
    """URL of the blob store."""
    account_key: str
    """Key file of the node's account; its address is the node's id."""
    price_utlk_per_gflop: int
    """The least that the node works for."""
    request_price_utlk: int
    """Price of one model request."""
    stake_utlk: int
    """Bonded when the node registers for the first time."""
    advertise: str = ""
    """host:port at which others reach this node, when that is not `listen`."""
    duty: float = 1.0
    """Part of the processor's time to lend, 0.01 to 1."""
    memory_bytes: int = 0
    """Memory to lend to each shard; 0: what the card, or the machine, has."""
    power_mw: int = 0
    """Declared draw of one busy core (CPU) in milliwatts; 0: from NVML, else a documented default."""
    slots: int = 0
    """Shards at once; 0: one on each GPU that is lent, and one on a processor. A GPU takes one at a time."""
    warm_trainer: bool = True
    """Keep one trainer waiting with torch loaded (about 250 MB), so that a task begins seconds earlier."""
    allow_cpu: bool = True
    """Lend the processor where there is no GPU; else such a node says so and offers nothing."""
    node_folder: str = ""
    """Folder shared with the keeper of this Kubernetes node: reports go out, orders come in; empty: neither."""
    outbound_only: bool = False
    """Other organizations' nodes cannot dial this one; it dials them."""
    endorsement: str = ""
    """Hex: the organization owner's signature that the node belongs to it; empty when genesis lists the node."""
    forge_from_segment: int = HONEST
    """Pretend to work from this segment on, to show that audits find it; -1: honest."""

    @property
    def endpoint(self) -> str:
        """What others are told."""
        return self.advertise or self.listen


def check_settings(settings: AgentSettings) -> None:
    """Raises InvalidInput (code `bad_settings`) for values that cannot work."""
    problems = [
        (not 0.01 <= settings.duty <= 1.0, f"duty is {settings.duty}; it must be from 0.01 to 1"),
        (settings.slots < 0, f"slots is {settings.slots}; 0 means one for each GPU"),
        (settings.memory_bytes < 0, "memory_bytes is negative; 0 means what the machine has"),
        (settings.price_utlk_per_gflop < 0, "price_utlk_per_gflop is negative"),
    ]
    for wrong, message in problems:
        if wrong:
            raise InvalidInput(message, code="bad_settings")

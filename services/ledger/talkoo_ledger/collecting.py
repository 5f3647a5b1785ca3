"""Votes by way of a collector, where members are many.

When each of n members tells all others, a block takes 2n(n - 1) messages of votes, and with sixteen members sending and
reading them is most of what a block costs. So in a crowd (`Mesh.crowded`) a vote goes to the proposer of its round
alone, who passes on what it has gathered: once there is a quorum, and once more when all have come.

What a vote proves does not depend on its way. A collector that is slow, silent or tells only some costs WAIT_S: whoever
has not heard of a quorum by then tells everybody its votes of the round, and goes past that collector for
DOUBTED_HEIGHTS heights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.driver import Driver
from talkoo_consensus.encoding import encode_vote
from talkoo_consensus.types import SignedType, Vote

WAIT_S: Final = 2.0
"""For a quorum of the votes that ours belongs to. Less than a proposer that says nothing may cost."""
GATHER_S: Final = 0.25
"""Votes that are no quorum yet wait so long for company."""
REST_S: Final = 0.05
"""Precommits that come after the quorum wait so long; the next height begins soon."""
DOUBTED_HEIGHTS: Final = 100
MAX_ROUNDS_AHEAD: Final = 8
"""Finding the proposer of a round takes time in proportion to the round."""

Place: TypeAlias = tuple[int, int, SignedType]


@dataclass(frozen=True, slots=True)
class OwnVote:
    """To be sent once it is durable. `collector`: the organization that proposes in the vote's round."""

    vote: Vote
    collector: str


@dataclass(frozen=True, slots=True)
class PassOn:
    """What was gathered has waited long enough."""


@dataclass(frozen=True, slots=True)
class Unheard:
    """A vote of ours went to a collector WAIT_S ago: has a quorum come back?"""

    own: OwnVote


class Ways(Protocol):
    """What the mesh does for it."""

    @property
    def own(self) -> str: ...
    @property
    def crowded(self) -> bool: ...
    def spreads(self, organization: str) -> bool: ...
    def send(self, organization: str, message: service_pb2.PeerMessage) -> None: ...
    def send_all(self, message: service_pb2.PeerMessage) -> None: ...
    def pass_on(self, source: str, origin: str, message: service_pb2.PeerMessage) -> None: ...


@dataclass(frozen=True, slots=True)
class _Gathered:
    source: str
    origin: str
    message: service_pb2.PeerMessage


class Collecting:
    """`later`: put an item into the node's inbox after so many seconds, unless the height ends before."""

    def __init__(self, mesh: Ways, driver: Driver, later: Callable[[float, PassOn | Unheard], None]) -> None:
        self._mesh = mesh
        self._driver = driver
        self._later = later
        self._gathered: dict[Place, list[_Gathered]] = {}
        """Bounded by what the intake takes for new: votes of validators, of two heights."""
        self._with_quorum: set[Place] = set()
        self._waits = False
        self._own: list[OwnVote] = []
        """Of the newest round that we voted in."""
        self._doubted: dict[str, int] = {}
        """The height from which each is a collector again. No more than there are members."""

    def height_began(self) -> None:
        """What `later` holds for the height before is gone."""
        self._waits = False
        self._own.clear()
        self._with_quorum = {place for place in self._with_quorum if place[0] >= self._driver.height}

    def send(self, own: OwnVote) -> None:
        """Our own vote leaves."""
        message, collector, height = _message(own.vote), own.collector, own.vote.height
        if not self._mesh.crowded:
            self._mesh.send_all(message)
        elif collector == self._mesh.own:
            self.gather(collector, collector, own.vote, message)
        elif self._doubted.get(collector, 0) <= height and self._mesh.spreads(collector):
            self._own = [each for each in self._own if each.vote.round == own.vote.round] + [own]
            self._mesh.send(collector, message)
            self._later(WAIT_S, Unheard(own))
        else:
            self._mesh.send_all(message)

    def may_collect(self, vote: Vote) -> bool:
        """Whether it is worth finding out who proposes in the round of this vote."""
        round_ = self._driver.round if vote.height <= self._driver.height else 0
        return self._mesh.crowded and vote.round <= round_ + MAX_ROUNDS_AHEAD

    def gather(self, source: str, origin: str, vote: Vote, message: service_pb2.PeerMessage) -> None:
        """A new vote of a round in which we propose."""
        place = vote.height, vote.round, vote.type
        self._gathered.setdefault(place, []).append(_Gathered(source, origin, message))

    def pass_on_what_is_due(self) -> None:
        """After a batch of the inbox. All that waits goes with what is due, in one message to each peer."""
        due = [place for place in self._gathered if self._is_due(place)]
        if due:
            self._pass_on()
        elif self._gathered and not self._waits:
            self._waits = True
            rest = any(place in self._with_quorum and place[2] is SignedType.PRECOMMIT for place in self._gathered)
            self._later(REST_S if rest else GATHER_S, PassOn())

    def take(self, item: PassOn | Unheard) -> None:
        if isinstance(item, PassOn):
            self._waits = False
            self._pass_on()
        elif self._is_unheard(item.own.vote):
            self._doubted[item.own.collector] = item.own.vote.height + DOUBTED_HEIGHTS
            for own in self._own:
                self._mesh.send_all(_message(own.vote))
            self._own.clear()

    def _is_unheard(self, vote: Vote) -> bool:
        here = (vote.height, vote.round) == (self._driver.height, self._driver.round)
        return here and not self._driver.has_quorum_of_any(vote.round, vote.type)

    def _is_due(self, place: Place) -> bool:
        height, round_, type_ = place
        if height != self._driver.height:
            return height < self._driver.height
        if place not in self._with_quorum:
            if not self._driver.has_quorum_of_any(round_, type_):
                return False
            self._with_quorum.add(place)
            return True
        return type_ is SignedType.PRECOMMIT and self._driver.all_voted(round_, type_)

    def _pass_on(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for each in [vote for votes in gathered.values() for vote in votes]:
            self._mesh.pass_on(each.source, each.origin, each.message)


def _message(vote: Vote) -> service_pb2.PeerMessage:
    return service_pb2.PeerMessage(vote=encode_vote(vote))

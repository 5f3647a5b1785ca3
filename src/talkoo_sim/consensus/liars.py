"""Byzantine validators: the production node with a mesh or a driver that lies. They sign with their own keys alone."""

from __future__ import annotations

import random
from dataclasses import replace

from google.protobuf.message import DecodeError
from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import make_block
from talkoo_consensus.driver import Command, Driver, Event
from talkoo_consensus.encoding import (
    block_id_of,
    decode_block,
    decode_proposal,
    decode_vote,
    encode_block,
    encode_proposal,
    encode_vote,
    proposal_sign_bytes,
    vote_sign_bytes,
)
from talkoo_consensus.types import NIL_BLOCK_ID, Block, Commit, Proposal, Vote

from talkoo_sim.consensus.machine import CHAIN_ID, Machine, Mesh, Outside, Replica, StoredBlock
from talkoo_sim.consensus.scenario import Lie

WITHHELD = 0.5
"""How much of what it withholds a liar withholds."""
MAX_MUTATIONS = 4
MAX_ROUNDS_RUSHED = 3


class AmnesiacDriver(Driver):
    """Forgets its lock and its valid value after every step."""

    def step(self, event: Event) -> tuple[Command, ...]:
        commands = super().step(event)
        if self._state.locked is not None or self._state.valid is not None:
            self._state = replace(self._state, locked=None, valid=None)
        return commands


class LyingMesh(Mesh):
    """What leaves a liar. `sides`: honest nodes in two groups; an equivocator tells each its own story."""

    def __init__(
        self,
        machine: Machine,
        nodes: int,
        outside: Outside,
        lies: frozenset[Lie],
        dice: random.Random,
        sides: tuple[frozenset[int], frozenset[int]],
    ) -> None:
        super().__init__(machine, nodes, outside)
        self.lies = lies
        self.replica: Replica | None = None
        self._dice = dice
        self._sides = sides
        self._heard_by = frozenset(dice.sample(self.others, dice.randint(1, len(self.others))))
        self._twin_blocks: dict[tuple[int, int], tuple[Proposal, Block]] = {}
        self._own_proposals: dict[tuple[int, int], Proposal] = {}

    def send_all(self, message: service_pb2.PeerMessage) -> None:
        for target in self.others:
            self._lie(target, message)

    def send(self, name: str, message: service_pb2.PeerMessage) -> None:
        self._lie(int(name[1:]), message)

    def stored(self, stored: StoredBlock) -> StoredBlock | None:
        """The answer to a machine that is behind."""
        if Lie.SILENT in self.lies or (Lie.WITHHOLD_COMMITS in self.lies and self._dice.random() < WITHHELD):
            return None
        if Lie.FORGED_COMMITS in self.lies:
            return replace(stored, commit=self._forged(stored.commit))
        return stored

    def _forged(self, commit: Commit) -> Commit:
        place = self._dice.randrange(len(commit.signatures))
        sig = replace(commit.signatures[place], signature=self._dice.randbytes(64))
        return replace(commit, signatures=(*commit.signatures[:place], sig, *commit.signatures[place + 1 :]))

    def _lie(self, target: int, message: service_pb2.PeerMessage) -> None:
        kind = message.WhichOneof("message")
        if Lie.SILENT in self.lies or (Lie.SELECTIVE in self.lies and target not in self._heard_by):
            return
        votes, blocks = kind == "vote", kind in ("proposal", "block")
        held_back = (votes and Lie.WITHHOLD_VOTES in self.lies) or (blocks and Lie.WITHHOLD_BLOCKS in self.lies)
        if held_back and self._dice.random() < WITHHELD:
            return
        if votes and Lie.RUSH in self.lies:
            self.outside.send(self.machine.index, target, self._rushed(decode_vote(message.vote)))
        if Lie.EQUIVOCATE in self.lies:
            for other in self._equivocated(target, kind, message):
                self.outside.send(self.machine.index, target, other)
            return
        if Lie.GARBAGE in self.lies and self._dice.random() < WITHHELD:
            garbage = self._garbage(message)
            if garbage is not None:
                self.outside.send(self.machine.index, target, garbage)
        self.outside.send(self.machine.index, target, message)

    def _rushed(self, vote: Vote) -> service_pb2.PeerMessage:
        """As if it were in a later round already."""
        later = replace(vote, round=vote.round + self._dice.randint(1, MAX_ROUNDS_RUSHED), block_id=NIL_BLOCK_ID)
        signed = replace(later, signature=self.machine.key.sign(vote_sign_bytes(CHAIN_ID, later)))
        return service_pb2.PeerMessage(vote=encode_vote(signed if self._is_own(vote) else vote))

    def _garbage(self, message: service_pb2.PeerMessage) -> service_pb2.PeerMessage | None:
        """A real message with some bytes changed, cut out or put in; None where it is no message any more."""
        raw = bytearray(message.SerializeToString(deterministic=True))
        for _ in range(self._dice.randint(1, MAX_MUTATIONS)):
            place = self._dice.randrange(len(raw) + 1)
            kind = self._dice.randrange(3)
            if kind == 0 and place < len(raw):
                raw[place] = self._dice.randrange(256)
            elif kind == 1:
                del raw[place : place + self._dice.randint(1, 8)]
            else:
                raw[place:place] = self._dice.randbytes(self._dice.randint(1, 8))
        try:
            return service_pb2.PeerMessage.FromString(bytes(raw))
        except DecodeError:
            return None

    # -- two stories -------------------------------------------------------------------------------------------------

    def _equivocated(
        self, target: int, kind: str | None, message: service_pb2.PeerMessage
    ) -> list[service_pb2.PeerMessage]:
        if kind == "vote":
            vote = decode_vote(message.vote)
            return [self._vote_for(target, vote)] if self._is_own(vote) else [message]
        if kind == "proposal":
            proposal = decode_proposal(message.proposal)
            self._own_proposals[(proposal.height, proposal.round)] = proposal
            return []
        if kind == "block":
            named = self._own_proposals.get((message.block.height, message.block.round))
            return [] if named is None else self._proposal_for(target, named, message)
        return [message]

    def _is_own(self, vote: Vote) -> bool:
        return vote.validator_address == self.machine.key.public.address

    def _side(self, target: int) -> int | None:
        return next((side for side, nodes in enumerate(self._sides) if target in nodes), None)

    def _vote_for(self, target: int, vote: Vote) -> service_pb2.PeerMessage:
        assert self.replica is not None
        proposed = sorted(self.replica.driver.proposed(vote.round), key=lambda block_id: block_id.hash)
        side = self._side(target)
        if side is not None and proposed:
            chosen = proposed[0] if side == 0 else proposed[-1]
        else:
            chosen = self._dice.choice([NIL_BLOCK_ID, vote.block_id, *proposed])
        other = replace(vote, block_id=chosen)
        signed = replace(other, signature=self.machine.key.sign(vote_sign_bytes(CHAIN_ID, other)))
        return service_pb2.PeerMessage(vote=encode_vote(signed))

    def _proposal_for(
        self, target: int, proposal: Proposal, message: service_pb2.PeerMessage
    ) -> list[service_pb2.PeerMessage]:
        """The block, another one, or both; only of its own: others' proposals are passed on as they are."""
        pair = [service_pb2.PeerMessage(proposal=encode_proposal(proposal)), message]
        assert self.replica is not None
        chain = self.replica.chain
        block = decode_block(message.block.block)
        ours = block.header.proposer_address == self.machine.key.public.address
        if not ours or proposal.height != chain.height or proposal.pol_round >= 0:
            return pair
        other = self._other_block(proposal, block)
        second = [
            service_pb2.PeerMessage(proposal=encode_proposal(other[0])),
            service_pb2.PeerMessage(
                block=service_pb2.BlockData(height=proposal.height, round=proposal.round, block=encode_block(other[1]))
            ),
        ]
        side = self._side(target)
        if side is not None:
            return pair if side == 0 else second
        return self._dice.choice((pair, second, pair + second, second + pair))

    def _other_block(self, proposal: Proposal, block: Block) -> tuple[Proposal, Block]:
        place = proposal.height, proposal.round
        if place not in self._twin_blocks:
            assert self.replica is not None
            twin = make_block(
                self.replica.chain,
                block.data.txs[1:],
                block.last_commit,
                block.header.time_ns + 1,
                block.header.proposer_address,
                block.evidence,
            )
            other = replace(proposal, block_id=block_id_of(twin), timestamp_ns=twin.header.time_ns)
            signed = replace(other, signature=self.machine.key.sign(proposal_sign_bytes(CHAIN_ID, other)))
            self._twin_blocks[place] = signed, twin
        return self._twin_blocks[place]

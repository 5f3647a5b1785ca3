"""A validator whose key signs twice: real nodes prove it in a block, once, and every application is told once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import grpc
import pytest
from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import check_block, make_block
from talkoo_consensus.encoding import (
    block_id_of,
    decode_block,
    decode_commit,
    decode_evidence,
    encode_evidence,
    encode_vote,
    vote_sign_bytes,
)
from talkoo_consensus.evidence import PastHeight, form
from talkoo_consensus.types import (
    NIL_BLOCK_ID,
    Block,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    ConflictingVotes,
    SignedType,
    Vote,
)
from talkoo_consensus.validators import ValidatorSet
from talkoo_ledger.application import FinalizeRequest, FinalizeResponse
from talkoo_ledger.executor import Executor
from talkoo_ledger.misbehavior import Misbehavior, proven_by
from talkoo_ledger.offences import Offences
from talkoo_ledger.peers import Mesh

from talkoo.verification.chain import Replay
from talkoo_core.amounts import share_ppm
from talkoo_core.errors import InvalidInput
from talkoo_runtime.clock import SystemClock
from talkoo_sim.ledger_chain import key_of, make_genesis
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.scripted_peer import ScriptedPeer

TIME_NS = 1_700_000_000 * 10**9
A_BLOCK = BlockId(bytes([5]) * 32, 1, bytes([6]) * 32)


def signed(chain_id: str, validators: ValidatorSet, name: str, value: BlockId, height: int, round_: int = 0) -> Vote:
    key = key_of(f"{name}-consensus")
    found = validators.find(key.public.address)
    assert found is not None
    vote = Vote(SignedType.PREVOTE, height, round_, value, TIME_NS, key.public.address, found[0])
    return replace(vote, signature=key.sign(vote_sign_bytes(chain_id, vote)))


def lie(chain_id: str, validators: ValidatorSet, name: str, height: int) -> ConflictingVotes:
    return ConflictingVotes(
        signed(chain_id, validators, name, A_BLOCK, height), signed(chain_id, validators, name, NIL_BLOCK_ID, height)
    )


async def test_a_key_that_signs_twice_is_proven_in_a_block_once_on_every_node(ledgers: Ledgers, tmp_path: Path) -> None:
    liar, *honest = ledgers.names
    executor = Executor(ledgers.genesis, tmp_path / "replayed", SystemClock())
    validators, address = executor.chain.validators, key_of(f"{liar}-consensus").public.address
    ledgers.start(*honest)
    await ledgers.reach(2, *honest)
    peers = [ScriptedPeer(liar, ledgers.genesis, lambda _: None, 0) for _ in honest]
    speaking = [
        asyncio.create_task(peer.run(ledgers.channel(liar, "ledger", to=name)))
        for peer, name in zip(peers, honest, strict=True)
    ]

    async def proven() -> bool:
        """Lie once about each height; the first node hears both votes, the others one each."""
        height = (await ledgers.height(honest[0])) + 2
        votes = lie(ledgers.genesis.chain_id, validators, liar, height)
        for peer, said in zip(peers, [(votes.first, votes.second), (votes.first,), (votes.second,)], strict=True):
            for vote in said:
                peer.say(service_pb2.PeerMessage(vote=encode_vote(vote)))
        return any(decode_block(raw.block).evidence for raw in await ledgers.blocks(honest[1]))

    await ledgers.eventually(proven, "a block proves the double vote")
    for task in speaking:
        task.cancel()
    await asyncio.gather(*speaking, return_exceptions=True)
    height = await ledgers.height(honest[0])
    ledgers.stop(honest[2])
    ledgers.start(honest[2], liar)  # a node that starts again, and one that has to catch up, hold the same
    await ledgers.reach(height + 4)
    chains = [(await ledgers.blocks(name))[: height + 4] for name in ledgers.names]
    assert all([raw.block for raw in chain] == [raw.block for raw in chains[0]] for chain in chains)

    told = await finalized(executor, chains[0])
    offences = Counter((each.height, each.validator_address) for each in told)
    assert told
    assert set(offences.values()) == {1}
    assert {each.validator_address for each in told} == {address}
    assert {each.kind for each in told} == {"duplicate_vote"}
    times = {decode_block(raw.block).header.height: decode_block(raw.block).header.time_ns for raw in chains[0]}
    assert all(each.time_ns == times[each.height] for each in told)
    assert all(each.total_power == validators.total_power for each in told)
    punished = executor.application.state.organizations[liar]
    assert punished.power == 0
    assert punished.slashed_utlk == share_ppm(
        punished.stake_utlk + punished.slashed_utlk, ledgers.genesis.params["slash_ppm"]
    )
    replay = Replay(ledgers.genesis.canonical_json().decode(), "task-none")
    for raw in chains[0]:
        replay.feed(raw)


async def finalized(executor: Executor, blocks: list[service_pb2.RawBlock]) -> list[Misbehavior]:
    """What an application is told in all blocks together."""
    told: list[Misbehavior] = []
    finalize = executor.application.finalize_block

    def listening(request: FinalizeRequest) -> FinalizeResponse:
        told.extend(request.misbehavior)
        return finalize(request)

    executor.application.finalize_block = listening  # type: ignore[method-assign]
    for raw in blocks:
        block, commit = decode_block(raw.block), decode_commit(raw.commit)
        check_block(executor.chain, block, executor.evidence.check)
        executor.execute(commit.round, block_id_of(block), block, commit)
    return told


async def test_a_peer_that_sends_evidence_which_proves_nothing_is_blamed_and_the_rest_is_passed_on(
    ledgers: Ledgers, tmp_path: Path
) -> None:
    """One member tells one node only; the block that follows holds what was right, and nothing forged."""
    liar, *honest = ledgers.names
    executor = Executor(ledgers.genesis, tmp_path / "replayed", SystemClock())
    validators = executor.chain.validators
    ledgers.start(*honest)
    await ledgers.reach(2, *honest)
    blocks = await ledgers.blocks(honest[0])
    past = PastHeight(decode_block(blocks[0].block).header.time_ns, validators)
    right = form(lie(ledgers.genesis.chain_id, validators, liar, 1), past)
    assert right is not None
    forged = replace(right, vote_a=replace(right.vote_a, signature=bytes(64)))
    wrong_time = replace(right, timestamp_ns=right.timestamp_ns + 1)
    peer = ScriptedPeer(liar, ledgers.genesis, lambda _: None, 0)
    channel: grpc.aio.Channel = ledgers.channel(liar, "ledger", to=honest[0])
    speaking = asyncio.create_task(peer.run(channel))
    for evidence in (encode_evidence(forged), encode_evidence(wrong_time), b"nothing", encode_evidence(right)):
        peer.say(service_pb2.PeerMessage(evidence=evidence))

    async def held() -> list[Block]:
        decoded = [decode_block(raw.block) for raw in await ledgers.blocks(honest[1])]
        return [block for block in decoded if block.evidence]

    found: list[Block] = await ledgers.eventually(held, "a block holds the evidence")
    assert [block.evidence for block in found] == [(right,)]
    assert f"{liar}: dropped" in ledgers.log(honest[0])
    assert "this evidence proves nothing here: a signature is wrong" in ledgers.log(honest[0])
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)


# One executor, with blocks made here


class Chain:
    """The four usual validators decide blocks for an executor."""

    def __init__(self, folder: Path) -> None:
        self.genesis = make_genesis()
        self.folder = folder
        self.executor = Executor(self.genesis, folder, SystemClock())
        self.by_address = {key_of(f"{o.name}-consensus").public.address: o.name for o in self.genesis.organizations}

    def reopen(self) -> None:
        self.executor.store.close()
        self.executor = Executor(self.genesis, self.folder, SystemClock())

    def decide(self) -> Block:
        chain = self.executor.chain
        evidence = self.executor.evidence.pending(chain)
        time_ns = max(chain.last_time_ns, TIME_NS) + 10**9
        proposer = chain.validators.proposer.address
        block = make_block(chain, [], self.executor.last_commit(), time_ns, proposer, evidence)
        check_block(chain, block, self.executor.evidence.check)
        block_id = block_id_of(block)
        places = []
        for index, validator in enumerate(chain.validators.validators):
            key = key_of(f"{self.by_address[validator.address]}-consensus")
            vote = Vote(SignedType.PRECOMMIT, chain.height, 0, block_id, time_ns, validator.address, index)
            signature = key.sign(vote_sign_bytes(chain.chain_id, vote))
            places.append(CommitSig(BlockIdFlag.COMMIT, validator.address, time_ns, signature))
        self.executor.execute(0, block_id, block, Commit(chain.height, 0, block_id, tuple(places)))
        return block

    def lie(self, height: int) -> ConflictingVotes:
        name = self.genesis.organizations[0].name
        return lie(self.genesis.chain_id, self.executor.chain.validators, name, height)


def test_a_restart_forgets_neither_pending_nor_committed_evidence(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.executor.evidence.report(chain.lie(1), chain.executor.chain)
    chain.decide()
    (evidence,) = chain.executor.evidence_found
    chain.reopen()
    assert chain.executor.evidence.pending(chain.executor.chain) == (evidence,)
    block = chain.decide()
    assert block.evidence == (evidence,)
    (told,) = proven_by(block)
    assert (told.height, told.time_ns) == (1, TIME_NS + 10**9)
    chain.reopen()
    assert chain.executor.evidence.report(chain.lie(1), chain.executor.chain) is None
    assert chain.decide().evidence == ()


class Told:
    """Stands for the mesh, of which it needs the two ways to send: what is sent is kept."""

    def __init__(self) -> None:
        self.to_all: list[bytes] = []
        self.passed_on: list[tuple[str, bytes]] = []

    def send_all(self, message: service_pb2.PeerMessage) -> None:
        self.to_all.append(message.evidence)

    def relay(self, source: str, _origin: str, message: service_pb2.PeerMessage) -> None:
        self.passed_on.append((source, message.evidence))


def offences(chain: Chain, own: str) -> tuple[Offences, Told]:
    told = Told()
    return Offences(chain.executor, cast(Mesh, told), key_of(f"{own}-consensus").public.address), told


def test_what_is_new_is_told_once_and_what_a_peer_says_is_passed_on_once(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.decide()
    chain.decide()
    liar, other, own = (organization.name for organization in chain.genesis.organizations[:3])
    here, told = offences(chain, own)
    here.voted_twice(chain.lie(1))
    here.voted_twice(chain.lie(1))
    (evidence,) = told.to_all
    assert [message.evidence for message in here.messages()] == [evidence]
    here.heard(other, evidence)
    assert told.passed_on == []
    past = PastHeight(TIME_NS + 2 * 10**9, chain.executor.chain.validators)
    second = form(lie(chain.genesis.chain_id, past.validators, liar, 2), past)
    assert second is not None
    here.heard(other, encode_evidence(second))
    here.heard(own, encode_evidence(second))
    assert told.passed_on == [(other, encode_evidence(second))]
    assert len(told.to_all) == 1


def test_a_node_that_sees_its_own_key_elsewhere_says_so_and_does_not_accuse_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain = Chain(tmp_path)
    chain.decide()
    here, told = offences(chain, chain.genesis.organizations[0].name)
    here.voted_twice(chain.lie(1))
    assert "another node signs with this validator's key" in caplog.text
    assert told.to_all == []
    assert chain.executor.evidence.pending(chain.executor.chain) == ()


def test_two_commits_that_disagree_tell_who_precommitted_the_block_and_nil(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.decide()
    here, told = offences(chain, chain.genesis.organizations[1].name)
    ours = chain.executor.last_commit()
    here.height_ended(ours)
    validator = chain.executor.chain.last_validators.validators[0]
    key = key_of(f"{chain.by_address[validator.address]}-consensus")
    nil = Vote(SignedType.PRECOMMIT, 1, 0, NIL_BLOCK_ID, TIME_NS, validator.address, 0)
    place = CommitSig(
        BlockIdFlag.NIL, validator.address, TIME_NS, key.sign(vote_sign_bytes(chain.genesis.chain_id, nil))
    )
    theirs = replace(ours, signatures=(place, *ours.signatures[1:]))
    block = chain.decide()
    here.after_block(block)
    assert told.to_all == []
    here.after_block(replace(block, last_commit=theirs))
    (evidence,) = map(decode_evidence, told.to_all)
    assert evidence.validator_address == validator.address


def test_evidence_that_was_heard_between_blocks_is_kept_with_the_next(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.decide()
    chain.decide()
    evidence = form(chain.lie(1), PastHeight(TIME_NS + 10**9, chain.executor.chain.validators))
    assert evidence is not None
    with pytest.raises(InvalidInput):
        chain.executor.evidence.add(replace(evidence, validator_power=1), chain.executor.chain)
    assert chain.executor.evidence.add(evidence, chain.executor.chain)
    assert chain.decide().evidence == (evidence,)
    chain.reopen()
    assert not chain.executor.evidence.add(evidence, chain.executor.chain)

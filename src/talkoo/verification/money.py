"""Proofs of the money: every payment of the task against its rule, slashes, the registered model, the supply."""

from __future__ import annotations

import hashlib
from collections import Counter

from talkoo_api.ledger.v1 import state_pb2
from talkoo_validator.verdicts import digest_of

from talkoo.verification.evidence import Evidence, SegmentKey, label
from talkoo.verification.report import Check, Tally
from talkoo.verification.training import FetchBlob, checked_blob
from talkoo_core.amounts import format_tlk, share_ppm, split_by_weight
from talkoo_core.ids import address_of_key

FLOP_PER_GFLOP = 1_000_000_000
TREASURY = address_of_key(hashlib.sha256(b"talkoo/treasury").digest())
"""An account without a key."""
PAID_BY_RULE = ("compute", "validation", "finder", "restitution", "slash")
Expected = tuple[str, str, str, int, int, str]
"""(kind, source, destination, amount_utlk, segment, proof)"""


def check_payments(evidence: Evidence) -> Check:
    """Each payment for work or verdicts is one that the rules demand, with amount and proof; none is missing."""
    tally = Tally("payments", "payments have the amount and the proof that the rules demand")
    expected = Counter(expected_payments(evidence))
    paid = [payment for payment in evidence.payments if payment.kind in PAID_BY_RULE]
    for payment in paid:
        facts = _facts(payment)
        tally.expect(
            expected[facts] > 0, f"payment {payment.number} ({payment.kind}) of {_words(payment)} has no ground"
        )
        expected[facts] -= 1
    for facts, missing in expected.items():
        if missing > 0:
            tally.expect(False, f"a payment ({facts[0]}) of {format_tlk(facts[3])} to {facts[2]} is missing")
    return tally.done(f"{format_tlk(sum(payment.amount_utlk for payment in paid))} in all")


def check_escrow(evidence: Evidence) -> Check:
    """What was put into escrow equals what was paid from it, returned, and is left."""
    tally = Tally("escrow", "escrow in, paid, returned and left add up")
    pool = f"escrow:{evidence.task.id}"
    put_in = sum(payment.amount_utlk for payment in evidence.payments if payment.destination == pool)
    out = sum(payment.amount_utlk for payment in evidence.payments if payment.source == pool)
    tally.expect(
        put_in == out + evidence.task.escrow_utlk,
        f"{format_tlk(put_in)} went in, {format_tlk(out)} came out, {format_tlk(evidence.task.escrow_utlk)} are left",
    )
    return tally.done(f"{format_tlk(put_in)} in")


def check_slashes(evidence: Evidence) -> Check:
    """Each slash is the rule's part of the stake, follows a verdict that blames the node, and is paid out whole."""
    tally = Tally("slashes", "slashes follow a verdict and are paid out to the last unit")
    for slash in evidence.slashes:
        segment = evidence.segments.get(slash.segment)
        who = slash.node_id[:12] + "…"
        if segment is None or not segment.HasField("outcome"):
            tally.expect(False, f"{who} was slashed without a verdict")
            continue
        blamed = {segment.shards[finding.rank].node_id for finding in segment.outcome.findings if not finding.honest}
        tally.expect(slash.node_id in blamed, f"{who} was slashed though {label(segment)} does not blame it")
        if slash.stakes_before_utlk:
            due = sum(share_ppm(stake, evidence.params.slash_ppm) for stake in slash.stakes_before_utlk)
            tally.expect(slash.amount_utlk == due, f"{who} lost {format_tlk(slash.amount_utlk)}, not {format_tlk(due)}")
        spent = sum(
            payment.amount_utlk
            for payment in evidence.payments
            if payment.source == f"stake:{slash.node_id}" and payment.height == slash.height
        )
        tally.expect(spent == slash.amount_utlk, f"of {who}'s slash {format_tlk(spent)} were paid out")
    return tally.done()


def check_model(evidence: Evidence, fetch: FetchBlob) -> Check:
    """The registered version holds the weights of the last accepted segment and the score that validators measured."""
    tally = Tally("model", "facts of the registered version")
    model = evidence.model
    if model is None:
        return tally.done("no version is registered yet")
    last = evidence.standing()[-1]
    weights = {commitment.segment.params_sha256 for commitment in last.commitments}
    tally.expect(weights == {model.params_sha256}, "its weights are not those of the last segment")
    score = (last.outcome.heldout_correct, last.outcome.heldout_total)
    tally.expect((model.heldout_correct, model.heldout_total) == score, "its score is not the verdict's")
    spec = evidence.task.spec
    lineage = (model.code_sha256, model.data_sha256, model.parent_version, model.task_id)
    tally.expect(
        lineage == (spec.code.sha256, spec.data.sha256, spec.parent_version, evidence.task.id),
        "its program, data or parent is not the task's",
    )
    for what, digest in (("weights", model.params_sha256), ("program", model.code_sha256), ("data", model.data_sha256)):
        _, problem = checked_blob(digest, fetch)
        tally.expect(not problem, f"its {what}: {problem}")
    return tally.done(f"{model.version}, {model.heldout_correct} of {model.heldout_total} held-out right")


def check_supply(evidence: Evidence) -> Check:
    """Issued tokens are where the records say, to the last unit."""
    tally = Tally("supply", "sums over all accounts, stakes and escrows")
    said, counted = evidence.supply, evidence.holdings
    issued = said.genesis_utlk + said.emitted_utlk - said.burned_utlk
    held = counted.accounts_utlk + counted.stake_utlk + counted.escrow_utlk + counted.unbonding_utlk
    tally.expect(issued == held, f"{issued} utlk were issued, {held} utlk are held")
    for name in ("accounts_utlk", "stake_utlk", "escrow_utlk", "unbonding_utlk"):
        tally.expect(getattr(said, name) == getattr(counted, name), f"{name} is recorded as {getattr(said, name)}")
    return tally.done(f"{format_tlk(held)}")


# -- the rules, written a second time ----------------------------------------------------------------------------------


def expected_payments(evidence: Evidence) -> list[Expected]:
    """Every payment that the accepted segments and the slashes of the task call for; those of zero are not made."""
    due: list[Expected] = []
    for segment in evidence.standing():
        due += _for_accepted(evidence, segment)
    seen: set[SegmentKey] = set()
    for slash in evidence.slashes:
        if slash.segment not in seen:
            seen.add(slash.segment)
            due += _for_forged(evidence, slash.segment)
    return [facts for facts in due if facts[3]]


def _for_accepted(evidence: Evidence, segment: state_pb2.Segment) -> list[Expected]:
    pool = f"escrow:{segment.task_id}"
    due: list[Expected] = []
    price = 0
    for commitment in segment.commitments:
        pay = _price(evidence, segment, commitment.segment.rank)
        price += pay
        due.append(("compute", pool, commitment.node_id, pay, segment.segment, _commitment(commitment)))
    validators = _agreeing(evidence, segment)
    fee = share_ppm(price, evidence.params.validation_ppm) if validators else 0
    parts = split_by_weight(fee, [1] * len(validators))
    for address, part in zip(validators, parts, strict=True):
        due.append(("validation", pool, address, part, segment.segment, _verdict(segment)))
    return due


def _for_forged(evidence: Evidence, key: SegmentKey) -> list[Expected]:
    """Of each slash: finders first, then honest ranks' lost work in this and later segments, then the treasury."""
    segment = evidence.segments[key]
    slashes = [slash for slash in evidence.slashes if slash.segment == key]
    forgers = {slash.node_id for slash in slashes}
    claims = [
        (commitment, each, _price(evidence, each, commitment.segment.rank))
        for each in _lost_with(evidence, segment, slashes[0].height)
        for commitment in each.commitments
        if commitment.node_id not in forgers
    ]
    finders = _agreeing(evidence, segment)
    due: list[Expected] = []
    for slash in slashes:
        source, pot = f"stake:{slash.node_id}", slash.amount_utlk
        found = share_ppm(pot, evidence.params.finder_ppm) if finders else 0
        for address, part in zip(finders, split_by_weight(found, [1] * len(finders)), strict=True):
            due.append(("finder", source, address, part, segment.segment, _verdict(segment)))
        pot -= found
        unpaid = []
        for commitment, each, claim in claims:
            part = min(pot, claim)
            pot -= part
            due.append(("restitution", source, commitment.node_id, part, each.segment, _commitment(commitment)))
            if part < claim:
                unpaid.append((commitment, each, claim - part))
        claims = unpaid
        due.append(("slash", source, TREASURY, pot, segment.segment, _verdict(segment)))
    return due


def _lost_with(evidence: Evidence, forged: state_pb2.Segment, height: int) -> list[state_pb2.Segment]:
    """The forged segment and the whole ones after it that were discarded with it, in order."""
    lost = [
        segment
        for segment in evidence.committed()
        if segment.phase == state_pb2.SEGMENT_PHASE_DISCARDED
        and segment.segment >= forged.segment
        and segment.committed_height <= height
        and evidence.discarded.get((segment.attempt, segment.segment)) == height
    ]
    return sorted(lost, key=lambda segment: segment.segment)


def _price(evidence: Evidence, segment: state_pb2.Segment, rank: int) -> int:
    """What a shard earns for a segment, in utlk, rounded down."""
    shard = next(shard for shard in segment.shards if shard.rank == rank)
    flops = shard.samples * segment.steps * evidence.task.spec.flops_per_sample
    return flops * shard.price_utlk_per_gflop // FLOP_PER_GFLOP


def _agreeing(evidence: Evidence, segment: state_pb2.Segment) -> list[str]:
    """Verdict accounts, by organization name, of those who committed in time and revealed the outcome."""
    if not segment.HasField("outcome"):
        return []
    outcome = segment.outcome
    scored = bool(outcome.heldout_total)
    found = []
    for vote in sorted(segment.votes, key=lambda vote: vote.organization):
        if not vote.verdict or vote.late or digest_of(vote.salt, vote.verdict) != vote.digest:
            continue
        verdict = type(outcome).FromString(vote.verdict)
        same = verdict.available == outcome.available
        if outcome.available:
            same = same and [f.honest for f in verdict.findings] == [f.honest for f in outcome.findings]
            score = (verdict.heldout_correct, verdict.heldout_total)
            same = same and (not scored or score == (outcome.heldout_correct, outcome.heldout_total))
        if same:
            found.append(evidence.verdict_accounts[vote.organization])
    return found


def _commitment(commitment: state_pb2.Commitment) -> str:
    return f"commitment:{commitment.tx_hash.hex()}"


def _verdict(segment: state_pb2.Segment) -> str:
    return f"verdict:{segment.task_id}/{segment.attempt}/{segment.segment}"


def _facts(payment: state_pb2.Payment) -> Expected:
    return (
        payment.kind,
        payment.source,
        payment.destination,
        payment.amount_utlk,
        payment.segment,
        payment.proof,
    )


def _words(payment: state_pb2.Payment) -> str:
    return f"{format_tlk(payment.amount_utlk)} to {payment.destination[:12]}…"

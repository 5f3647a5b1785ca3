"""Proofs of the training: unpredictable order, lots, commitments, transcripts, the chain of parameters, verdicts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_validator.sampling import beacon_of, draw_of, is_drawn
from talkoo_validator.verdicts import SALT_BYTES, digest_of

from talkoo.verification.evidence import Evidence, label
from talkoo.verification.report import Check, Tally
from talkoo_core.errors import TalkooError
from talkoo_math.transcript import Transcript, decode_transcript, root_of

FetchBlob = Callable[[str], bytes]
"""SHA-256 in hex to bytes. Raises a TalkooError when the blob cannot be had. What it gives is hashed again here."""
PPM = 1_000_000


def check_beacons(evidence: Evidence) -> Check:
    """Each segment's data order comes from the hash of the block that opened it."""
    tally = Tally("beacons", "data orders come from the block that opened the segment")
    for key, segment in sorted(evidence.segments.items()):
        height = evidence.opened.get(key)
        if height is None:
            tally.expect(False, f"{label(segment)} was never opened")
            continue
        expected = beacon_of(evidence.block_hashes[height], segment.task_id, *key)
        tally.expect(segment.beacon == expected, f"{label(segment)}: its beacon is not that of block {height}")
    return tally.done()


def check_draws(evidence: Evidence) -> Check:
    """The block after the last commitment draws the lot; who is opened follows from lot and rate."""
    tally = Tally("draws", "lots decide which segments are opened")
    opened = 0
    for segment in evidence.committed():
        height = segment.committed_height + 1
        if not segment.draw and height > evidence.height:
            continue  # the next block draws it
        if not segment.draw and segment.phase == state_pb2.SEGMENT_PHASE_DISCARDED:
            continue  # discarded with an earlier one before its lot was drawn
        expected = draw_of(evidence.block_hashes.get(height, b""), segment.task_id, segment.attempt, segment.segment)
        tally.expect(segment.draw == expected, f"{label(segment)}: its lot is not that of block {height}")
        rate = _rate(evidence, segment)
        tally.expect(
            segment.draw_rate_ppm == rate, f"{label(segment)}: drawn at {segment.draw_rate_ppm} ppm, not {rate}"
        )
        audited = segment.audit_deadline_height > 0
        drawn = is_drawn(expected, rate)
        opened += drawn
        tally.expect(audited == drawn, f"{label(segment)}: it {'was' if audited else 'was not'} opened against its lot")
    return tally.done(f"{opened} opened")


def check_commitments(evidence: Evidence) -> Check:
    """Each commitment is a transaction that the shard's node signed, and claims the work its shard holds."""
    tally = Tally("commitments", "commitments are transactions signed by the node of their shard")
    for segment in evidence.segments.values():
        shards = {shard.rank: shard for shard in segment.shards}
        for commitment in segment.commitments:
            said, where = commitment.segment, f"{label(segment)} rank {commitment.segment.rank}"
            seen = evidence.txs.get(commitment.tx_hash)
            if seen is None or seen.body.commit_segment != said:
                tally.expect(False, f"{where}: the chain holds no such transaction")
                continue
            shard = shards.get(said.rank)
            holder = shard.node_id if shard else ""
            tally.expect(
                seen.sender == commitment.node_id == holder,
                f"{where}: it is not signed by the node that holds the shard",
            )
            samples = shard.samples * segment.steps if shard else 0
            flops = samples * evidence.task.spec.flops_per_sample
            tally.expect(
                (said.samples, said.flops) == (samples, flops), f"{where}: it claims other work than its shard's"
            )
    return tally.done()


def check_transcripts(evidence: Evidence, fetch: FetchBlob) -> Check:
    """Each transcript of the accepted segments has the committed root, and the ranks tell one story."""
    tally = Tally("transcripts", "transcripts have their committed root and agree with each other")
    for segment in evidence.standing():
        told: list[Transcript] = []
        for commitment in segment.commitments:
            said, where = commitment.segment, f"{label(segment)} rank {commitment.segment.rank}"
            transcript, problem = _transcript(said, fetch)
            if transcript is None:
                tally.expect(False, f"{where}: {problem}")
                continue
            told.append(transcript)
            numbers = [leaf.step for leaf in transcript.leaves]
            expected = list(range(segment.first_step, segment.first_step + segment.steps))
            place = (transcript.segment, transcript.rank) == (segment.segment, said.rank)
            tally.expect(
                root_of(transcript.leaves) == said.root and numbers == expected and place,
                f"{where}: the transcript does not have the committed root or steps",
            )
        stories = {tuple((leaf.aggregate, leaf.params, leaf.optimizer) for leaf in each.leaves) for each in told}
        tally.expect(len(stories) <= 1, f"{label(segment)}: the ranks' transcripts contradict each other")
    return tally.done()


def check_parameters(evidence: Evidence, fetch: FetchBlob) -> Check:
    """Each accepted segment begins where the one before it ended; all checkpoints are there and have their hash."""
    tally = Tally("parameters", "checkpoints follow from segment to segment")
    before = ("", "")
    if not evidence.task.spec.parent_version:
        first = evidence.standing()[:1]
        for segment in first:
            start = segment.start_params_sha256, segment.start_optimizer_sha256
            tally.expect(start == ("", ""), f"{label(segment)}: a new model starts from a checkpoint")
    for number, segment in enumerate(evidence.standing()):
        tally.expect(segment.segment == number, f"{label(segment)}: it is accepted out of order")
        if number:
            start = segment.start_params_sha256, segment.start_optimizer_sha256
            tally.expect(start == before, f"{label(segment)}: it does not start where segment {number - 1} ended")
        results = {(each.segment.params_sha256, each.segment.optimizer_sha256) for each in segment.commitments}
        tally.expect(len(results) == 1, f"{label(segment)}: its ranks committed to different results")
        if not results:
            continue
        before = sorted(results)[0]
        for digest in before:
            _, problem = checked_blob(digest, fetch)
            tally.expect(not problem, f"{label(segment)}: checkpoint {digest[:16]}: {problem}")
    return tally.done()


def check_verdicts(evidence: Evidence) -> Check:
    """Each final verdict: revealed votes hash to what was committed, and more than two thirds of the power agree."""
    tally = Tally("verdicts", "votes open their commitment and make a majority of more than 2/3")
    for key, segment in sorted(evidence.segments.items()):
        decided = segment.HasField("outcome")
        agreeing = 0
        powers = evidence.powers.get(key, {})
        for vote in segment.votes:
            if not vote.verdict:
                continue
            where = f"{label(segment)}, verdict of {vote.organization}"
            verdict = tx_pb2.Verdict.FromString(vote.verdict)
            opens = len(vote.salt) == SALT_BYTES and digest_of(vote.salt, vote.verdict) == vote.digest
            tally.expect(opens, f"{where}: salt and verdict do not open the committed digest")
            seen = evidence.txs.get(vote.reveal_tx_hash)
            signed = (
                seen is not None
                and seen.body.reveal_verdict.verdict == vote.verdict
                and seen.sender == evidence.verdict_accounts.get(vote.organization)
            )
            tally.expect(signed, f"{where}: the chain holds no such transaction of its verdict key")
            if decided and _substance(verdict) == _substance(segment.outcome):
                agreeing += powers.get(vote.organization, 0)
        if decided:
            total = sum(powers.values())
            tally.expect(agreeing * 3 > total * 2, f"{label(segment)}: only {agreeing} of {total} power agree")
    for segment in evidence.standing():
        if segment.audit_deadline_height:
            passed = segment.HasField("outcome") and _is_honest(segment.outcome)
            tally.expect(passed, f"{label(segment)}: it was opened and accepted without an honest verdict")
    return tally.done()


def checked_blob(sha256: str, fetch: FetchBlob) -> tuple[bytes, str]:
    """The bytes, or why they are no proof."""
    try:
        data = fetch(sha256)
    except TalkooError as error:
        return b"", error.message
    if hashlib.sha256(data).hexdigest() != sha256:
        return b"", "the bytes do not have their hash"
    return data, ""


def _transcript(said: tx_pb2.CommitSegment, fetch: FetchBlob) -> tuple[Transcript | None, str]:
    data, problem = checked_blob(said.transcript_sha256, fetch)
    if problem:
        return None, problem
    try:
        return decode_transcript(data), ""
    except TalkooError as error:
        return None, error.message


def _rate(evidence: Evidence, segment: state_pb2.Segment) -> int:
    """The chance to be opened: certain for newcomers, last segments and disagreement, else the task's or the floor."""
    results = {(each.segment.params_sha256, each.segment.optimizer_sha256) for each in segment.commitments}
    last = segment.first_step + segment.steps >= evidence.task.spec.steps
    if last or len(results) > 1 or evidence.on_probation.get((segment.attempt, segment.segment), False):
        return PPM
    return min(max(evidence.task.spec.audit_rate_ppm, evidence.params.audit_floor_ppm), PPM)


def _substance(verdict: tx_pb2.Verdict) -> tuple[bool, tuple[bool, ...]]:
    """What two verdicts must share to count as one; wording may differ."""
    return verdict.available, tuple(finding.honest for finding in verdict.findings) if verdict.available else ()


def _is_honest(verdict: tx_pb2.Verdict) -> bool:
    return verdict.available and all(finding.honest for finding in verdict.findings)

"""Verdicts: commit, reveal, and what more than two thirds of voting power say."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from talkoo_core.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from talkoo_ledger.context import Context
from talkoo_ledger.messages import CommitVerdict, RevealVerdict, Verdict
from talkoo_ledger.records import Organization, Params, Segment, SegmentPhase, VerdictVote
from talkoo_ledger.segments import put_segment
from talkoo_ledger.state import State, segment_key
from talkoo_ledger.wire import decode_verdict

Outcome = tuple[bool, tuple[bool, ...], int, int]
"""What must be equal in two verdicts: availability, each rank's honesty, held-out score. Reasons may differ."""


def commit_verdict(context: Context, sender: str, message: CommitVerdict) -> None:
    organization = _validator(context.state, sender)
    segment = _audited_segment(context.state, message.task_id, message.attempt, message.segment)
    if any(vote.organization == organization.name for vote in segment.votes):
        raise Conflict(
            f"{organization.name} has committed to a verdict on this segment already", code="already_committed"
        )
    late = any(vote.verdict for vote in segment.votes)
    vote = VerdictVote(organization.name, message.digest, power=organization.power, late=late)
    put_segment(context.state, replace(segment, votes=_sorted((*segment.votes, vote))))


def reveal_verdict(context: Context, sender: str, message: RevealVerdict) -> None:
    organization = _validator(context.state, sender)
    verdict = decode_verdict(message.verdict)
    segment = _audited_segment(context.state, verdict.task_id, verdict.attempt, verdict.segment)
    vote = next((each for each in segment.votes if each.organization == organization.name), None)
    if vote is None:
        raise Conflict(f"{organization.name} has not committed to a verdict; commit first", code="not_committed")
    if vote.verdict:
        raise Conflict(f"{organization.name} has revealed its verdict already", code="already_revealed")
    if hashlib.sha256(message.salt + message.verdict).digest() != vote.digest:
        raise Conflict("salt and verdict do not hash to the committed digest", code="digest_mismatch")
    if not reveal_is_open(context, segment):
        raise Conflict(
            "others still work on this segment: reveal once more than two thirds of power have committed, "
            "or half the audit's time has passed",
            code="reveal_too_early",
        )
    if verdict.available and [finding.rank for finding in verdict.findings] != list(range(len(segment.shards))):
        raise InvalidInput("a verdict has one finding for each rank, in order", code="bad_verdict")
    vote = replace(vote, salt=message.salt, verdict=message.verdict, reveal_tx_hash=context.tx_hash)
    others = tuple(each for each in segment.votes if each.organization != organization.name)
    put_segment(context.state, replace(segment, votes=_sorted((*others, vote))))


def reveal_is_open(context: Context, segment: Segment) -> bool:
    """More than two thirds of power have committed, or the present stretch of the audit is half over."""
    committed = {vote.organization for vote in segment.votes}
    halfway = segment.audit_deadline_height - context.params.audit_deadline_blocks // 2
    return is_quorum(context.state, committed) or context.height >= halfway


def is_quorum(state: State, organizations: set[str]) -> bool:
    """Whether these have more than two thirds of all voting power."""
    everyone = state.organizations.all()
    power = sum(each.power for each in everyone if each.name in organizations)
    return 3 * power > 2 * sum(each.power for each in everyone)


def agreed_outcome(state: State, segment: Segment, segments_of_task: int) -> Verdict | None:
    """The verdict that more than two thirds of power revealed, or None."""
    is_last = segment.segment + 1 == segments_of_task
    groups: dict[Outcome, tuple[Verdict, set[str]]] = {}
    for vote in segment.votes:
        if vote.verdict:
            verdict = decode_verdict(vote.verdict)
            groups.setdefault(_outcome(verdict, is_last), (verdict, set()))[1].add(vote.organization)
    return next((verdict for verdict, names in groups.values() if is_quorum(state, names)), None)


def agreeing_validators(state: State, segment: Segment) -> list[str]:
    """Verdict accounts of those who agreed with the outcome and committed before anyone revealed."""
    if segment.outcome is None:
        return []
    outcome = _outcome(segment.outcome, is_last=True)
    # The outcome keeps held-out numbers only where they count, see `normalized`.
    return [
        state.organizations[vote.organization].validator
        for vote in segment.votes
        if vote.verdict
        and not vote.late
        and _outcome(decode_verdict(vote.verdict), bool(segment.outcome.heldout_total)) == outcome
    ]


def normalized(verdict: Verdict, is_last: bool) -> Verdict:
    """The verdict as a segment's outcome: held-out numbers count for the last segment alone."""
    return verdict if is_last else replace(verdict, heldout_correct=0, heldout_total=0)


def audit_is_over(segment: Segment, height: int, params: Params) -> bool:
    """After a quorum: everyone who committed has revealed, or the grace for the others has passed."""
    waited = height >= segment.quorum_height + params.reveal_grace_blocks
    return waited or all(vote.verdict for vote in segment.votes)


def _outcome(verdict: Verdict, is_last: bool) -> Outcome:
    if not verdict.available:
        return False, (), 0, 0
    honest = tuple(finding.honest for finding in verdict.findings)
    score = (verdict.heldout_correct, verdict.heldout_total) if is_last else (0, 0)
    return True, honest, *score


def _validator(state: State, sender: str) -> Organization:
    for organization in state.organizations.all():
        if organization.validator == sender:
            return organization
    raise PermissionDenied(f"{sender} is no organization's validator; only they give verdicts", code="not_a_validator")


def _audited_segment(state: State, task_id: str, attempt: int, number: int) -> Segment:
    segment = state.segments.get(segment_key(task_id, attempt, number))
    if segment is None:
        raise NotFound(f"there is no segment {number} of {task_id} under attempt {attempt}", code="unknown_segment")
    if segment.phase is not SegmentPhase.AUDITED:
        raise Conflict(f"segment {number} of {task_id} is not being audited", code="not_audited")
    return segment


def _sorted(votes: tuple[VerdictVote, ...]) -> tuple[VerdictVote, ...]:
    return tuple(sorted(votes, key=lambda vote: vote.organization))

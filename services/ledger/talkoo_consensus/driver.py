"""The driver: Tendermint (arXiv 1807.04938) as a machine without input or output. Events in, commands out.

    driver = Driver(address, timeouts)              # address: our validator's 20 bytes; not in the set: follow only
    commands = driver.step(event)                   # deterministic: the same events give the same commands

The loop around it: log the event → step → sync the log → carry out the commands in order. After a crash, a new
Driver is fed the logged events of the unfinished height and stands where the old one stood; its commands are carried
out again (signing must return the stored signature for the same height, round and step).

    StartHeight(h) ─► … BuildValue → ValueBuilt → SignAndSendProposal → ProposalReceived (own or a peer's)
        → CheckValue → ValueChecked → SignAndSendVote(prevote) → VoteReceived … → SignAndSendVote(precommit) → …
        → Decide(h)  execute and store the block          ┐ in this order; both once for a height
        → EndHeight(h)  after commit_ms, or once every    ┘
          validator has precommitted: send StartHeight(h+1) with the commit given there

Votes and proposals for height h+1 that arrive early are held (bounded) and replayed by StartHeight(h+1); those of
other heights are dropped: a node that is further behind fetches decided blocks (`verify.verify_commit`) and then sends
StartHeight. `missing` names a block that the votes prove wanted and that has not arrived; `messages()` is what a peer
that has just connected needs in order to follow the current height.

Bounds: votes (see `votes`), MAX_PROPOSALS_PER_ROUND, MAX_HELD_VOTES_PER_VALIDATOR, MAX_HELD_PROPOSALS.
"""

from __future__ import annotations

from talkoo_consensus.events import (
    BuildValue,
    CheckValue,
    Command,
    Decide,
    EndHeight,
    Event,
    ProposalReceived,
    ReportEvidence,
    ScheduleTimeout,
    SignAndSendProposal,
    SignAndSendVote,
    StartHeight,
    Step,
    TimeoutElapsed,
    Timeouts,
    ValueBuilt,
    ValueChecked,
    VoteReceived,
)

__all__ = [
    "BuildValue",
    "CheckValue",
    "Command",
    "Decide",
    "EndHeight",
    "Event",
    "ProposalReceived",
    "ReportEvidence",
    "ScheduleTimeout",
    "SignAndSendProposal",
    "SignAndSendVote",
    "StartHeight",
    "Step",
    "TimeoutElapsed",
    "Timeouts",
    "ValueBuilt",
    "ValueChecked",
    "VoteReceived",
]

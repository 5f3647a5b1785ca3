"""The state transition of one block, as a list of verbs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from talkoo_core.amounts import format_tlk
from talkoo_core.errors import FAMILIES, Conflict, Corrupt, InsufficientFunds, TalkooError
from talkoo_ledger import messages as m
from talkoo_ledger.accusations import accuse_amnesia, answer_accusation, close_accusations, remember_validators
from talkoo_ledger.audits import decide_audits, draw_segments
from talkoo_ledger.context import Context, Event
from talkoo_ledger.epochs import end_epoch
from talkoo_ledger.members import apply_membership, approve_member, leave_federation, rotate_key
from talkoo_ledger.messages import Transaction
from talkoo_ledger.misbehavior import Misbehavior, punish
from talkoo_ledger.nodes import register_node
from talkoo_ledger.placement import place_task
from talkoo_ledger.records import Account, ModelRequest, Node, Organization, Record, Supply, Task, Unbonding
from talkoo_ledger.requests import complete_request, refund_late_requests, request_model
from talkoo_ledger.rewards import accept_in_order
from talkoo_ledger.segments import commit_segment
from talkoo_ledger.stake import bond, release_unbonded, unbond
from talkoo_ledger.state import State
from talkoo_ledger.tasks import cancel_task, create_task, fail_task, fund_task
from talkoo_ledger.transfers import TREASURY, account_of, credit, transfer
from talkoo_ledger.verdicts import commit_verdict, reveal_verdict

FEE_POOL = "fees"

RULES: dict[type[Any], Callable[[Context, str, Any], None]] = {
    m.Transfer: transfer,
    m.Bond: bond,
    m.Unbond: unbond,
    m.RegisterNode: register_node,
    m.ApplyMembership: apply_membership,
    m.ApproveMember: approve_member,
    m.RotateKey: rotate_key,
    m.LeaveFederation: leave_federation,
    m.CreateTask: create_task,
    m.FundTask: fund_task,
    m.PlaceTask: place_task,
    m.CommitSegment: commit_segment,
    m.CommitVerdict: commit_verdict,
    m.RevealVerdict: reveal_verdict,
    m.CancelTask: cancel_task,
    m.FailTask: fail_task,
    m.RequestModel: request_model,
    m.CompleteRequest: complete_request,
    m.AccuseAmnesia: accuse_amnesia,
    m.AnswerAccusation: answer_accusation,
}
"""One rule for each transaction: (context, sender, message). A rule raises a typed error, and then changed nothing."""

_CODES = {family: number for number, family in enumerate(FAMILIES, start=1)}


class TxResult(Struct, frozen=True, gc=False):
    """What became of one transaction. `code` 0: applied. Otherwise nothing but fee and nonce changed."""

    hash: bytes
    code: int = 0
    family: str = ""
    error_code: str = ""
    message: str = ""
    events: tuple[Event, ...] = ()
    kind: str = ""
    sender: str = ""
    born_id: str = ""
    fee_utlk: int = 0
    """What was paid: 0 when not even the fee could be taken."""


def begin_block(context: Context, misbehavior: Sequence[Misbehavior] = ()) -> None:
    """Who misbehaved is punished before any stake is released or any power renewed."""
    for fault in misbehavior:
        punish(context, fault)
    close_accusations(context)
    draw_segments(context)
    refund_late_requests(context)
    release_unbonded(context)
    if context.height % context.params.epoch_blocks == 0:
        end_epoch(context)


def apply_transaction(context: Context, tx: Transaction) -> TxResult:
    """Take fee and nonce, then apply the message on a layer of its own that is dropped on an error."""
    try:
        charge(context.state, tx)
    except TalkooError as error:
        return failed(tx.hash, error, tx)
    layer = context.state.above()
    inner = Context(layer, context.block, tx.hash, tx.memo)
    try:
        RULES[type(tx.message)](inner, tx.sender, tx.message)
    except TalkooError as error:
        return failed(tx.hash, error, tx, fee_utlk=tx.fee_utlk)
    context.state.absorb(layer)
    return TxResult(
        tx.hash,
        events=tuple(inner.events),
        kind=tx.kind,
        sender=tx.sender,
        born_id=inner.born_id,
        fee_utlk=tx.fee_utlk,
    )


def end_block(context: Context, fees_utlk: int) -> None:
    for task in context.state.tasks.live():
        decide_audits(context, task.id)
        accept_in_order(context, task.id)
    pay_proposer(context, fees_utlk)
    remember_validators(context)
    count_supply(context.state)


def charge(state: State, tx: Transaction) -> None:
    """Check chain, nonce and fee and take the last two. Raises InvalidInput, Conflict, InsufficientFunds."""
    check_terms(state, tx)
    account = account_of(state, tx.sender)
    check_nonce(tx, account.nonce)
    check_fee(tx, account)
    state.accounts.put(
        tx.sender, replace(account, balance_utlk=account.balance_utlk - tx.fee_utlk, nonce=account.nonce + 1)
    )


def check_terms(state: State, tx: Transaction) -> None:
    chain_id = state.chain.chain_id
    if tx.chain_id != chain_id:
        raise Conflict(f"the transaction is for chain {tx.chain_id!r}, this is {chain_id!r}", code="wrong_chain")
    if tx.fee_utlk < state.params.min_fee_utlk:
        raise InsufficientFunds(
            f"the fee of {tx.fee_utlk} utlk is below the least, {state.params.min_fee_utlk} utlk", code="fee_too_low"
        )


def check_nonce(tx: Transaction, expected: int) -> None:
    if tx.nonce < expected:
        raise Conflict(
            f"nonce {tx.nonce} was used already, the next is {expected}: the transaction is a replay",
            code="nonce_too_low",
        )
    if tx.nonce > expected:
        raise Conflict(f"nonce {tx.nonce} leaves a gap, the next is {expected}", code="nonce_gap")


def check_fee(tx: Transaction, account: Account) -> None:
    if account.balance_utlk < tx.fee_utlk:
        raise InsufficientFunds(
            f"{account.label or tx.sender} holds {format_tlk(account.balance_utlk)}, too little for the fee of "
            f"{tx.fee_utlk} utlk",
            code="insufficient_funds",
        )


def failed(tx_hash: bytes, error: TalkooError, tx: Transaction | None = None, fee_utlk: int = 0) -> TxResult:
    return TxResult(
        tx_hash,
        code=_CODES[error.family],
        family=error.family,
        error_code=error.code,
        message=error.message,
        kind=tx.kind if tx else "",
        sender=tx.sender if tx else "",
        fee_utlk=fee_utlk,
    )


def pay_proposer(context: Context, fees_utlk: int) -> None:
    """The block's fees go to the proposing organization's owner; to the treasury when it is no member any more."""
    organization = context.state.organizations.get(context.block.proposer)
    address = organization.owner if organization else TREASURY
    credit(context.state, address, fees_utlk)
    context.record_payment("proposer_fee", FEE_POOL, address, fees_utlk, f"block:{context.height}")


def count_supply(state: State) -> None:
    """Bring the totals up to date from what the block changed and check that no token appeared or vanished.

    Raises Corrupt (code `supply_mismatch`): our fault, and no block may stand on it.
    """
    totals = state.supply
    accounts, stake, escrow, unbonding = (
        totals.accounts_utlk,
        totals.stake_utlk,
        totals.escrow_utlk,
        totals.unbonding_utlk,
    )
    for _, key, before, after in state.changes():
        for record, sign in ((before, -1), (after, 1)):
            held = holdings(record)
            if min(held) < 0:
                raise Corrupt(f"{key} holds a negative amount", code="supply_mismatch")
            accounts += sign * held[0]
            stake += sign * held[1]
            escrow += sign * held[2]
            unbonding += sign * held[3]
    supply = replace(totals, accounts_utlk=accounts, stake_utlk=stake, escrow_utlk=escrow, unbonding_utlk=unbonding)
    check_supply(supply)
    state.supplies.put("supply", supply)


def check_supply(supply: Supply) -> None:
    issued = supply.genesis_utlk + supply.emitted_utlk - supply.burned_utlk
    held = supply.accounts_utlk + supply.stake_utlk + supply.escrow_utlk + supply.unbonding_utlk
    if issued != held:
        raise Corrupt(
            f"issued {supply.genesis_utlk} + {supply.emitted_utlk} - {supply.burned_utlk} = {issued} utlk, but "
            f"held are {supply.accounts_utlk} in accounts + {supply.stake_utlk} staked + "
            f"{supply.escrow_utlk} in escrow + {supply.unbonding_utlk} unbonding = {held} utlk",
            code="supply_mismatch",
        )


def holdings(record: Record | None) -> tuple[int, int, int, int]:
    """Tokens that a record holds: liquid, staked, in escrow, unbonding; in utlk."""
    match record:
        case Account():
            return record.balance_utlk, 0, 0, 0
        case Organization() | Node():
            return 0, record.stake_utlk, 0, 0
        case Task():
            return 0, 0, record.escrow_utlk, 0
        case ModelRequest():
            return 0, 0, record.price_utlk if record.state == "open" else 0, 0
        case Unbonding():
            return 0, 0, 0, record.amount_utlk
    return 0, 0, 0, 0

"""Who did what, what it earned, and where each token is: tables from the ledger's own records. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from talkoo_api.ledger.v1 import state_pb2

from talkoo_core.amounts import format_tlk

MJ_PER_WH = 3_600_000

COMPUTE_KINDS = ("compute", "restitution")
REQUEST_KINDS = ("request_node", "request_owner")
VALIDATION_KINDS = ("validation", "finder")
CONSENSUS_KINDS = ("proposer_fee",)
EMISSION_KINDS = ("emission",)


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, column names and rows of text; numbers stand right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(slots=True)
class Books:
    """Everything the tables are made of, as read from the ledger at one height."""

    accounts: list[state_pb2.Account]
    organizations: list[state_pb2.Organization]
    nodes: list[state_pb2.Node]
    payments: list[state_pb2.Payment]
    supply: state_pb2.Supply
    earned: dict[str, dict[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.earned = defaultdict(lambda: defaultdict(int))
        for payment in self.payments:
            self.earned[payment.destination][payment.kind] += payment.amount_utlk

    def earned_by(self, address: str, kinds: Iterable[str]) -> int:
        return sum(self.earned[address][kind] for kind in kinds) if address in self.earned else 0


def _tlk(amount_utlk: int) -> str:
    """An amount for a column whose heading names the unit."""
    return format_tlk(amount_utlk).removesuffix(" TLK")


def node_table(books: Books) -> Table:
    rows = []
    for node in sorted(books.nodes, key=lambda n: (-n.speed_flops, n.name)):
        state = f"slashed {format_tlk(node.slashed_utlk)}" if node.slashed_utlk else "honest"
        rows.append(
            (
                node.name,
                node.organization,
                f"{node.speed_flops / 1e9:.2f}",
                str(node.verified_segments),
                f"{node.verified_gflop:,}",
                _tlk(books.earned_by(node.id, COMPUTE_KINDS)),
                _tlk(books.earned_by(node.id, REQUEST_KINDS)),
                _tlk(books.earned_by(node.id, EMISSION_KINDS)),
                f"{node.energy_mj / MJ_PER_WH:.4f}",
                state,
            )
        )
    sources = ", ".join(sorted({node.power_source for node in books.nodes}))
    return Table(
        "Who computed",
        (
            "node",
            "member",
            "GFLOP/s",
            "segments",
            "GFLOP",
            "compute TLK",
            "requests TLK",
            "emission TLK",
            "Wh",
            "standing",
        ),
        tuple(rows),
        note=f"Segments and GFLOP: re-computed or accepted by draw. Energy by source: {sources}.",
    )


def organization_table(books: Books) -> Table:
    rows = []
    for organization in sorted(books.organizations, key=lambda o: o.name):
        rows.append(
            (
                organization.name,
                f"{organization.power:,}",
                _tlk(books.earned_by(organization.validator, VALIDATION_KINDS)),
                _tlk(books.earned_by(organization.owner, CONSENSUS_KINDS)),
                _tlk(
                    books.earned_by(organization.owner, EMISSION_KINDS)
                    + books.earned_by(organization.validator, EMISSION_KINDS)
                ),
            )
        )
    return Table(
        "Who validated and proposed",
        ("member", "voting power", "validation TLK", "block fees TLK", "emission TLK"),
        tuple(rows),
    )


def token_table(books: Books) -> Table:
    """Where each token is. The last two rows must be equal: what is held and what was issued."""
    supply = books.supply
    rows = [
        (account.label or account.address, format_tlk(account.balance_utlk))
        for account in sorted(books.accounts, key=lambda a: (-a.balance_utlk, a.label))
        if account.balance_utlk
    ]
    rows += [(f"stake of {o.name}", format_tlk(o.stake_utlk)) for o in books.organizations if o.stake_utlk]
    rows += [(f"stake of {n.name}", format_tlk(n.stake_utlk)) for n in books.nodes if n.stake_utlk]
    rows += [("in escrow", format_tlk(supply.escrow_utlk)), ("unbonding", format_tlk(supply.unbonding_utlk))]
    rows += [("sum", format_tlk(held_utlk(books))), ("issued", format_tlk(issued_utlk(supply)))]
    equal = "equal to the last unit" if held_utlk(books) == issued_utlk(supply) else "NOT EQUAL"
    return Table(
        "Where each token is",
        ("holder", "amount"),
        tuple(rows),
        note=(
            f"Issued: {format_tlk(supply.genesis_utlk)} at genesis + {format_tlk(supply.emitted_utlk)} emitted "
            f"- {format_tlk(supply.burned_utlk)} burned; held and issued are {equal}."
        ),
    )


def payment_table(books: Books, names: dict[str, str], task_id: str) -> Table:
    """The payments of one task, each with the proof it names."""
    rows = tuple(
        (
            str(p.number),
            str(p.height),
            p.kind,
            names.get(p.source, p.source),
            names.get(p.destination, p.destination),
            format_tlk(p.amount_utlk),
            str(p.segment) if p.kind in (*COMPUTE_KINDS, *VALIDATION_KINDS, "slash") else "",
            p.proof,
        )
        for p in books.payments
        if p.task_id == task_id
    )
    return Table(
        "Payments of the task, each with its proof",
        ("no.", "block", "for", "from", "to", "amount", "segment", "proof"),
        rows,
    )


def held_utlk(books: Books) -> int:
    """Summed from the single records, not from the ledger's own totals (escrow and unbonding excepted)."""
    return (
        sum(a.balance_utlk for a in books.accounts)
        + sum(o.stake_utlk for o in books.organizations)
        + sum(n.stake_utlk for n in books.nodes)
        + books.supply.escrow_utlk
        + books.supply.unbonding_utlk
    )


def issued_utlk(supply: state_pb2.Supply) -> int:
    return supply.genesis_utlk + supply.emitted_utlk - supply.burned_utlk

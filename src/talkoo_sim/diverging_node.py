"""A real ledger node in which one rule is wrong: `python -m talkoo_sim.diverging_node MODULE:HEIGHT --settings FILE`.

    accounts:7        at the end of block 7 one account's nonce is one higher than the rules say
    organizations:7   one member's credit is

What a build with a bug, or a bit that flips in memory, does to one validator among healthy ones.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import talkoo_ledger.application
from talkoo_ledger.context import Context

VICTIM = "north"


@dataclass(frozen=True, slots=True)
class Bug:
    module: str
    height: int

    @classmethod
    def decoded(cls, text: str) -> Bug:
        module, height = text.split(":")
        return cls(module, int(height))

    def strike(self, context: Context) -> None:
        """Change one record of the module by one."""
        if self.module == "accounts":
            account = next(each for each in context.state.accounts.all() if each.label == VICTIM)
            wrong = msgspec.structs.replace(account, nonce=account.nonce + 1)
            context.state.accounts.put(account.address, wrong)
        else:
            organization = context.state.organizations.get(VICTIM)
            assert organization is not None
            wrong_credit = organization.credit_gflop + 1
            context.state.organizations.put(VICTIM, msgspec.structs.replace(organization, credit_gflop=wrong_credit))


def build_in(bug: Bug) -> None:
    """Put the bug behind the rule that ends a block."""
    real: Callable[[Context, int], None] = vars(talkoo_ledger.application)["end_block"]

    def end_block(context: Context, fees_utlk: int) -> None:
        real(context, fees_utlk)
        if context.height == bug.height:
            bug.strike(context)

    vars(talkoo_ledger.application)["end_block"] = end_block


def main() -> None:
    bug, sys.argv = Bug.decoded(sys.argv[1]), [sys.argv[0], *sys.argv[2:]]
    build_in(bug)
    runpy.run_module("talkoo_ledger", run_name="__main__")


if __name__ == "__main__":
    main()

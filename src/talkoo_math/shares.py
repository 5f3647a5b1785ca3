"""Split a global batch over ranks in proportion to measured speed, in whole samples."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from talkoo_core.errors import InvalidInput


def split_batch(global_batch: int, speeds: Sequence[int]) -> tuple[int, ...]:
    """Samples per rank: proportional to `speeds` (any positive integer unit), each ≥ 1, summing to `global_batch`.

    Largest remainder (Hamilton) over the samples left after each rank has one; ties go to the lower rank, so every
    party computes the same split. Raises `InvalidInput` (code `batch_too_small`, `bad_speed`).
    """
    if not speeds or min(speeds) <= 0:
        raise InvalidInput("every rank needs a measured speed above zero; measure again", code="bad_speed")
    spare = global_batch - len(speeds)
    if spare < 0:
        raise InvalidInput(
            f"a global batch of {global_batch} cannot give each of {len(speeds)} ranks a sample; "
            "raise the batch or use fewer nodes",
            code="batch_too_small",
        )
    total = sum(speeds)
    # The target counts the first sample of each rank: a rank is topped up only to what is missing from its part.
    targets = [max(Fraction(0), Fraction(global_batch * speed, total) - 1) for speed in speeds]
    scale = Fraction(spare) / sum(targets) if sum(targets) else Fraction(0)
    exact = [target * scale for target in targets]
    whole = [int(part) for part in exact]
    order = sorted(range(len(speeds)), key=lambda rank: (whole[rank] - exact[rank], rank))
    for rank in order[: spare - sum(whole)]:
        whole[rank] += 1
    return tuple(1 + part for part in whole)

"""What must be exact: fixed point, digests, shares, data order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from talkoo_core.errors import InvalidInput
from talkoo_math.batches import sample_indices
from talkoo_math.digest import float32_bits, float32_of_bits, indices_digest, tensors_digest
from talkoo_math.fixedpoint import NotQuantizable, dequantize, quantize, sum_contributions
from talkoo_math.shares import split_batch

BEACON = bytes(range(32))
ORDER_VECTOR = [[83, 870, 6, 96, 800], [1389, 234, 968]]
INDICES_VECTOR = "fdc3fb40a58f786f"
TENSOR_VECTOR = "e8ef1819925e3bcc"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1000, 1000, width=32), min_size=3, max_size=3), min_size=2, max_size=6), st.randoms()
)
def test_a_sum_has_the_same_bits_in_every_order(rows: list[list[float]], random: object) -> None:
    parts = [{"w": quantize(torch.tensor(row), 1, len(rows))} for row in rows]
    forward = sum_contributions(parts)
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert tensors_digest(sum_contributions(parts)) == tensors_digest(forward)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30000, 30000, width=32), min_size=1, max_size=20))
def test_fixed_point_loses_at_most_half_a_step(values: list[float]) -> None:
    exact = torch.tensor(values, dtype=torch.float32).double()
    assert float((dequantize(quantize(exact), torch.float64) - exact).abs().max()) <= 2.0**-33


def test_unequal_shares_sum_to_the_gradient_of_the_global_mean() -> None:
    samples = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    parts = [{"w": quantize(samples[:5].mean(0), 5, 8)}, {"w": quantize(samples[5:].mean(0), 3, 8)}]
    torch.testing.assert_close(dequantize(sum_contributions(parts)["w"]), samples.mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("value", "code"),
    [(float("nan"), "gradient_nan"), (float("inf"), "gradient_nan"), (40000.0, "gradient_overflow")],
)
def test_what_fixed_point_cannot_carry_is_refused(value: float, code: str) -> None:
    with pytest.raises(NotQuantizable) as refused:
        quantize(torch.tensor([1.0, value]))
    assert refused.value.code == code


def test_quantizing_does_not_depend_on_strides() -> None:
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(quantize(matrix.t()), quantize(matrix.t().contiguous()))
    assert tensors_digest({"a": matrix.t()}) == tensors_digest({"a": matrix.t().contiguous()})


def test_a_digest_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": -torch.ones(1)},
        {"a": torch.zeros(2, 3)},
    ]
    digests = {tensors_digest(other) for other in others} | {tensors_digest(base)}
    assert len(digests) == len(others) + 1
    assert tensors_digest(dict(reversed(base.items()))) == tensors_digest(base)
    assert len(tensors_digest({"h": torch.ones(2, dtype=torch.bfloat16), "e": torch.zeros(0)})) == 32


def test_digests_are_the_same_in_every_release() -> None:
    """Vectors: a change here breaks every commitment ever made."""
    order = sample_indices(BEACON, 3, 5, 1438, (5, 3))
    assert [part.tolist() for part in order] == ORDER_VECTOR
    assert indices_digest(order[0]).hex()[:16] == INDICES_VECTOR
    assert tensors_digest({"w": torch.arange(6, dtype=torch.float32).reshape(2, 3)}).hex()[:16] == TENSOR_VECTOR
    assert float32_bits(0.1).hex() == "cdcccc3d"
    assert float32_of_bits(float32_bits(0.5)) == 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 2**40))
def test_a_pass_over_the_data_uses_each_sample_once(size: int, shares: list[int], segment: int) -> None:
    steps = -(-size // sum(shares))
    order = np.concatenate([np.concatenate(sample_indices(BEACON, segment, s, size, shares)) for s in range(steps)])
    assert sorted(order[:size].tolist()) == list(range(size))
    assert all(
        len(part) == share for part, share in zip(sample_indices(BEACON, 0, 0, size, shares), shares, strict=True)
    )


def test_the_data_order_changes_with_beacon_and_segment() -> None:
    orders = {
        tuple(sample_indices(beacon, segment, 0, 1000, (16,))[0].tolist())
        for beacon in (BEACON, bytes(32))
        for segment in (0, 1)
    }
    assert len(orders) == 4


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4096), st.lists(st.integers(1, 10**12), min_size=1, max_size=8))
def test_shares_sum_up_and_leave_nobody_out(batch: int, speeds: list[int]) -> None:
    if batch < len(speeds):
        with pytest.raises(InvalidInput):
            split_batch(batch, speeds)
        return
    shares = split_batch(batch, speeds)
    assert sum(shares) == batch
    assert min(shares) >= 1
    faster = sorted(range(len(speeds)), key=lambda rank: speeds[rank])
    assert all(shares[low] <= shares[high] + 1 for low, high in itertools.pairwise(faster))


def test_shares_follow_speed() -> None:
    assert split_batch(256, [400, 200, 200]) == (128, 64, 64)
    assert split_batch(100, [98, 1, 1]) == (98, 1, 1)
    with pytest.raises(InvalidInput, match="measure again"):
        split_batch(10, [5, 0])

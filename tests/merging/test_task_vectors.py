"""Methods that drop single elements: which ones, exactly, and what is made of the rest, against whole-tensor references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from frbio_lite.merging.blocks import Block, blocks_of
from frbio_lite.merging.methods import METHODS, Parameters, dare
from frbio_lite.merging.methods.breadcrumbs import Middle
from frbio_lite.merging.methods.dare import Random
from frbio_lite.merging.methods.della import ByRank
from frbio_lite.merging.methods.task_vectors import VANISHING, Sparsity, TaskVectors
from frbio_lite.merging.methods.ties import Largest
from tests.merging.in_memory import merge, merge_by, poison, settings

SHAPES = [(1,), (63,), (129,), (129, 1), (7, 33), (3, 129), (2, 3, 65)]
DENSITIES = (0.003, 0.1, 0.5, 0.77, 0.999)


def random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator) * 0.01


def grid(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Few distinct values, many of them zero: every threshold falls on equal magnitudes, and fp32 sums are exact."""
    return torch.randint(-3, 4, tuple(shape), generator=generator) / 64.0


def zero(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.zeros(*shape)


def constant(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.full(tuple(shape), 0.3) * (torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1)


def close(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Magnitudes that differ in their lowest bits only: one upper half for all."""
    bits = torch.tensor(1.0).view(torch.int32) + torch.randint(0, 50, tuple(shape), generator=generator)
    return bits.to(torch.int32).view(torch.float32)


DIFFERENCES = (random, grid, zero, constant, close)


def mask_of(sparsity: Sparsity, difference: Tensor, block: int = 64) -> Tensor:
    """Surveyed in order of the blocks and asked for in another; bool, in the tensor's shape."""
    flat, kept = difference.reshape(-1), torch.full((difference.numel(),), math.nan)
    with settings(block, 1):
        blocks = blocks_of("weight", tuple(difference.shape))
        part = lambda b: flat[b.start : b.start + b.count].numpy().copy()  # noqa: E731
        for number in range(sparsity.surveys):
            sparsity.settle(number, [sparsity.survey(number, b, part(b)) for b in blocks])
        for b in reversed(blocks):
            poison(b.count)
            given, kept_part = part(b), kept[b.start : b.start + b.count]
            keep = sparsity.keep(b, given)
            kept_part.copy_(torch.ones(b.count) if keep is None else torch.from_numpy(keep))
            assert np.array_equal(given, part(b))
    assert ((kept == 0.0) | (kept == 1.0)).all()
    return kept.bool().reshape(difference.shape)


def positions(difference: Tensor, order: np.ndarray[Any, Any]) -> Tensor:
    mask = torch.zeros(difference.numel(), dtype=torch.bool)
    mask[torch.from_numpy(order.copy())] = True
    return mask.reshape(difference.shape)


def largest(difference: Tensor, density: float) -> Tensor:
    count = max(1, int(density * difference.numel()))
    return positions(difference, np.argsort(-difference.abs().numpy().ravel(), kind="stable")[:count])


def middle(difference: Tensor, density: float, gamma: float) -> Tensor:
    total = difference.numel()
    count = int(density * total)
    first = max(0, total - count - int(gamma * total))
    return positions(difference, np.argsort(difference.abs().numpy().ravel(), kind="stable")[first : first + count])


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("make", DIFFERENCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ties_keeps_exactly_the_largest(shape: tuple[int, ...], make: Callable[..., Tensor], density: float) -> None:
    difference = make(shape, torch.Generator().manual_seed(sum(shape)))
    mask = mask_of(Largest(density), difference)
    assert mask.sum() == max(1, int(density * difference.numel()))
    assert mask.equal(largest(difference, density))


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.2, 0.9])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("make", DIFFERENCES)
@pytest.mark.parametrize("shape", [(1,), (63,), (7, 33), (2, 3, 65)])
def test_breadcrumbs_keeps_exactly_the_middle(
    shape: tuple[int, ...], make: Callable[..., Tensor], density: float, gamma: float
) -> None:
    difference = make(shape, torch.Generator().manual_seed(sum(shape)))
    mask = mask_of(Middle(density, gamma), difference)
    assert mask.sum() == int(density * difference.numel())
    assert mask.equal(middle(difference, density, gamma))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_magnitudes_are_compared_in_the_precision_asked_for(precision: torch.dtype) -> None:
    difference = random((400, 650), torch.Generator().manual_seed(4))
    coarse = difference.to(precision).float()
    assert not largest(coarse, 0.3).equal(largest(difference, 0.3))
    name = {torch.bfloat16: "BF16", torch.float16: "F16"}[precision]
    assert mask_of(Largest(0.3, name), difference, block=4096).equal(largest(coarse, 0.3))
    assert mask_of(Middle(0.3, 0.1, name), difference, block=4096).equal(middle(coarse, 0.3, 0.1))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=300),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(1, 100),
)
def test_a_higher_density_keeps_what_a_lower_one_keeps(
    values: list[float], one: float, other: float, block: int
) -> None:
    difference = torch.tensor(values).reshape(-1, 1)
    low, high = sorted((one, other))
    few, many = (mask_of(Largest(d), difference, block) for d in (low, high))
    assert (few <= many).all()
    kept, dropped = difference.abs()[many], difference.abs()[~many]
    assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()


@pytest.mark.parametrize(
    "make", [Largest, lambda d: Middle(d, 0.1), lambda d: Random(d, 1, "n", 0), lambda d: ByRank(d, 0.2, 1, "n", 0)]
)
def test_all_at_density_1_and_none_at_0(make: Callable[[float], Sparsity]) -> None:
    difference = random((7, 33), torch.Generator().manual_seed(4))
    assert mask_of(make(1.0), difference).all() and mask_of(make(1.5), difference).all()
    assert not mask_of(make(0.0), difference).any() and not mask_of(make(-0.5), difference).any()


def deviations(kept: int, expected: float, variance: float) -> float:
    return abs(kept - expected) / math.sqrt(variance)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_dare_keeps_its_share_at_random(density: float) -> None:
    difference = random((300, 333), torch.Generator().manual_seed(4))
    mask = mask_of(Random(density, 5, "weight", 0), difference, block=4096)
    total = difference.numel()
    assert deviations(int(mask.sum()), density * total, density * (1 - density) * total) < 4.5
    both = int((mask.view(-1)[1:] & mask.view(-1)[:-1]).sum())  # neighbours are independent
    assert deviations(both, density**2 * total, 3 * density**2 * (1 - density**2) * total) < 4.5


def test_random_numbers_depend_on_seed_name_model_and_block_alone() -> None:
    block = Block("weight", 3, 3 * 4096, 4096, 64)
    drawn = dare.uniform(5, "weight", 0, block).copy()
    assert drawn.min() >= 0.0 and drawn.max() < 1.0 and len(np.unique(drawn)) > 4000
    dare.uniform(6, "other", 1, block)
    assert np.array_equal(dare.uniform(5, "weight", 0, block), drawn)
    others = [(6, "weight", 0, 3), (5, "weights", 0, 3), (5, "weight", 1, 3), (5, "weight", 0, 4)]
    for seed, name, model, index in others:
        found = dare.uniform(seed, name, model, Block("weight", index, 0, 4096, 64))
        assert np.corrcoef(found, drawn)[0, 1] < 0.08


def probabilities(difference: Tensor, density: float, epsilon: float) -> Tensor:
    """fp64, by a loop over rows."""
    rows = difference.reshape(1, -1) if difference.dim() == 1 else difference.reshape(-1, difference.shape[-1])
    found = torch.full(rows.shape, density, dtype=torch.float64)
    for r, row in enumerate(rows):
        for rank, place in enumerate(np.argsort(row.abs().numpy(), kind="stable")):
            if len(row) > 1:
                found[r, place] = density - epsilon + 2 * epsilon * rank / (len(row) - 1)
    return found.reshape(difference.shape)


@pytest.mark.parametrize("make", DIFFERENCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_della_keeps_by_the_rank_in_the_row(
    shape: tuple[int, ...], make: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against given random numbers, which also shows that each block holds whole rows."""
    generator = torch.Generator().manual_seed(sum(shape))
    difference, drawn = make(shape, generator), torch.rand(math.prod(shape), generator=generator)
    expected = probabilities(difference, 0.4, 0.3)
    drawn[(expected.reshape(-1) - drawn).abs() < 1e-5] += 1e-4  # no draw so close that fp32 could decide otherwise
    monkeypatch.setattr(dare, "uniform", lambda seed, name, model, b: drawn[b.start : b.start + b.count].numpy().copy())
    mask = mask_of(ByRank(0.4, 0.3, 5, "weight", 0), difference)
    assert mask.equal(drawn.reshape(shape).double() < expected)


def test_della_keeps_large_ones_more_often_and_its_share_of_all() -> None:
    difference = random((1000, 101), torch.Generator().manual_seed(4))
    mask = mask_of(ByRank(0.4, 0.3, 5, "weight", 0), difference, block=4096)
    chance = probabilities(difference, 0.4, 0.3)
    assert deviations(int(mask.sum()), chance.sum().item(), (chance * (1 - chance)).sum().item()) < 4.5
    for low, high in ((0.1, 0.2), (0.3, 0.5), (0.6, 0.701)):
        chosen = (chance >= low) & (chance < high)
        part = chance[chosen]
        assert deviations(int(mask[chosen].sum()), part.sum().item(), (part * (1 - part)).sum().item()) < 4.5


def reference(
    tensors: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Sequence[float],
    factor: float,
    *,
    consensus: bool,
    normalize: bool,
    rescale: bool,
) -> Tensor:
    """The merge on whole tensors in fp64, written from the papers' equations."""
    base = tensors[0].double()
    terms = []
    for tensor, mask, weight in zip(tensors[1:], masks, weights, strict=True):
        difference = tensor.double() - base
        masked = torch.where(mask, difference, 0.0)
        before, after = difference.abs().sum(), masked.abs().sum()
        if rescale and before >= VANISHING and after >= VANISHING:
            masked = masked * before / after
        terms.append(weight * masked)
    stacked, shares = torch.stack(terms), torch.tensor(weights, dtype=torch.float64)
    shares = shares.reshape(-1, *[1] * base.dim()).expand_as(stacked)
    part = torch.ones_like(stacked, dtype=torch.bool)
    if consensus:
        elected = torch.where(stacked.sum(dim=0) >= 0.0, 1.0, -1.0)
        part = stacked.sign() == elected
    mix = torch.where(part, stacked, 0.0).sum(dim=0)
    if normalize:
        divisor = torch.where(part, shares, 0.0).sum(dim=0)
        mix = mix / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return base + factor * mix


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("consensus", [False, True])
@pytest.mark.parametrize("weights", [[1.0], [0.5], [0.5, 0.5], [0.25, -0.5, 0.125], [1.0, 0.0, 2.0], [1.0, -1.0]])
@pytest.mark.parametrize("make", [random, grid])
def test_merges_agree_with_fp64(
    make: Callable[..., Tensor], weights: list[float], consensus: bool, normalize: bool, rescale: bool
) -> None:
    generator = torch.Generator().manual_seed(len(weights))
    base = grid((7, 33), generator)
    differences = [make((7, 33), generator) for _ in weights]
    tensors = [base, *(base + d for d in differences)]
    switches = {"consensus": consensus, "normalize": normalize, "rescale": rescale and make is random}
    rule = TaskVectors(
        weights, [Largest(0.6), Middle(0.5, 0.1), Random(0.7, 5, "w", 2)][: len(weights)], scale=0.8, **switches
    )
    merged = merge_by(rule, tensors, 0.9)
    masks = [mask_of(s, t - base) for s, t in zip(rule.sparsity, tensors[1:], strict=True)]
    expected = reference(tensors, masks, weights, 0.72, **switches)
    torch.testing.assert_close(merged.double(), expected, rtol=0.0, atol=2e-7 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("ratio", [0.3, 1.0])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear", "dare_ties", "della"])
def test_methods_as_they_are_registered(method: str, models: int, ratio: float) -> None:
    generator = torch.Generator().manual_seed(models)
    parameters = Parameters(density=0.6, gamma=0.05, epsilon=0.2, seed=11)
    tensors = [random((9, 41), generator) for _ in range(models + 1)]
    own: dict[str, Callable[[int], Sparsity]] = {
        "ties": lambda i: Largest(0.6),
        "breadcrumbs": lambda i: Middle(0.6, 0.05),
        "dare_linear": lambda i: Random(0.6, 11, "weight", i),
        "dare_ties": lambda i: Random(0.6, 11, "weight", i),
        "della": lambda i: ByRank(0.6, 0.2, 11, "weight", i),
    }
    masks = [mask_of(own[method](i), t - tensors[0]) for i, t in enumerate(tensors[1:])]
    elects, rescales = method in ("ties", "dare_ties", "della"), method in ("dare_linear", "dare_ties", "della")
    expected = reference(
        tensors, masks, [1.0 / models] * models, ratio, consensus=elects, normalize=elects, rescale=rescales
    )
    merged = merge(method, tensors, ratio, parameters)
    torch.testing.assert_close(merged.double(), expected, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear", "dare_ties", "della"])
def test_density_1_is_task_arithmetic_and_the_seed_is_read_by_random_methods_alone(method: str) -> None:
    generator = torch.Generator().manual_seed(8)
    tensors = [random((9, 41), generator) for _ in range(2)]
    whole = merge(method, tensors, 0.3, Parameters(density=1.0))
    torch.testing.assert_close(whole, merge("task_arithmetic", tensors, 0.3), rtol=0.0, atol=5e-9)
    first, second = (merge(method, tensors, 0.3, Parameters(seed=seed)) for seed in (1, 2))
    assert first.equal(second) == (method in ("ties", "breadcrumbs"))
    assert first.equal(merge(method, tensors, 0.3, Parameters(seed=1), threads=1))


def test_rescaling_restores_the_sum_of_magnitudes_of_the_whole_tensor() -> None:
    generator = torch.Generator().manual_seed(8)
    base, adapted = torch.zeros(50, 33), random((50, 33), generator)
    rule = TaskVectors([1.0], [Random(0.3, 5, "weight", 0)], consensus=False, normalize=False, rescale=True)
    merged = merge_by(rule, [base, adapted])
    assert merged.double().abs().sum().item() == pytest.approx(adapted.double().abs().sum().item(), rel=1e-6)
    tiny = adapted * 1e-9  # below the bound: left as it is
    unscaled = merge_by(rule, [base, tiny])
    kept = unscaled != 0.0
    assert 0 < kept.sum() < kept.numel() and unscaled[kept].equal(tiny[kept])


def test_equal_votes_count_as_positive_and_the_minority_is_left_out() -> None:
    base = torch.zeros(4)
    tensors = [base, torch.tensor([1.0, 1.0, -4.0, 0.0]), torch.tensor([-1.0, 2.0, 1.0, -3.0])]
    everything = [Largest(1.0), Largest(1.0)]
    rule = TaskVectors([1.0, 1.0], everything, consensus=True, normalize=True, rescale=False)
    assert merge_by(rule, tensors).tolist() == [1.0, 1.5, -4.0, -3.0]
    rule = TaskVectors([1.0, 1.0], everything, consensus=True, normalize=False, rescale=False)
    assert merge_by(rule, tensors).tolist() == [1.0, 3.0, -4.0, -3.0]
    rule = TaskVectors([1.0, 3.0], everything, consensus=True, normalize=True, rescale=False)
    assert merge_by(rule, tensors).tolist() == [-1.0, 1.75, -4.0, -3.0]


def test_an_empty_tensor_and_one_element() -> None:
    for method in ("ties", "breadcrumbs", "dare_linear", "dare_ties", "della"):
        assert METHODS[method].ends_adapted is False
        empty = merge(method, [torch.zeros(0, 4), torch.zeros(0, 4)], 0.5)
        assert empty.shape == (0, 4)
    merged = merge("ties", [torch.tensor([1.0]), torch.tensor([3.0])], 0.5)
    assert merged.tolist() == [2.0]  # at least one element is kept

"""The methods whose weights follow from inner products, and what all methods promise, against fp64 on whole tensors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from frbio_lite.errors import RequestError
from frbio_lite.merging.gram import Gram, inner_products
from frbio_lite.merging.methods import METHODS, Parameters, check_method, karcher, linear, model_stock, nuslerp, slerp
from frbio_lite.merging.methods.rule import weighted_sum
from frbio_lite.merging.methods.task_arithmetic import coefficients as task_arithmetic
from tests.merging.in_memory import merge

RATIOS = (0.1, 1 / 3, 0.5, 0.9, 1.0)
SHAPES = [(1,), (63,), (129, 1), (3, 129), (5, 7, 33)]
KINDS = {  # angle to the base in degrees, and length beside the base's
    "random": (90.0, 1.3),
    "adapted": (0.6, 1.0001),
    "one degree": (1.0, 1.0),
    "just linear in slerp": (math.degrees(math.acos(slerp.PARALLEL)) * 0.99, 1.0),
    "just spherical in slerp": (math.degrees(math.acos(slerp.PARALLEL)) * 1.01, 1.0),
    "wide": (150.0, 0.7),
    "nearly opposite": (178.0, 1.0),
}


def at_angle(base: Tensor, degrees: float, length: float, generator: torch.Generator) -> Tensor:
    """A tensor at this angle to `base`, fp32, `length` times as long."""
    b = base.double()
    other = torch.randn(b.shape, generator=generator, dtype=torch.float64)
    other -= (other * b).sum() / (b * b).sum() * b
    angle = math.radians(degrees)
    return (length * (math.cos(angle) * b + math.sin(angle) * other * (b.norm() / other.norm()))).float()


def make(kind: str, shape: tuple[int, ...] = (5, 7, 33), models: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(ord, kind)) + sum(shape))
    base = torch.randn(shape, generator=generator)
    return [base, *(at_angle(base, *KINDS[kind], generator) for _ in range(models))]


def angle_between(x: Tensor, y: Tensor) -> float:
    x, y = x / x.norm(), y / y.norm()
    return 2.0 * math.atan2((x - y).norm().item(), (x + y).norm().item())


def on_arc(x: Tensor, y: Tensor, t: float) -> Tensor:
    """Spherical interpolation of fp64 tensors as they are."""
    angle = angle_between(x, y)
    return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)


def assert_close(merged: Tensor, expected: Tensor, kind: str = "random") -> None:
    """Within fp32's rounding of the terms; opposite tensors are known to no better than their inner products."""
    assert merged.dtype == torch.float32 and expected.dtype == torch.float64
    allowed = (1e-4 if kind == "nearly opposite" else 2e-6) * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(merged.double(), expected, rtol=0.0, atol=allowed)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_tensors_against_fp64(kind: str, ratio: float) -> None:
    tensors = make(kind)
    base, adapted = (t.double() for t in tensors)
    straight, arc = (1 - ratio) * base + ratio * adapted, on_arc(base, adapted, ratio)
    spherical = kind not in ("adapted", "one degree", "just linear in slerp")
    length = (1 - ratio) * base.norm() + ratio * adapted.norm()
    units = on_arc(base / base.norm(), adapted / adapted.norm(), ratio)
    for method, expected in {
        "linear": straight,
        "lora_scale": straight,
        "task_arithmetic": straight,
        "slerp": arc if spherical else straight,
        "nuslerp": arc,
        "karcher": length * units,  # of two tensors, the point on their arc
    }.items():
        assert_close(merge(method, tensors, ratio), expected, kind)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_odd_shapes(method: str, shape: tuple[int, ...]) -> None:
    tensors = make("random", shape)
    assert_close(merge(method, tensors, 0.3), on_arc(*(t.double() for t in tensors), 0.3))


def test_branches_differ_by_more_than_the_tolerance() -> None:
    """Else the test above would pass with the wrong branch."""
    for kind in ("just linear in slerp", "just spherical in slerp", "wide"):
        base, adapted = (t.double() for t in make(kind))
        assert (on_arc(base, adapted, 0.3) - (0.7 * base + 0.3 * adapted)).abs().max() > 1e-4


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_several_models_have_equal_shares(method: str, ratio: float) -> None:
    tensors = make("one degree", models=3)
    base, *adapted = (t.double() for t in tensors)
    assert_close(merge(method, tensors, ratio), (1 - ratio) * base + ratio * sum(adapted) / 3)


def test_weights_and_their_normalisation() -> None:
    assert linear.coefficients([1.0, 3.0]) == [0.25, 0.75]
    assert linear.coefficients([1.0, 3.0], normalize=False) == [1.0, 3.0]
    assert task_arithmetic([1.0, 3.0], scale=0.5) == [-1.0, 0.5, 1.5]
    assert task_arithmetic([1.0, 3.0], scale=0.5, normalize=True) == [0.5, 0.125, 0.375]
    assert task_arithmetic([1.0, -1.0], normalize=True) == [1.0, 1.0, -1.0]  # a sum of 0 is not divided by


@pytest.mark.parametrize("ratio", RATIOS)
def test_nuslerp_of_two_models_meets_their_task_vectors_halfway(ratio: float) -> None:
    base, first = make("one degree")
    second = base + at_angle(first - base, 70.0, 1.6, torch.Generator().manual_seed(3))
    b, x, y = base.double(), first.double(), second.double()
    assert_close(merge("nuslerp", [base, first, second], ratio), b + ratio * on_arc(x - b, y - b, 0.5))


def test_nuslerp_without_a_direction_or_an_arc() -> None:
    base, adapted = make("adapted")
    half = math.sqrt(0.5)
    assert nuslerp.arc(math.nan, 0.5) == pytest.approx((half, half))  # a zero tensor counts as at right angles
    assert_close(merge("nuslerp", [torch.zeros_like(base), adapted], 0.25), math.sin(math.pi / 8) * adapted.double())
    assert_close(merge("nuslerp", [base, base.clone()], 0.4), base.double())
    for factor in (-1.0, -1.7, -0.3):  # opposite: any arc is as short, none is taken
        assert_close(merge("nuslerp", [base, factor * base], 0.5), (0.5 + 0.5 * factor) * base.double())
    assert_close(merge("nuslerp", [base, adapted, base.clone()], 1.0), (base + half * (adapted - base)).double())


def test_nuslerp_of_task_vectors_weighs_them() -> None:
    base, first, second = make("wide", models=2)
    gram = Gram(inner_products([t.reshape(-1).numpy() for t in (base, first, second)]))
    b, x, y = (t.double() for t in (base, first, second))
    merged = sum(w * t for w, t in zip(nuslerp.of_task_vectors(gram, 0.2, scale=0.7), (b, x, y), strict=True))
    torch.testing.assert_close(merged, b + 0.7 * on_arc(x - b, y - b, 0.2), rtol=0.0, atol=4e-6)


@pytest.mark.parametrize("kind", ["adapted", "random", "wide"])
@pytest.mark.parametrize("weights", [(0.25, 0.25, 0.25, 0.25), (0.1, 0.5, 0.15, 0.25), (0.0, 0.6, 0.4, 0.0)])
def test_karcher_mean_is_where_the_weighted_arcs_balance(kind: str, weights: tuple[float, ...]) -> None:
    """The gradient of the sum of squared arcs is zero there; its length is the weighted mean of lengths."""
    tensors = make(kind, models=3)
    gram = Gram(inner_products([t.reshape(-1).numpy() for t in tensors]))
    exact = [t.double().reshape(-1) for t in tensors]
    mean = sum(c * t for c, t in zip(karcher.coefficients(gram, weights), exact, strict=True))
    length = sum(w * t.norm() for w, t in zip(weights, exact, strict=True))
    torch.testing.assert_close(mean.norm(), length, rtol=1e-5, atol=0.0)
    direction = mean / mean.norm()
    gradient = torch.zeros_like(mean)
    for weight, tensor in zip(weights, exact, strict=True):
        across = tensor / tensor.norm() - (tensor / tensor.norm()) @ direction * direction
        gradient += weight * angle_between(tensor, direction) * across / across.norm()
    assert gradient.norm() < 3e-6 * max(1.0, math.radians(KINDS[kind][0]))


def test_karcher_iterates_as_often_as_allowed() -> None:
    tensors = [t.reshape(-1) for t in make("wide", models=3)]
    gram = Gram(inner_products([t.numpy() for t in tensors]))
    plain = sum(w * t.double() / t.double().norm() for w, t in zip((0.1, 0.2, 0.3, 0.4), tensors, strict=True))
    length = sum(w * t.double().norm() for w, t in zip((0.1, 0.2, 0.3, 0.4), tensors, strict=True))
    found = {}
    for max_iter in (0, 1, 100):
        weights = karcher.coefficients(gram, (0.1, 0.2, 0.3, 0.4), max_iter=max_iter)
        found[max_iter] = sum(c * t.double() for c, t in zip(weights, tensors, strict=True))
    torch.testing.assert_close(found[0], length * plain / plain.norm(), rtol=0.0, atol=1e-5)
    off = [angle_between(found[i], found[100]) for i in (0, 1)]
    assert off[0] > 2 * off[1] > 1e-6
    loose = karcher.coefficients(gram, (0.1, 0.2, 0.3, 0.4), tol=10.0)
    assert loose == karcher.coefficients(gram, (0.1, 0.2, 0.3, 0.4), max_iter=0, tol=10.0)


def test_karcher_leaves_zero_tensors_out() -> None:
    base, first, second = make("random", models=2)
    zero = torch.zeros_like(base)
    assert_close(merge("karcher", [zero, first], 0.3), 0.3 * first.double())
    assert_close(merge("karcher", [base, zero], 0.3), 0.7 * base.double())
    assert_close(merge("karcher", [zero, zero.clone()], 0.3), zero.double())
    x, y = first.double(), second.double()
    expected = 0.25 * (x.norm() + y.norm()) * on_arc(x / x.norm(), y / y.norm(), 0.5)
    assert_close(merge("karcher", [zero, first, second], 0.5), expected)


def test_karcher_of_opposite_tensors_keeps_the_length() -> None:
    """Nothing lies between them: the mean is one of the two, not a vector of noise."""
    base, _ = make("random")
    for factor, ratio in itertools.product((-1.0, -1.7, -0.3), (0.3, 0.5, 0.8)):
        merged = merge("karcher", [base, factor * base], ratio).double()
        direction = (merged * base.double()).sum() / merged.norm() / base.double().norm()
        assert abs(direction.item()) == pytest.approx(1.0, abs=1e-5)
        assert merged.norm().item() == pytest.approx((1 - ratio - ratio * factor) * base.norm().item(), rel=1e-4)


@pytest.mark.parametrize("models", [2, 3, 5])
@pytest.mark.parametrize("ratio", RATIOS)
def test_model_stock_against_fp64(models: int, ratio: float) -> None:
    base, shared = make("one degree")
    generator = torch.Generator().manual_seed(models)
    noise = [torch.randn(base.shape, generator=generator) for _ in range(models)]
    tensors = [base, *(base + (shared - base) + 0.02 * n for n in noise)]
    b, *adapted = (t.double() for t in tensors)
    pairs = list(itertools.combinations([a - b for a in adapted], 2))
    cosine = sum((x * y).sum() / x.norm() / y.norm() for x, y in pairs) / len(pairs)
    t = models * cosine / (1 + (models - 1) * cosine)
    assert 0.2 < t < 0.95
    assert_close(merge("model_stock", tensors, ratio), b + ratio * t * (sum(adapted) / models - b))


def test_model_stock_at_its_limits() -> None:
    base, adapted = make("adapted")
    same = merge("model_stock", [base, adapted, adapted.clone()], 1.0)
    assert_close(same, adapted.double())  # no doubt about models that agree
    opposed = [base, base + (adapted - base), base - (adapted - base)]
    gram = Gram(inner_products([t.reshape(-1).numpy() for t in (torch.zeros_like(base), adapted, -adapted)]))
    assert model_stock.coefficients(gram) == [1.0, 0.0, 0.0]  # the denominator is zero
    unchanged = Gram(inner_products([t.reshape(-1).numpy() for t in (base, adapted, base.clone())]))
    assert model_stock.coefficients(unchanged) == [1.0, 0.0, 0.0]
    assert torch.isfinite(merge("model_stock", opposed, 1.0)).all()


def test_a_weighted_sum_of_nothing_is_zero() -> None:
    tensors = [torch.randn(9).numpy(), torch.randn(9).numpy()]
    assert not weighted_sum(tensors, [0.0, 0.0]).any()


# What all methods promise.

EVERY = sorted(METHODS)


def models_of(method: str) -> int:
    return max(1, METHODS[method].least)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ratio_0_is_the_base_and_1_the_model_to_the_bit(
    method: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(1 + models_of(method))]
    if tensors[0].numel() > 2:
        tensors[0].view(-1)[0] = tensors[1].view(-1)[1] = -0.0  # arithmetic would lose these signs
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    ends = {0.0: tensors[0]} | ({1.0: tensors[1]} if METHODS[method].ends_adapted else {})
    for ratio, expected in ends.items():
        merged = merge(method, tensors, ratio).to(dtype)
        assert merged.shape == expected.shape and merged.view(bits).equal(expected.view(bits))


@pytest.mark.parametrize("method", EVERY)
def test_neither_threads_nor_their_order_change_a_bit(method: str) -> None:
    tensors = make("one degree", (50, 33), models=models_of(method))
    merged = [merge(method, tensors, 0.4, threads=threads) for threads in (1, 2, 5)]
    assert merged[0].equal(merged[1]) and merged[0].equal(merged[2])
    assert not merged[0].equal(tensors[0])


@pytest.mark.parametrize("method", EVERY)
def test_the_merge_moves_further_from_the_base_with_the_ratio(method: str) -> None:
    tensors = make("one degree", (50, 33), models=models_of(method))
    moved = [(merge(method, tensors, r).double() - tensors[0]).norm().item() for r in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert moved[0] == 0.0 and moved == sorted(moved) and len(set(moved)) == 5


@pytest.mark.parametrize("method", EVERY)
def test_a_model_equal_to_its_base_gives_the_base(method: str) -> None:
    base, _ = make("random")
    merged = merge(method, [base, *[base.clone()] * models_of(method)], 0.7)
    torch.testing.assert_close(merged, base, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "models", "expected"),
    [
        ("nope", 1, "choose from"),
        ("slurp", 1, "did you mean 'slerp'"),
        ("slerp", 2, "slerp merges 1 adapted model into the base, not 2"),
        ("nuslerp", 3, "nuslerp merges 1 or 2 adapted models into the base, not 3"),
        ("model_stock", 1, "model_stock merges 2 or more adapted models into the base, not 1"),
        ("linear", 0, "linear merges 1 or more adapted models into the base, not 0"),
    ],
)
def test_methods_that_do_not_fit_are_refused(method: str, models: int, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        check_method(method, models)


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0.0},
        {"density": 1.01},
        {"density": math.nan},
        {"gamma": 1.0},
        {"gamma": -0.1},
        {"epsilon": -0.1},
        {"epsilon": math.inf},
        {"seed": -1},
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Parameters(**wrong)  # type: ignore[arg-type]


def test_della_refuses_probabilities_outside_0_and_1() -> None:
    base, adapted = make("adapted")
    for density, epsilon in ((0.1, 0.1), (0.9, 0.1), (0.5, 0.6)):
        with pytest.raises(RequestError, match="choose a smaller epsilon"):
            merge("della", [base, adapted], 0.5, Parameters(density=density, epsilon=epsilon))
    assert torch.isfinite(merge("della", [base, adapted], 0.5, Parameters(density=1.0, epsilon=0.5))).all()

"""Merging methods against fp64 references, at every geometry that takes another branch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frbio_lite.merge.methods import BLOCK, METHODS, PARALLEL, compare, linear, slerp

RATIOS = (0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0)


def reference_slerp(base: np.ndarray, adapted: np.ndarray, ratio: float) -> np.ndarray:
    norms = np.linalg.norm(base), np.linalg.norm(adapted)
    cosine = 0.0 if 0.0 in norms else float(base.ravel() @ adapted.ravel() / norms[0] / norms[1])
    if 0.0 in norms or abs(cosine) > PARALLEL:
        return (1 - ratio) * base + ratio * adapted
    angle = np.arccos(cosine)
    return (np.sin((1 - ratio) * angle) * base + np.sin(ratio * angle) * adapted) / np.sin(angle)


def tensors(kind: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    base = torch.randn(7, 33, generator=generator)
    other = torch.randn(7, 33, generator=generator)
    sideways = other - (other * base).sum() / (base * base).sum() * base
    tilted = lambda angle: math.cos(angle) * base + math.sin(angle) * sideways * (base.norm() / sideways.norm())  # noqa: E731
    return base, {
        "random": other,
        "orthogonal": sideways * 3,
        "antiparallel": -2 * base,
        "nearly antiparallel": -tilted(0.05),
        "zero": torch.zeros_like(base),
        "equal": base.clone(),
        "one degree": tilted(math.radians(1.0)),
        "just linear": tilted(math.acos(PARALLEL) * 0.99),
        "just spherical": tilted(math.acos(PARALLEL) * 1.01),
    }[kind]


KINDS = (
    "random",
    "orthogonal",
    "antiparallel",
    "nearly antiparallel",
    "zero",
    "equal",
    "one degree",
    "just linear",
    "just spherical",
)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_fp64(kind: str, ratio: float) -> None:
    base, adapted = tensors(kind, torch.Generator().manual_seed(hash_free(kind)))
    b, a = base.double().numpy(), adapted.double().numpy()
    for merged, expected in (
        (linear(base, adapted, ratio), (1 - ratio) * b + ratio * a),
        (slerp(base, adapted, ratio), reference_slerp(b, a, ratio)),
        (slerp(adapted, base, ratio), reference_slerp(a, b, ratio)),
    ):
        assert merged.dtype == torch.float32 and merged.shape == base.shape
        np.testing.assert_allclose(
            merged.double().numpy(), expected, rtol=0, atol=4e-6 * max(1.0, float(np.abs(expected).max()))
        )


def hash_free(text: str) -> int:
    return sum(ord(c) * (i + 1) for i, c in enumerate(text))


def test_slerp_takes_the_arc_where_it_should() -> None:
    """The branches differ by more than the tolerance above, so that test could not pass with the wrong one."""
    for kind, curved in (
        ("random", True),
        ("orthogonal", True),
        ("nearly antiparallel", True),
        ("one degree", False),
        ("just linear", False),
        ("just spherical", True),
    ):
        base, adapted = tensors(kind, torch.Generator().manual_seed(5))
        assert compare(base, adapted).slerp_is_linear is not curved, kind
        assert (slerp(base, adapted, 0.5) - linear(base, adapted, 0.5)).abs().max().item() > 1e-5 or not curved


def test_slerp_keeps_the_norm_of_orthogonal_vectors_and_linear_does_not() -> None:
    base, adapted = torch.zeros(8), torch.zeros(8)
    base[0], adapted[1] = 2.0, 2.0
    assert slerp(base, adapted, 0.5).norm().item() == pytest.approx(2.0, rel=1e-6)
    assert linear(base, adapted, 0.5).norm().item() == pytest.approx(math.sqrt(2.0), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ends_are_exact_to_the_bit(method: str, dtype: torch.dtype) -> None:
    base, adapted = torch.randn(50).to(dtype), torch.randn(50).to(dtype)
    base[0], adapted[1] = -0.0, -0.0  # arithmetic would lose these signs
    for ratio, expected in ((0.0, base), (1.0, adapted)):
        merged = METHODS[method](base, adapted, ratio).to(dtype)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert merged.view(bits).equal(expected.view(bits))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_stay_as_they_were(method: str) -> None:
    base, adapted = torch.randn(9, 4), torch.randn(9, 4)
    kept = base.clone(), adapted.clone()
    for ratio in RATIOS:
        METHODS[method](base, adapted, ratio).add_(1.0) if 0 < ratio < 1 else METHODS[method](base, adapted, ratio)
    assert base.equal(kept[0]) and adapted.equal(kept[1])


def test_bf16_inputs_are_computed_in_fp32() -> None:
    base = torch.randn(4096).bfloat16()
    adapted = (base.float() * (1 + 2**-7)).bfloat16()
    exact = 0.9 * base.double() + 0.1 * adapted.double()
    assert (linear(base, adapted, 0.1).double() - exact).abs().max() < 1e-6
    assert (torch.lerp(base, adapted, 0.1).double() - exact).abs().max() > 1e-4  # what bf16 arithmetic would give


def test_norms_over_several_blocks_and_large_values() -> None:
    base, adapted = torch.randn(2 * BLOCK + 17), torch.randn(2 * BLOCK + 17) * 1e20
    found = compare(base, adapted)
    b, a = base.double(), adapted.double()
    assert found.base_norm == pytest.approx(b.norm().item(), rel=1e-12)
    assert found.adapted_norm == pytest.approx(a.norm().item(), rel=1e-12)  # its squares overflow fp32
    assert found.difference_norm == pytest.approx((a - b).norm().item(), rel=1e-12)
    assert found.dot == pytest.approx(b.dot(a).item(), rel=1e-9)
    assert found.cosine == pytest.approx((b.dot(a) / b.norm() / a.norm()).item(), rel=1e-9)


def test_a_zero_vector_has_no_angle() -> None:
    found = compare(torch.zeros(5), torch.randn(5))
    assert math.isnan(found.cosine) and found.slerp_is_linear
    assert not compare(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).slerp_is_linear

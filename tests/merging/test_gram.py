"""Inner products and angles against fp64, above all where the tensors are nearly the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from frbio_lite.merging.blocks import BLOCK
from frbio_lite.merging.gram import SLICE, Gram, dot, inner_products


def gram_of(*tensors: Tensor) -> Gram:
    """Over blocks, as a merge adds them."""
    parts = zip(*(t.split(BLOCK) for t in tensors), strict=True)
    return Gram(np.sum([inner_products([t.numpy() for t in p]) for p in parts], axis=0))


def angle_fp64(x: Tensor, y: Tensor) -> float:
    """By Kahan's formula, which is exact for small angles too."""
    x, y = x.double() / x.double().norm(), y.double() / y.double().norm()
    return 2.0 * math.atan2((x - y).norm().item(), (x + y).norm().item())


@pytest.mark.parametrize("count", [1, 63, 129, SLICE + 1, 2 * BLOCK + 17])
def test_products_norms_and_differences(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    tensors = [torch.randn(count, generator=generator) for _ in range(3)]
    found = gram_of(*tensors)
    exact = [t.double() for t in tensors]
    assert found.count == 3
    largest = max(t.square().sum().item() for t in exact)
    for i in range(3):
        assert found.norm(i) ** 2 == pytest.approx(exact[i].square().sum().item(), abs=4e-6 * largest)
        assert found.difference(i) == pytest.approx((exact[i] - exact[0]).norm().item(), rel=2e-6)
        for j in range(3):
            assert found.inner(i, j) == pytest.approx((exact[i] @ exact[j]).item(), abs=4e-6 * largest)


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-2, 0.3, 3.0])
def test_angles_keep_their_digits_down_to_the_smallest(size: float) -> None:
    generator = torch.Generator().manual_seed(int(1 / size))
    base = torch.randn(70_001, generator=generator)
    first, second = (base + size * torch.randn(70_001, generator=generator) for _ in range(2))
    found = gram_of(base, first, second)
    step = 2.0**-24 * 3.0 / size  # what fp32 leaves of the difference
    assert found.angle(1) == pytest.approx(angle_fp64(base, first), rel=1e-5 + step)
    differences = first.double() - base.double(), second.double() - base.double()
    assert found.angle_of_differences(1, 2) == pytest.approx(angle_fp64(*differences), rel=1e-5 + step)


def test_a_zero_vector_has_no_angle_and_equal_ones_have_zero() -> None:
    zero, one = torch.zeros(5), torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0])
    assert math.isnan(gram_of(zero, one).angle(1)) and math.isnan(gram_of(one, zero).angle(1))
    assert math.isnan(gram_of(zero, one).angle(0)) and gram_of(one, zero).angle(0) == 0.0
    assert gram_of(one, one.clone()).angle(1) == 0.0
    assert math.isnan(gram_of(one, one.clone(), zero).angle_of_differences(1, 2))
    assert gram_of(zero, one, 2 * one).angle_of_differences(1, 2) == 0.0
    assert gram_of(one, -one).angle(1) == pytest.approx(math.pi)


def test_squares_beyond_fp32_are_summed_and_only_broken_values_are_not_finite() -> None:
    large = np.full(SLICE + 3, 1e25, dtype=np.float32)
    assert dot(large, large) == pytest.approx(np.square(large.astype(np.float64)).sum(), rel=1e-12)
    assert dot(large, -large) < 0.0
    for broken in (math.nan, math.inf):
        large[-1] = broken
        assert not math.isfinite(dot(large, large))

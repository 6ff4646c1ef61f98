"""RMSNorm: kernel against fp64, rounding as in transformers, gradients, shapes, refusals."""

from __future__ import annotations

import pytest
import torch
from numerics import DTYPES, FP32_EPS, assert_close, gradcheck, gradients, wide
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from frbio_lite.kernels.rms_norm import LARGEST, add_rms_norm, reference, rms_norm

EPS = 1e-6
SHAPES = [(1, 1), (3, 63), (2, 5, 129), (70, 128), (2, 0, 64), (1, 1024), (3, 4100)]
KERNELS = ["rms_norm_forward", "rms_norm_backward"]
WIDE_KERNELS = ["rms_norm_forward_wide", "rms_norm_backward_wide", "rms_norm_weight_wide"]


def randn(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(*shape).to(device, dtype).requires_grad_()


def check(x: Tensor, weight: Tensor, gemma: bool) -> None:
    """Output and gradients of rms_norm against the formula in fp64."""
    dy = torch.randn(x.shape).to(x)
    y = rms_norm(x, weight, EPS, gemma=gemma)
    dx, dweight = gradients(y, (x, weight), [dy])
    x64, weight64 = wide(x, weight)
    y64 = reference.rms_norm(x64, weight64, EPS, gemma)
    dx64, dweight64 = gradients(y64, (x64, weight64), [dy])
    assert y.dtype == (x.dtype if gemma else torch.promote_types(x.dtype, weight.dtype))
    assert (dx.dtype, dweight.dtype) == (x.dtype, weight.dtype)
    # without gemma, normalised values are rounded to x's dtype before the product
    assert_close(y, y64, roundings=1 if gemma else 1 + torch.finfo(x.dtype).eps / torch.finfo(y.dtype).eps)
    assert_close(dx, dx64, noise=cancelling(x64, weight64 + gemma, dy))
    assert_close(dweight, dweight64)


def cancelling(x: Tensor, weight: Tensor, dy: Tensor) -> float:
    """The fp32 error of the two terms of dx, which may cancel."""
    return 8 * FP32_EPS * largest(torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight * dy)


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_is_the_formula(shape, dtype, gemma, device, launches) -> None:
    check(randn(*shape, dtype=dtype, device=device), randn(shape[-1], dtype=dtype, device=device), gemma)
    assert launches == KERNELS


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("shape", [(1, LARGEST), (3, LARGEST + 1), (2, 9, 8200), (0, 9000), (2, 32_768)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows_have_kernels(shape, dtype, gemma, device, launches, monkeypatch) -> None:
    monkeypatch.setattr("frbio_lite.kernels.launch.INTERPRETED_PROGRAMS", 80)  # several to a stripe of columns
    check(randn(*shape, dtype=dtype, device=device), randn(shape[-1], dtype=dtype, device=device), gemma)
    assert launches == (KERNELS if shape[-1] == LARGEST else WIDE_KERNELS)


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16])
def test_mixed_dtypes_give_what_transformers_gives(weight_dtype, gemma, device, launches) -> None:
    """fp32 weights on 16-bit activations are full training under autocast."""
    x = randn(5, 63, dtype=torch.float16, device=device)
    weight = randn(63, dtype=weight_dtype, device=device)
    check(x, weight, gemma)
    assert launches == KERNELS
    module = (Gemma3RMSNorm if gemma else Qwen3RMSNorm)(63, EPS).to(device)
    module.weight = torch.nn.Parameter(weight.detach())
    theirs, ours = module(x), rms_norm(x, weight, EPS, gemma=gemma)
    assert ours.dtype == theirs.dtype
    step = torch.finfo(x.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=step, atol=0.0)  # where a value lies near a tie, one step
    assert ((ours / theirs - 1).abs().double() < step / 100).double().mean() > 0.95  # elsewhere rounded alike


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_is_bit_for_bit_transformers(dtype, gemma) -> None:
    x, weight = torch.randn(2, 3, 65).to(dtype), torch.randn(65).to(dtype)
    module = (Gemma3RMSNorm if gemma else Qwen3RMSNorm)(65, EPS)
    module.weight = torch.nn.Parameter(weight)
    assert torch.equal(reference.rms_norm(x, weight, EPS, gemma), module(x))


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtypes", ["same", "mixed"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 33, 129), (0, 8), (3, 1024), (3, 8193)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_is_added_and_both_outputs_carry_gradients(dtype, shape, dtypes, gemma, device, launches) -> None:
    wider = dtype if dtypes == "same" else torch.float32  # a 16-bit branch joins the fp32 residual stream
    x, residual = randn(*shape, dtype=dtype, device=device), randn(*shape, dtype=wider, device=device)
    weight = randn(shape[-1], dtype=wider, device=device)
    dy, dhidden = torch.randn(shape).to(residual), torch.randn(shape).to(residual)
    y, hidden = add_rms_norm(x, residual, weight, EPS, gemma=gemma)
    found = gradients((y, hidden), (x, residual, weight), [dy, dhidden])
    assert launches == (WIDE_KERNELS if shape[-1] > LARGEST else KERNELS), "one launch forward, one backward"
    assert hidden.dtype == wider
    assert torch.equal(hidden, x + residual)
    if device.type == "cpu":  # compiled, the two forms may contract sums and products differently
        assert torch.equal(y, rms_norm(hidden, weight, EPS, gemma=gemma))
    # the sum is rounded before it is normalised, as where addition and norm are two operations
    hidden64, weight64 = wide(hidden.detach().requires_grad_(), weight)
    y64 = reference.rms_norm(hidden64, weight64, EPS, gemma)
    dhidden64, dweight64 = gradients((y64, hidden64 + 0), (hidden64, weight64), [dy, dhidden])
    assert_close(y, y64, roundings=1 if gemma else 2)
    for actual, kind in zip(found, (dtype, wider, wider), strict=True):
        assert actual.dtype == kind
    noise = cancelling(hidden64, weight64 + gemma, dy)
    assert_close(found[0], dhidden64, noise=noise)
    assert_close(found[1], dhidden64, noise=noise)
    assert_close(found[2], dweight64)


@pytest.mark.parametrize("gemma", [False, True])
def test_reference_gradients_are_numerical_ones(gemma) -> None:
    x, weight = torch.randn(3, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    gradcheck(lambda x, w: reference.rms_norm(x, w, EPS, gemma), x.requires_grad_(), weight.requires_grad_())


def test_gradients_of_the_sum_are_numerical_ones() -> None:
    tensors = [torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64), torch.randn(7).double()]
    gradcheck(lambda x, r, w: add_rms_norm(x, r, w, EPS), *(t.requires_grad_() for t in tensors))


def test_strided_inputs_are_read_where_they_are(device, launches) -> None:
    weight = randn(63, dtype=torch.float32, device=device)
    joined = torch.randn(4, 5, 3 * 63, device=device)
    for x in (joined[..., 63:126], joined[:, 2, :63], joined[:, :, ::3], torch.randn(63, 6, device=device).t()):
        assert not x.is_contiguous()
        check(x.detach().requires_grad_(), weight, gemma=False)
    assert launches == 4 * KERNELS


def test_an_expanded_gradient_is_read_as_it_is(device, launches) -> None:
    x, weight = randn(3, 40, dtype=torch.float32, device=device), randn(40, dtype=torch.float32, device=device)
    rms_norm(x, weight).sum().backward()  # the gradient of a sum has stride 0
    x64, weight64 = wide(x, weight)
    reference.rms_norm(x64, weight64, EPS, False).sum().backward()
    assert launches == KERNELS
    assert_close(x.grad, x64.grad, noise=1e-6)
    assert_close(weight.grad, weight64.grad)


@pytest.mark.parametrize(("shape", "kernels"), [((70, 128), 2 * KERNELS), ((2, 9000), WIDE_KERNELS + WIDE_KERNELS[:2])])
def test_a_frozen_weight_has_no_gradient(shape, kernels, device, launches) -> None:
    x, weight = randn(*shape, dtype=torch.float32, device=device), randn(shape[1], dtype=torch.float32, device=device)
    dy = torch.randn(shape, device=device)
    trained = gradients(rms_norm(x, weight), [x, weight], [dy])
    frozen = gradients(rms_norm(x, weight.detach()), [x], [dy])
    assert launches == kernels
    assert torch.equal(trained[0], frozen[0])


def test_the_same_inputs_give_the_same_bits(device) -> None:
    x, weight = randn(200, 128, dtype=torch.float32, device=device), randn(128, dtype=torch.float32, device=device)
    dy = torch.randn(200, 128, device=device)
    first, again = (gradients(rms_norm(x, weight), [x, weight], [dy]) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_large_values_stay_finite(dtype, device) -> None:
    x = torch.zeros(4, 128, dtype=dtype, device=device)
    x[1:3] = 3e4  # its square is beyond fp16
    x[2, ::2] = -3e4
    x.requires_grad_()
    weight = torch.ones(128, dtype=dtype, device=device, requires_grad=True)
    y = rms_norm(x, weight)
    y.backward(torch.ones_like(y))
    assert y[0].eq(0).all() and y[3].eq(0).all()
    torch.testing.assert_close(y[1:3], x[1:3].sign())
    assert weight.grad.isfinite().all()


def test_what_no_kernel_computes_takes_the_reference(launches) -> None:
    x, weight = torch.randn(2, 8).double(), torch.randn(8).double()
    torch.testing.assert_close(rms_norm(x, weight), reference.rms_norm(x, weight, EPS, False), rtol=0, atol=0)
    y, hidden = add_rms_norm(x, x, weight, gemma=True)
    assert torch.equal(y, reference.rms_norm(x + x, weight, EPS, True)) and torch.equal(hidden, x + x)
    assert launches == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 4), torch.zeros(5)), r"weight \[5\] does not fit x \[2, 4\]"),
        ((torch.zeros(2, 4), torch.zeros(1, 4)), r"weight \[1, 4\] does not fit"),
        ((torch.tensor(1.0), torch.zeros(1)), "does not fit"),
        ((torch.zeros(2, 0), torch.zeros(0)), "no columns"),
        ((torch.zeros(2, 4, dtype=torch.int64), torch.zeros(4)), "x is int64"),
        ((torch.zeros(2, 4), torch.zeros(4, device="meta")), "weight on meta"),
        ((torch.zeros(2, 4), torch.zeros(4), -1.0), "eps is -1.0"),
        ((torch.zeros(2, 4), torch.zeros(4), float("nan")), "eps is nan"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        rms_norm(*arguments)
    assert "\n" not in str(refusal.value)


def test_a_residual_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"residual \[4\] and x \[2, 4\] differ"):
        add_rms_norm(torch.zeros(2, 4), torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="residual is int32"):
        add_rms_norm(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int32), torch.zeros(4))

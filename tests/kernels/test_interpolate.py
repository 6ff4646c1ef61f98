"""Interpolation: the bits of a merge on the CPU, slerp's weights, in place, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numerics import DTYPES, assert_close, wide
from torch import Tensor, nn

from frbio_lite import model
from frbio_lite.kernels.interpolate import blend, interpolate, reference, slerp_weights
from frbio_lite.merging import Parameters, Profile, Rounding, by_method, live, open_inputs
from frbio_lite.merging.gram import Gram, inner_products
from frbio_lite.merging.methods import slerp
from frbio_lite.merging.methods.rule import weighted_sum
from frbio_lite.merging.weights import narrow
from tests.merging.tiny_models import save_adapted, save_adapter, save_base

SHAPES = [(1,), (63,), (3, 129), (1, 4096), (2, 5, 1000)]
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def pair(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, apart: float = 0.3) -> tuple[Tensor, Tensor]:
    """Two tensors whose difference has `apart` of the base's norm."""
    base = torch.randn(shape)
    return base.to(device, dtype), (base + apart * torch.randn(shape)).to(device, dtype)


def merged(base: Tensor, adapted: Tensor, weights: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """The path of a merge on the CPU: numpy blocks in fp32, rounded once."""
    tensors = [t.cpu().float().reshape(-1).numpy() for t in (base, adapted)]
    values = weighted_sum(tensors, weights)
    raw = narrow(values, NAMES[dtype], np.empty(values.size, dtype=np.uint32))
    return torch.from_numpy(raw.copy()).view(dtype).view(base.shape)


@pytest.mark.parametrize("ratio", [0.1, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_the_merge_on_a_cpu_to_the_bit(dtype, shape, ratio, device, launches) -> None:
    base, adapted = pair(shape, dtype, device)
    found = interpolate(base, adapted, ratio)
    assert launches == ["interpolate_blend"]
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), merged(base, adapted, (1.0 - ratio, ratio), dtype))
    base64, adapted64 = wide(base, adapted)
    assert_close(found, (1.0 - ratio) * base64 + ratio * adapted64)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_reference_is_the_merge_on_a_cpu_to_the_bit(dtype, out_dtype) -> None:
    base, adapted = pair((7, 33), dtype, torch.device("cpu"))
    adapted = adapted.float()  # of another dtype than the base
    for weights in ((0.7, 0.3), (1.25, -0.4), (0.0, 1.0), (1.0, 0.0), (0.0, 0.3)):
        found = reference.blend(base, adapted, weights).to(out_dtype)
        assert torch.equal(found, merged(base, adapted, weights, out_dtype))


@pytest.mark.parametrize("apart", [1e-3, 0.02, 0.3, 3.0, 30.0], ids=lambda apart: f"{apart:g}")
@pytest.mark.parametrize("shape", [(3, 129), (2, 5, 1000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp_is_that_of_a_merge_within_one_rounding(dtype, shape, apart, device, launches) -> None:
    base, adapted = pair(shape, dtype, device, apart)
    found = interpolate(base, adapted, 0.4, method="slerp")
    assert launches == ["interpolate_products", "interpolate_blend"]
    gram = Gram(inner_products([t.cpu().float().reshape(-1).numpy() for t in (base, adapted)]))
    weights = slerp.coefficients(gram, 0.4)
    assert (weights == (0.6, 0.4)) == slerp.is_linear(gram.angle(1))
    base64, adapted64 = wide(base, adapted)
    assert_close(found, weights[0] * base64 + weights[1] * adapted64)
    products64 = reference.products(base64, adapted64)
    products = reference.products(base, adapted)
    for actual, expected in zip(products, products64, strict=True):  # differences are rounded to fp32, as in a merge
        assert actual == pytest.approx(expected, rel=1e-6, abs=1e-6 * math.sqrt(products64[0] * products64[2]))


def test_slerp_in_fp64_is_shoemakes_formula() -> None:
    base, adapted = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    angle = torch.arccos((base * adapted).sum() / base.norm() / adapted.norm())
    for t in (0.25, 0.5):
        expected = (torch.sin((1 - t) * angle) * base + torch.sin(t * angle) * adapted) / torch.sin(angle)
        found = interpolate(base, adapted, t, method="slerp")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_slerps_weights_are_those_of_the_merging_method() -> None:
    """Over all angles, with the threshold on both sides, and vectors of zero."""
    generator = np.random.default_rng(5)
    seen = set()
    for angle in (0.0, 1e-4, 0.0316, 0.0317, 0.3, 1.5, 3.0, math.pi - 0.0316, math.pi):
        for scale in (0.0, 1e-8, 0.7, 1.0, 40.0):
            x = generator.normal(size=2) * 10.0 ** generator.uniform(-3, 3)
            turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ x
            step = scale * turned - x
            matrix = np.array([[x @ x, x @ step], [x @ step, step @ step]])
            for t in (0.0, 0.3, 1.0):
                expected = slerp.coefficients(Gram(matrix), t)
                assert slerp_weights(*matrix.reshape(-1)[[0, 1, 3]], t) == pytest.approx(expected, rel=1e-12, abs=0.0)
                seen.add(expected == (1.0 - t, t))
    assert seen == {True, False}
    assert slerp_weights(0.0, 0.0, 4.0, 0.3) == (0.7, 0.3), "a base of zeros"
    assert slerp_weights(4.0, -4.0, 4.0, 0.3) == (0.7, 0.3), "an adapted tensor of zeros"


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_are_the_tensors_themselves(dtype, method, device) -> None:
    base, adapted = pair((3, 50), dtype, device)
    base[0, 0], adapted[1, 1], base[2, 2], adapted[2, 2] = math.inf, math.nan, -0.0, 5.0
    at_base, at_adapted = (interpolate(base, adapted, ratio, method=method) for ratio in (0.0, 1.0))
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(at_base.view(bits), base.view(bits))
    assert torch.equal(at_adapted.nan_to_num(7.0), adapted.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_live_parameter_is_rewritten_in_place(dtype, device, launches) -> None:
    """From tensors of other dtypes; each ratio anew from the pristine ones."""
    base, adapted = pair((9, 500), torch.float32, device)
    base = base.half()
    live = nn.Parameter(torch.full((9, 500), math.nan, device=device, dtype=dtype))
    place = live.data_ptr()
    for ratio in (0.3, 0.8, 0.3):
        assert interpolate(base, adapted, ratio, live) is live
        assert torch.equal(live.detach().cpu(), merged(base, adapted, (1.0 - ratio, ratio), dtype))
    assert launches == 3 * ["interpolate_blend"]
    assert live.data_ptr() == place and live.requires_grad and live.grad_fn is None


def test_a_tensor_that_autograd_needs_is_not_rewritten_unseen(device) -> None:
    live, x = nn.Parameter(torch.ones(8, device=device)), torch.ones(8, device=device, requires_grad=True)
    y = (live * x).sum()
    interpolate(torch.zeros(8, device=device), torch.ones(8, device=device), 0.5, live)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_base_itself_and_what_lies_behind(device) -> None:
    held = torch.randn(4200, device=device)
    base, behind = held[:4111], held[4111:].clone()
    adapted = torch.randn(4111, device=device)
    expected = merged(base, adapted, (0.75, 0.25), torch.float32)
    assert torch.equal(interpolate(base, adapted, 0.25, base).cpu(), expected)
    assert torch.equal(held[4111:], behind)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_strided_and_empty_tensors(method, device) -> None:
    base, adapted = torch.randn(6, 40, device=device), torch.randn(40, 6, device=device).t()
    whole = interpolate(base, adapted.contiguous(), 0.4, method=method)
    assert torch.equal(interpolate(base, adapted, 0.4, method=method), whole)
    out = torch.zeros(40, 6, device=device).t()
    interpolate(base, adapted, 0.4, out, method)
    torch.testing.assert_close(out, whole)
    assert interpolate(base[:0], adapted[:0], 0.4, method=method).shape == (0, 40)


def test_gradients_do_not_flow(device) -> None:
    base, adapted = (torch.randn(8, device=device, requires_grad=True) for _ in range(2))
    assert not interpolate(base, adapted, 0.5).requires_grad
    assert not interpolate(base, adapted, 0.5, method="slerp").requires_grad
    assert not interpolate(base.double(), adapted.double(), 0.5).requires_grad


def test_weights_that_do_not_sum_to_one(device, launches) -> None:
    base, adapted = pair((70,), torch.float32, device)
    assert torch.equal(blend(base, adapted, (1.3, -0.2)).cpu(), merged(base, adapted, (1.3, -0.2), torch.float32))
    assert torch.equal(blend(base, adapted, (0.0, 0.0)), torch.zeros_like(base))
    assert launches == ["interpolate_blend"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(4), 0.5), r"adapted \[4\] and base \[3\] differ"),
        ((torch.zeros(3), torch.zeros(3), 0.5, torch.zeros(1, 3)), r"out \[1, 3\] and base \[3\] differ"),
        ((torch.zeros(3).int(), torch.zeros(3), 0.5), "base is int32"),
        ((torch.zeros(3), torch.zeros(3), 0.5, torch.zeros(3).int()), "out is int32"),
        ((torch.zeros(3), torch.zeros(3, device="meta"), 0.5), "adapted on meta"),
        ((torch.zeros(3), torch.zeros(3), 1.5), "ratio is 1.5"),
        ((torch.zeros(3), torch.zeros(3), math.nan), "ratio is nan"),
        ((torch.zeros(3), torch.zeros(3), 0.5, None, "ties"), "method is 'ties': linear or slerp"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        interpolate(*arguments)
    assert "\n" not in str(refusal.value)


def models(directory: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    base = save_base(directory / "base", dtype=dtype)
    return base, save_adapted(directory / "adapted", base, size=0.3, dtype=torch.float32)  # stored in two dtypes


def merger_of(base: Path, adapted: Path, method: str) -> Any:
    profile = Profile(((r"layers\.0\.mlp", (0.0,)), ("norm", (1.0,)), ("", (0.8,))))
    merger = by_method(open_inputs(base, [adapted]), method, Parameters(), profile)
    merger.survey()
    return merger


def values(found: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in found.named_parameters()}


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (torch.float32, Rounding("F32")),
        (torch.float32, None),
        (torch.bfloat16, Rounding("BF16")),
        pytest.param(torch.bfloat16, None, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("method", ["linear", "slerp", "nuslerp"])
def test_a_live_model_is_rewritten_on_its_device_with_the_same_bits(
    tmp_path, monkeypatch, method, dtype, rounding, device, launches
) -> None:
    """As an ablation does it, in torch or by the kernel, against numpy, which merges on disk."""
    stored = torch.float16 if dtype == torch.float32 else torch.bfloat16  # of the base; no bf16 in the interpreter
    merger = merger_of(*models(tmp_path, stored), method)
    by_numpy = model.load_model(tmp_path / "base", dtype=dtype, device=torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(live, "blend_there", lambda *given: False)
        live.write_into(by_numpy, merger, 0.6, rounding)
    found = model.load_model(tmp_path / "base", dtype=dtype, device=device)
    with torch.no_grad():
        for name, target in live._targets(found, merger.inputs).items():
            target.fill_(math.nan)
            for block in merger.inputs.blocks(name):
                part = target.view(-1)[block.start : block.start + block.count]
                assert live.blend_there(block, part, merger, 0.6, rounding)
    expected = values(by_numpy)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in values(found).items())
    assert launches == ["interpolate_blend"] * len(launches) and bool(launches) == (device.type == "cuda")
    monkeypatch.setattr(type(merger.inputs), "read", None)  # the path of numpy is not taken
    live.write_into(found, merger, 0.6, rounding)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in values(found).items())


def test_what_is_no_sum_of_two_stored_tensors_is_left_to_numpy(tmp_path) -> None:
    base, adapted = models(tmp_path)
    adapter = save_adapter(tmp_path / "adapter", base)
    name = "model.norm.weight"
    full = merger_of(base, adapted, "linear")
    block = full.inputs.blocks(name)[0]
    several = by_method(open_inputs(base, [adapted, adapted]), "linear", Parameters(), Profile())
    for merger, rounding, dtype in (
        (merger_of(base, adapter, "linear"), None, torch.float32),
        (several, None, torch.float32),
        (merger_of(base, adapted, "ties"), None, torch.float32),
        (full, Rounding("BF16", stochastic=True), torch.bfloat16),
        (full, Rounding("BF16"), torch.float32),
        (full, Rounding("F16"), torch.float16),
    ):
        part = torch.full((block.count,), 7.0, dtype=dtype)
        assert not live.blend_there(block, part, merger, 0.5, rounding)
        assert part.eq(7.0).all()
    assert live.blend_there(block, torch.zeros(block.count), full, 0.5, Rounding("F32"))

"""Head and cross-entropy by chunks: kernel and torch against fp64, gradients, heads of all kinds, memory, refusals."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from numerics import DTYPES, FP32_EPS, assert_close, gradcheck, gradients, wide
from tiny import CLASSES, SHAPE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from frbio_lite import model as models
from frbio_lite import recipe
from frbio_lite.kernels import linear_cross_entropy as package
from frbio_lite.kernels import nf4
from frbio_lite.kernels.linear_cross_entropy import (
    check_labels,
    head,
    linear_cross_entropy,
    log_probabilities,
    reference,
)

KERNEL = "row_cross_entropy"
SHAPES = [(1, 1, 1), (5, 63, 16), (3, 129, 33), (2, 1031, 8), (1, 4099, 8), (0, 63, 8)]  # N, V, H


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows a chunk, whatever the budget."""
    monkeypatch.setattr(package, "SMALLEST_CHUNK", 2)


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of CPUs: no kernel, not even interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def inputs(n: int, v: int, h: int, dtype: torch.dtype, device: Any = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """hidden [n, h] and weight [v, h], which require gradients, and labels, some of them ignored."""
    hidden = torch.randn(n, h).to(device, dtype).requires_grad_()
    weight = (2.0 * torch.randn(v, h) / h**0.5).to(device, dtype).requires_grad_()
    labels = torch.randint(v, (n,))
    labels[1::4] = -100
    return hidden, weight, labels.to(device)


def check(
    hidden: Tensor, weight: Tensor, labels: Tensor, upstream: Tensor | None = None, bias: Tensor | None = None,
    softcap: float | None = None,
) -> None:  # fmt: skip
    """Losses, or their sum where no upstream is given, and gradients against the formula in fp64."""
    given = [t for t in (hidden, weight, bias) if t is not None]
    copies = wide(*given)
    losses64 = reference.linear_cross_entropy(*copies[:2], labels, *copies[2:] or (None,), softcap, -100)
    how: dict[str, Any] = {"bias": bias, "softcap": softcap, "chunk_bytes": 1}
    eps = torch.finfo(hidden.dtype).eps
    largest = [float(t.detach().abs().max()) if t.numel() else 0.0 for t in copies]
    highest = float((copies[0].detach().abs() @ copies[1].detach().abs().T).max()) if hidden.numel() else 0.0
    error = (eps + 8 * FP32_EPS) * (highest + sum(largest[2:])) + 4 * FP32_EPS * (softcap or 0.0)  # of a logit
    if upstream is None:
        upstream = torch.tensor(0.75, device=hidden.device)
        found, expected = linear_cross_entropy(hidden, weight, labels, reduction="sum", **how), losses64.sum()
        assert_close(found, expected, noise=len(labels) * 2 * error)
    else:
        found, expected = linear_cross_entropy(hidden, weight, labels, **how), losses64
        assert_close(found, expected, noise=2 * error)
    assert found.dtype == torch.float32
    # dlogits, whose sizes add up to 2 in a row, are off by the logits' error relative to themselves, and rounded
    noise = 2 * (2 * error + eps) * (float(upstream.abs().max()) if upstream.numel() else 0.0)
    sizes = [largest[1], len(labels) * largest[0], len(labels)]  # what they are multiplied with, and how many rows
    trained = [i for i, t in enumerate(given) if t.requires_grad]
    actual = gradients(found, [given[i] for i in trained], [upstream])
    target = gradients(expected, [copies[i] for i in trained], [upstream])
    for i, a, t in zip(trained, actual, target, strict=True):
        assert a.dtype == given[i].dtype
        assert_close(a, t, roundings=2, noise=noise * sizes[i])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_is_the_formula(dtype, shape, device, launches, small_chunks) -> None:
    check(*inputs(*shape, dtype, device))
    assert launches == [KERNEL] * -(-shape[0] // 2), "one launch a chunk"


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_rows_of_many_blocks(order, softcap, device, monkeypatch) -> None:
    """Each lane meets larger logits block by block, smaller ones, or both."""
    from frbio_lite.kernels.linear_cross_entropy import kernel

    monkeypatch.setattr(kernel, "LANES", 64)
    logits = 40.0 * torch.rand(2, 1031, device=device)
    if order != "mixed":
        logits = logits.sort(dim=1, descending=order == "falling").values
    labels = torch.tensor([1030, 5], device=device)
    logits64 = logits.double().requires_grad_()
    capped = logits64 if softcap is None else torch.tanh(logits64 / softcap) * softcap
    expected = F.cross_entropy(capped, labels, reduction="none")
    losses = kernel.cross_entropy_(logits, labels, softcap, -100, 2.0)
    assert_close(losses, expected, noise=40 * 8 * FP32_EPS)
    assert_close(logits, gradients(expected, [logits64], [torch.full((2,), 2.0)])[0], noise=40 * 16 * FP32_EPS)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_single_losses_take_any_upstream(dtype, trained, device, launches, small_chunks) -> None:
    hidden, weight, labels = inputs(5, 129, 16, dtype, device)
    upstream = torch.tensor([1.0, 5.0, -0.5, 0.0, 2e-3], device=device)
    check(hidden, weight.requires_grad_(trained), labels, upstream)
    assert launches == [KERNEL] * (6 if trained else 3), "a frozen head has nothing to compute again"


@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_and_softcap(dtype, softcap, device, launches, small_chunks) -> None:
    hidden, weight, labels = inputs(3, 63, 16, dtype, device)
    bias = torch.randn(63).to(device, dtype).requires_grad_()
    check(hidden, weight, labels, bias=bias, softcap=softcap)
    check(hidden, weight.detach(), labels, torch.rand(3, device=device), bias, softcap)
    assert launches == [KERNEL] * 6, "the second has a trained bias, which mixes rows: it is computed in the backward"


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_is_the_formula(dtype, softcap, launches, torch_only, small_chunks) -> None:
    for shape in SHAPES:
        hidden, weight, labels = inputs(*shape, dtype)
        check(hidden, weight, labels, softcap=softcap)
        check(hidden, weight, labels, torch.rand(shape[0]), torch.randn(shape[1]).to(dtype).requires_grad_(), softcap)
    assert launches == []


def test_strided_tensors_are_read_where_they_are(device, launches, small_chunks) -> None:
    hidden, weight, labels = inputs(3, 63, 32, torch.float32, device)
    for h, w in (
        (hidden[:, ::2], weight[:, ::2]),
        (hidden[:, 8:20], weight[:, 8:20]),
        (hidden, torch.randn(32, 63).t()),
    ):
        assert not (h.is_contiguous() and w.is_contiguous())
        check(h.detach().requires_grad_(), w.detach().to(device).requires_grad_(), labels.repeat(2)[::2])
    assert launches == [KERNEL] * 6


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradients_are_numerical_ones(softcap, small_chunks) -> None:
    hidden, weight, labels = inputs(5, 7, 3, torch.float64)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    leaves, how = (hidden, weight, bias), {"softcap": softcap, "chunk_bytes": 1}
    gradcheck(lambda h, w, b: reference.linear_cross_entropy(h, w, labels, b, softcap, -100), *leaves)
    gradcheck(lambda h, w, b: linear_cross_entropy(h, w, labels, bias=b, **how), *leaves)
    summed = linear_cross_entropy(hidden, weight, labels, bias=bias, reduction="sum", **how)
    single = linear_cross_entropy(hidden, weight, labels, bias=bias, **how).sum()
    for actual, expected in zip(*(torch.autograd.grad(2.0 * loss, leaves) for loss in (summed, single)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_ignored_is_zero(dtype, device, small_chunks) -> None:
    hidden, weight, _ = inputs(3, 63, 16, dtype, device)
    labels = torch.full((3,), -100, device=device)
    for reduction in ("sum", "none"):
        losses = linear_cross_entropy(hidden, weight, labels, reduction=reduction)
        assert losses.eq(0).all()
        assert all(g.eq(0).all() for g in gradients(losses, (hidden, weight), [torch.ones_like(losses)]))


def test_another_index_is_ignored(device) -> None:
    hidden, weight, _ = inputs(3, 9, 4, torch.float32, device)
    losses = linear_cross_entropy(hidden, weight, torch.tensor([3, 0, 3], device=device), ignore_index=3)
    assert losses[0] == losses[2] == 0 and losses[1] > 0


@pytest.mark.parametrize("kernel", [True, False])
def test_large_logits_stay_finite(kernel, device, monkeypatch) -> None:
    if not kernel:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    hidden = torch.tensor([[100.0, 0.0], [-100.0, 0.0], [0.0, 0.0]], device=device, requires_grad=True)
    weight = torch.tensor([[100.0, 1.0], [-100.0, 1.0], [0.0, 1.0]], device=device, requires_grad=True)
    labels = torch.tensor([0, 0, 1], device=device)
    losses = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(losses.cpu(), torch.tensor([0.0, 20000.0, 3.0]).log1p().expm1().index_copy(
        0, torch.tensor([2]), torch.tensor([3.0]).log()))  # fmt: skip
    assert all(g.isfinite().all() for g in gradients(losses, (hidden, weight), [torch.ones_like(losses)]))


def test_infinite_logits_are_told_as_nan_and_minus_infinity_is_probability_zero(device) -> None:
    hidden = torch.ones(1, 1, device=device)
    weight = torch.tensor([[1.0], [float("-inf")], [1.0]], device=device)
    losses = linear_cross_entropy(hidden, weight, torch.zeros(1, dtype=torch.int64, device=device))
    torch.testing.assert_close(losses.cpu(), torch.tensor([2.0]).log())
    assert linear_cross_entropy(hidden, -weight, torch.zeros(1, dtype=torch.int64, device=device)).isnan().all()


def test_no_gradient_is_computed_where_none_is_wanted(device, monkeypatch) -> None:
    hidden, weight, labels = inputs(3, 9, 4, torch.float32, device)
    scales: list[Any] = []
    original = package._cross_entropy
    monkeypatch.setattr(package, "_cross_entropy", lambda *a: scales.append(a[3]) or original(*a))
    with torch.no_grad():
        silent = linear_cross_entropy(hidden, weight, labels, reduction="sum")
    with torch.inference_mode():
        linear_cross_entropy(hidden, weight, labels)
    linear_cross_entropy(hidden.detach(), weight.detach(), labels)
    assert scales == [False] * 3
    assert torch.equal(silent, linear_cross_entropy(hidden, weight, labels, reduction="sum"))
    assert scales[-1]


def test_a_tied_head_adds_to_the_embedding(device) -> None:
    weight = torch.randn(33, 8, device=device, requires_grad=True)
    ids, labels = torch.randint(33, (6,), device=device), torch.randint(33, (6,), device=device)
    linear_cross_entropy(torch.tanh(F.embedding(ids, weight)), weight, labels, reduction="sum").backward()
    (weight64,) = wide(weight)
    hidden64 = torch.tanh(F.embedding(ids, weight64))
    reference.linear_cross_entropy(hidden64, weight64, labels, None, None, -100).sum().backward()
    assert_close(weight.grad, weight64.grad, noise=1e-5)


def test_a_second_backward_is_refused_rather_than_wrong(device) -> None:
    hidden, weight, labels = inputs(3, 9, 4, torch.float32, device)
    loss = linear_cross_entropy(hidden, weight, labels, reduction="sum")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"gradients once: compute the loss again for a second backward$"):
        loss.backward()


@pytest.mark.parametrize("rows", [383, 384, 385, 900])
def test_chunks_are_as_large_as_the_budget(rows, monkeypatch, torch_only) -> None:
    hidden, weight, labels = inputs(rows, 63, 8, torch.float32)
    seen: list[int] = []
    original = package._cross_entropy
    monkeypatch.setattr(package, "_cross_entropy", lambda *a: seen.append(len(a[0])) or original(*a))
    losses = linear_cross_entropy(hidden, weight, labels, chunk_bytes=400 * 63 * 4)
    assert seen == [384] * (rows // 384) + [rows % 384] * (rows % 384 > 0), "whole tiles of 128 rows"
    torch.testing.assert_close(losses, reference.linear_cross_entropy(hidden, weight, labels, None, None, -100))
    seen.clear()
    linear_cross_entropy(hidden, weight, labels, chunk_bytes=1)
    assert max(seen) == package.SMALLEST_CHUNK


def test_meta_tensors_give_shapes() -> None:
    hidden, weight, labels = (t.detach().to("meta") for t in inputs(600, 63, 8, torch.float32))
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, labels, reduction="sum", chunk_bytes=1).backward()
    assert weight.grad.shape == (63, 8)
    assert linear_cross_entropy(hidden, weight, labels).shape == (600,)


class Allocations(TorchDispatchMode):
    """Elements of each tensor that an operation allocates (not a view, not what it was given to write into)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)}
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.sizes.append(tensor.numel())
        return result


@pytest.mark.parametrize("frozen", [True, False])
def test_one_chunk_of_logits_is_all_that_is_held(frozen, torch_only) -> None:
    """And the gradients: [N, H], and [V, H] where the head is trained."""
    n, v, h, chunk = 2048, 1031, 16, 256
    hidden, weight, labels = inputs(n, v, h, torch.float32)
    weight.requires_grad_(not frozen)
    with Allocations() as made:
        linear_cross_entropy(hidden, weight, labels, reduction="sum", chunk_bytes=1).backward()
    large = sorted(size for size in made.sizes if size > 4 * n)
    assert large == sorted([n * h, chunk * v] + [v * h] * (not frozen))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_four_bit_head_is_its_dequantised_weight(dtype, nested, device, monkeypatch, small_chunks) -> None:
    """In parts of 512 rows: the last is shorter, and ends within a block of constants. A block spans two rows."""
    from bitsandbytes.functional import quantize_4bit

    vocabulary, width = 1031, 32
    monkeypatch.setattr(head, "PART_BYTES", 512 * width * dtype.itemsize)
    hidden, weight, labels = inputs(3, vocabulary, width, dtype, device)
    packed, state = quantize_4bit(weight.detach(), compress_statistics=nested, quant_type="nf4")
    plain = nf4.reference.dequantise(packed.view(-1), state, dtype)
    packed.quant_state = state
    upstream = torch.rand(3, device=device)
    losses = linear_cross_entropy(hidden, packed, labels, chunk_bytes=1)
    (found,) = gradients(losses, [hidden], [upstream])
    expected = linear_cross_entropy(hidden, plain, labels, chunk_bytes=1)
    (target,) = gradients(expected, [hidden], [upstream])
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(losses, expected, rtol=step, atol=4 * step)
    torch.testing.assert_close(found, target, rtol=2 * step, atol=4 * step)


def test_head_of_a_linear4bit_layer(device) -> None:
    layer = bitsandbytes.nn.Linear4bit(64, 96, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
    hidden, _, labels = inputs(3, 96, 64, torch.float32, device)
    losses = linear_cross_entropy(hidden, layer.weight, labels)
    torch.testing.assert_close(losses, F.cross_entropy(layer(hidden), labels, reduction="none"), rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    assert hidden.grad.isfinite().all() and layer.weight.grad is None


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_what_a_linear_layer_computes(hidden_dtype, torch_only, small_chunks) -> None:
    """Full training: an fp32 head, hidden states in bf16 (or in fp32, after an fp32 norm)."""
    hidden, weight, labels = inputs(8, 129, 32, torch.float32)
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels, reduction="sum", chunk_bytes=1)
        plain = F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    for actual, target, leaf in zip(
        gradients(ours, (hidden, weight), [torch.ones(())]),
        gradients(plain, (hidden, weight), [torch.ones(())]),
        (hidden, weight),
        strict=True,
    ):
        assert actual.dtype == leaf.dtype
        step = torch.finfo(torch.bfloat16).eps
        torch.testing.assert_close(actual, target, rtol=step, atol=step * float(target.abs().max()) / 2)


@pytest.mark.parametrize("scale", [0.5, 64.0])
def test_fp16_gradients_vanish_no_more_than_on_the_plain_path(scale, torch_only) -> None:
    """`scale`: loss scale over targets, 65,536 / 131,072 and / 1,024. Rows are more and more certain, down to no loss at all."""
    weight, labels = 0.35 * torch.randn(4099, 32), torch.arange(128)
    hidden = weight[labels] * torch.linspace(2.5, 6.0, 128)[:, None]
    leaves, upstream = (hidden.requires_grad_(), weight.requires_grad_()), torch.tensor(scale)
    with torch.autocast("cpu", torch.float16):
        ours = linear_cross_entropy(hidden, weight, labels, reduction="sum")
        plain = F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")
    # the truth, from logits that are rounded alike: what differs is what the gradients lose
    logits = F.linear(hidden.half(), weight.half()).double().detach()
    dlogits = (logits.softmax(1) - F.one_hot(labels, 4099)) * scale
    truth = (dlogits @ weight.detach().half().double(), dlogits.T @ hidden.detach().half().double())
    mine, theirs = gradients(ours, leaves, [upstream]), gradients(plain, leaves, [upstream])

    def lost(found: tuple[Tensor, ...]) -> list[int]:
        """How many rows are off by more than 2 %: of dhidden, and of dweight for the labels."""
        off = [((f - t).norm(dim=1) / t.norm(dim=1))[:128] for f, t in zip(found, truth, strict=True)]
        return [int((error > 0.02).sum()) for error in off]

    assert lost(theirs)[0] > 0, "the test is of rows that fp16 loses"
    assert all(m <= t for m, t in zip(lost(mine), lost(theirs), strict=True))


def test_fp16_weight_gradient_is_summed_beyond_its_range(device) -> None:
    """Every row pushes one token by 50 · 256 (FP16_SCALE): in fp16 the sum over a chunk would be infinite."""
    hidden, weight = torch.full((64, 4), 50.0, device=device), torch.zeros(9, 4, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.float16):
        loss = linear_cross_entropy(hidden, weight, torch.zeros(64, dtype=torch.int64, device=device), reduction="sum")
    loss.backward()
    expected = (torch.full((9, 1), 1 / 9) - F.one_hot(torch.tensor(0), 9)[:, None]) * 64 * 50.0
    torch.testing.assert_close(weight.grad.cpu(), expected.expand(9, 4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("upstream", [0.0, 1e-9, 1e7])
def test_fp16_holds_single_losses_whatever_comes_back(upstream, device, small_chunks) -> None:
    leaves = [t.detach().requires_grad_() for t in inputs(4, 63, 16, torch.float32, device)[:2]]
    labels = torch.tensor([5, 62, -100, 0], device=device)
    with torch.autocast(device.type, torch.float16):
        losses = linear_cross_entropy(*leaves, labels)
    copies = wide(*leaves)
    losses64 = reference.linear_cross_entropy(*copies, labels, None, None, -100)
    upstreams = [torch.full((4,), upstream, device=device)]
    for actual, target in zip(
        gradients(losses, leaves, upstreams), gradients(losses64, copies, upstreams), strict=True
    ):
        torch.testing.assert_close(actual.double(), target, rtol=0, atol=0.01 * float(target.abs().max()))


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probabilities_at_places(dtype, kernel, device, launches, monkeypatch) -> None:
    if not kernel:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    logits = (5.0 * torch.randn(4, 129)).to(device, dtype)
    rows, columns = torch.tensor([0, 0, 3, 1, 3], device=device), torch.tensor([128, 0, 7, 7, 128], device=device)
    expected = logits.double().log_softmax(-1)[rows, columns]
    found = log_probabilities(logits.clone(), rows, columns)
    assert found.dtype == torch.float32
    assert_close(found, expected, noise=16 * FP32_EPS * float(logits.abs().max()))
    if device.type == "cpu":
        assert launches == [KERNEL] * kernel
    assert log_probabilities(logits.clone(), rows[:0], columns[:0]).shape == (0,)


@pytest.mark.parametrize("label", [-1, -99, 63, 10**12])
def test_a_label_beyond_the_vocabulary(label, device) -> None:
    from frbio_lite.kernels.linear_cross_entropy import kernel

    hidden, weight, labels = inputs(3, 63, 16, torch.float32, device)
    labels[2] = label
    with pytest.raises(ValueError, match=f"label {label} is not in the vocabulary of 63"):
        check_labels(labels, 63)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=f"label {label} is not in the vocabulary of 63"):
            linear_cross_entropy(hidden, weight, labels)
    for module in (kernel, reference):  # where nobody waits to look, its row is NaN, and no other
        logits = torch.randn(3, 63, device=device)
        losses = module.cross_entropy_(logits, labels, None, -100, 1.0)
        assert losses.isnan().tolist() == logits.isnan().all(1).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 5)}, r"weight \[7, 4\] does not fit hidden \[2, 5\]"),
        ({"hidden": torch.zeros(4)}, r"does not fit hidden \[4\]"),
        ({"weight": torch.zeros(0, 4)}, r"weight \[0, 4\] does not fit"),
        ({"weight": torch.zeros(7, 4, dtype=torch.uint8)}, "weight is uint8"),
        ({"hidden": torch.zeros(2, 4, dtype=torch.int64)}, "hidden is int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels are int64 \[3\]: int64 \[2\] is needed"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels are int32"),
        ({"bias": torch.zeros(6)}, r"bias \[6\] does not fit weight \[7, 4\]"),
        ({"weight": torch.zeros(7, 4, device="meta")}, "weight on meta"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"softcap": float("nan")}, "softcap is nan"),
        ({"reduction": "mean"}, "reduction is 'mean'"),
    ],
)
def test_wrong_input_is_refused_in_one_line(change, message) -> None:
    right: dict[str, Any] = {
        "hidden": torch.zeros(2, 4), "weight": torch.zeros(7, 4), "labels": torch.zeros(2, dtype=torch.int64)
    }  # fmt: skip
    linear_cross_entropy(**right)
    with pytest.raises(ValueError, match=message) as refusal:
        linear_cross_entropy(**right | change)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "nf4", "adapted"])
def test_the_models_loss_is_that_of_its_logits(kind, torch_only, small_chunks, monkeypatch) -> None:
    """Tied heads, Gemma's soft-cap, a head in four bits, and one with adapters, which is no matrix."""
    model = tiny_model("gemma3" if kind == "gemma3" else "qwen3")
    monkeypatch.setattr(models, "SMALLEST_CHUNK", 2)
    monkeypatch.setattr(models, "LOGITS_BYTES", 1)
    if kind == "gemma3":
        model.config.get_text_config().final_logit_softcapping = 2.0
    if kind == "nf4":
        layer = bitsandbytes.nn.Linear4bit(64, 96, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight.data.copy_(model.lm_head.weight.detach())
        model.lm_head = layer.to("cpu")
    if kind == "adapted":
        model = models.attach_lora(model, recipe.Lora(rank=2, alpha=2, targets=["lm_head"]), seed=1)
        torch.nn.init.normal_(models.causal_lm(model).lm_head.lora_B["default"].weight)
    hidden = torch.randn(1, 5, 64, requires_grad=True)
    labels = torch.tensor([[5, 95, -100, 0, 7]])
    trained = [p for n, p in model.named_parameters() if p.requires_grad and ("lm_head" in n or "embed" in n)]
    plain = F.cross_entropy(models.logits(model, hidden[0]), labels[0], reduction="none")
    single = models.token_losses(model, hidden[0], labels[0])
    torch.testing.assert_close(single, plain, rtol=1e-5, atol=1e-5)
    leaves = [hidden, *(trained if kind != "nf4" else [])]
    assert len(leaves) == {"nf4": 1, "adapted": 3}.get(kind, 2), "a tied head is one parameter with the embedding"
    expected = torch.autograd.grad(plain.sum(), leaves)
    for loss in (single.sum(), models.summed_loss(model, hidden, labels)):
        torch.testing.assert_close(loss, plain.sum(), rtol=1e-5, atol=0)
        for actual, target in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            torch.testing.assert_close(actual, target, rtol=1e-4, atol=1e-5)


def tiny_model(kind: str) -> Any:
    config, model, extra = CLASSES[kind]
    shape = SHAPE | extra | {"vocab_size": 96, "hidden_size": 64, "pad_token_id": 0, "tie_word_embeddings": True}
    return model(config(**shape))

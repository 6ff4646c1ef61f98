"""The bytes that one micro-batch allocates, counted by running it on fake tensors: shapes and dtypes, but no memory and no GPU.

What runs is the real model, loss, checkpointing and autograd, as on the card: attention takes the kernel that CUDA takes, Triton
kernels are launched into nothing, so that what they allocate is counted and what they avoid is not.
"""

from __future__ import annotations

import importlib
import pkgutil
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frbio_lite import kernels, recipe
from frbio_lite.kernels import launch
from frbio_lite.kernels.nf4 import WORKSPACE as DEQUANTISED
from frbio_lite.memory import skeleton
from frbio_lite.model import Model, causal_lm, hidden_states, summed_loss

LAYERS, MIDDLE, AFTER = 3, 1, 3  # traced: the first, the last, and one between that stands for all others
HOST = "meta"  # stands for the host's memory, so that fake tensors there are told from those of the card
FLASH_CAPABILITY = 80  # from it on CUDA has flash attention
WIDE_HEAD = 192  # beyond it, flash attention has no backward on consumer cards (8.6 and 8.9)

KEPT, CASTS, LAYER, LOSS, WORKSPACE = TAGS = (
    "kept activations",
    "16-bit copies of weights",
    "activations of one layer",  # being computed, or again
    "logits chunk and gradients of the loss",
    "workspace",
)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes alive in storages that operations make, by tag, and remembers them where their sum was largest.

    `repeats`: how many decoder layers the one in the middle stands for. `known` is what is alive already: views of it are not
    counted, casts of it are told apart.
    """

    def __init__(self, known: list[Tensor], repeats: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tag, self.layer, self.recomputing = KEPT, -1, False
        self.live: Counter[str] = Counter()
        self.total = self.peak = self.host = 0
        self.at_peak: dict[str, int] = {}
        self._repeats = repeats
        self._known = {t.untyped_storage()._cdata for t in known}
        self._held: dict[int, tuple[str, int, int]] = {}  # tag, layer and bytes by storage
        self._passed = 0  # the storage that the layer in the middle gave to the last

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), tensor.device, function, args)
        return made

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and saying so at every operation takes time

    def enter(self, layer: int, given: Tensor | None = None) -> None:
        """A decoder layer begins its forward pass, or after the last, the loss: what is left of the layer before is kept.

        As much is left of each layer like the one in the middle; but what is `given` to the next is there in any case, and is
        kept only if it still is when that one has ended.
        """
        if self.tag == WORKSPACE:
            self.recomputing = True
            return
        passed = given.untyped_storage()._cdata if given is not None else 0
        for key, (tag, where, size) in self._held.items():
            if where == self.layer and tag in (LAYER, CASTS):
                repeats = self._repeats if where == MIDDLE and key != passed else 1
                self._keep(key, KEPT if tag == LAYER else tag, size * repeats)
        tag, where, size = self._held.get(self._passed, (HOST, -1, 0))
        if layer == AFTER and where == MIDDLE:  # else it is freed, and its place may be another's
            self._keep(self._passed, tag, size * self._repeats)
        self._passed = passed if self.layer == MIDDLE else 0
        self.tag, self.layer = LAYER, layer

    def _keep(self, key: int, tag: str, size: int) -> None:
        before, where, counted = self._held[key]
        self._held[key] = tag, where, size
        self._add(before, -counted)
        self._add(tag, size)

    def leave(self) -> None:
        self.recomputing = False

    def move(self, source: str, target: str, size: int) -> None:
        """Say that so many of the bytes at the peak belong under another tag."""
        size = min(size, self.at_peak.get(source, 0))
        self.at_peak[source] = self.at_peak.get(source, 0) - size
        self.at_peak[target] = self.at_peak.get(target, 0) + size

    def _count(self, storage: Any, device: torch.device, function: Any, args: Any) -> None:
        key = storage._cdata
        if key in self._known or key in self._held:
            return
        if device.type == HOST:  # the output of a layer is the input of the next: counted when the next begins
            self.host += storage.nbytes() * (self._repeats if self.layer == MIDDLE else 1)
            self._held[key] = HOST, -1, 0
        else:
            tag = self._tag_of(function, args)
            self._held[key] = tag, self.layer, storage.nbytes()
            self._add(tag, storage.nbytes())
        weakref.finalize(storage, self._free, key)

    def _add(self, tag: str, size: int) -> None:
        self.live[tag] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.live)

    def _tag_of(self, function: Any, args: Any) -> str:
        if self.tag in (KEPT, LAYER) and function is torch.ops.aten._to_copy.default:
            source = args[0].untyped_storage()._cdata
            return CASTS if source in self._known and args[0].is_floating_point() else self.tag
        return LAYER if self.recomputing else self.tag

    def _free(self, key: int) -> None:
        tag, _, size = self._held.pop(key)
        self.live[tag] -= size
        self.total -= size


def cuda_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, *, capability: int,
) -> Tensor:  # fmt: skip
    """scaled_dot_product_attention through the operator that CUDA takes it to, which runs on fake CPU tensors as well.

    [B, heads, T, head size] of queries, keys and values; a mask is bool [B, 1, T, T].
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    narrow = query.shape[-1] <= WIDE_HEAD or capability not in (86, 89)
    if attn_mask is None and query.dtype != torch.float32 and narrow and capability >= FLASH_CAPABILITY:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return cast(Tensor, flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0])
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    bias = None
    if attn_mask is not None:  # CUDA's kernel adds the mask, in the dtype of the queries, and autograd keeps that
        bias = torch.zeros(attn_mask.shape, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
        bias = bias.expand(-1, query.shape[1], -1, -1)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return cast(Tensor, efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0])


@contextmanager
def on_a_card(capability: int) -> Iterator[None]:
    """Inside, code meets fake CPU tensors as if they lay on a card of this compute capability."""
    real = torch.is_autocast_enabled
    with ExitStack() as stack:
        for module in _modules_of_kernels():
            if hasattr(module, "usable"):
                stack.enter_context(mock.patch.object(module, "usable", lambda *t: _usable(capability, *t)))
            if hasattr(module, "check_labels"):  # reads values, and only where labels lie on a CPU
                stack.enter_context(mock.patch.object(module, "check_labels", lambda *_: None))
        stack.enter_context(mock.patch.object(DEQUANTISED, "_held", {}))
        for kind in _kinds_of_kernels():
            stack.enter_context(mock.patch.object(kind, "run", lambda *_, **__: None))
        # PEFT asks for CUDA's autocast by asking for none
        patched = mock.patch.object(torch, "is_autocast_enabled", lambda *kind: real(*(kind or ("cpu",))))
        stack.enter_context(patched)
        # what kernels compare is whether two tensors lie in one place
        stack.enter_context(mock.patch.object(Tensor, "data_ptr", lambda tensor: tensor.untyped_storage()._cdata))
        attention = partial(cuda_attention, capability=capability)
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention))
        yield


def _usable(capability: int, *tensors: Tensor) -> bool:
    """`launch.usable` for a card of this capability."""
    dtypes = {t.dtype for t in tensors if t.dtype.is_floating_point}
    bf16 = torch.bfloat16 not in dtypes or capability >= launch.BF16_CAPABILITY
    return dtypes <= launch.DTYPES.keys() and bf16 and capability >= launch.CAPABILITIES[0] and launch._has_triton()


def _modules_of_kernels() -> list[Any]:
    """All packages of kernels, imported: what they import of `launch` is theirs by name."""
    names = [m.name for m in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}.")]
    return [importlib.import_module(name) for name in names]


def _kinds_of_kernels() -> list[Any]:
    if not launch._has_triton():
        return []
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    return [JITFunction, InterpretedFunction]


def trace(
    config: Any, settings: recipe.Train, dtype: torch.dtype, capability: int, windows: int, sequence_length: int, *,
    document_mask: bool = True, quantize_head: bool = False, kernels: bool = False, accumulates: bool = True,
) -> tuple[dict[str, int], int]:  # fmt: skip
    """(bytes by tag at the peak, bytes in the host's memory) beside weights, gradients and optimizer states.

    One micro-batch of `windows` windows, forward, loss and backward. `accumulates`: gradients of earlier ones are there, else
    each is freed when it is whole. `kernels`: with the fused ones. Layers beyond the third are counted, not run.
    """
    depth = config.get_text_config().num_hidden_layers
    model = skeleton.build(
        config, settings, dtype, quantize_head=quantize_head, kernels=kernels, layers=LAYERS, host=HOST
    )
    with FakeTensorMode(), on_a_card(capability):
        skeleton.materialise(model)
        model.train()
        known = _prepare_gradients(model, accumulates)
        batch = _batch(model, windows, sequence_length, document_mask)
        tensors = [part for part in tree_leaves(batch) if isinstance(part, Tensor)]
        live = Live([*known, *tensors], max(1, depth - LAYERS + 1))
        live._add(KEPT, sum(t.untyped_storage().nbytes() for t in tensors))
        for number, layer in enumerate(causal_lm(model).get_decoder().layers):
            layer.register_forward_pre_hook(partial(_begin, live, number), with_kwargs=True)
            layer.register_forward_hook(lambda *_: live.leave(), always_call=True)
        with live:
            run(model, live, *batch, dtype=dtype)
        live.move(KEPT, WORKSPACE, sum(t.untyped_storage().nbytes() for t in DEQUANTISED._held.values()))
    return {tag: live.at_peak.get(tag, 0) for tag in TAGS}, live.host


def _begin(live: Live, number: int, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    live.enter(number, given[0] if given else named["hidden_states"])


def run(model: Model, live: Live, ids: Tensor, positions: Tensor, mask: Any, *, dtype: torch.dtype) -> None:
    """Forward, loss and backward of one micro-batch, as `training.accumulate` does it, telling `live` where it is."""
    with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype, cache_enabled=False):
        hidden = hidden_states(model, ids, positions, mask)
        live.enter(AFTER)
        live.tag = LOSS
        loss = summed_loss(model, hidden, ids)
    del hidden
    live.tag = WORKSPACE
    loss.backward()  # type: ignore[no-untyped-call]


def _batch(model: Model, windows: int, length: int, document_mask: bool) -> tuple[Tensor, Tensor, Any]:
    """Token ids and positions [B, T], and where documents share windows a mask, bool [B, 1, T, T], for each kind of layer."""
    ids, positions = (torch.zeros(windows, length, dtype=torch.int64) for _ in range(2))
    if not document_mask:
        return ids, positions, None
    kinds = set(getattr(causal_lm(model).config.get_text_config(), "layer_types", None) or ["full_attention"])
    masks = {kind: torch.ones(windows, 1, length, length, dtype=torch.bool) for kind in kinds}
    return ids, positions, masks if len(kinds) > 1 else masks.popitem()[1]


def _prepare_gradients(model: Model, accumulate: bool) -> list[Tensor]:
    """Parameters, their quantisation constants, buffers, and the gradients that are there before."""
    known = [*model.parameters(), *model.buffers()]
    known += [tensor for parameter in model.parameters() for tensor in skeleton.constants(parameter)]
    for parameter in model.parameters():
        if parameter.requires_grad and accumulate:
            parameter.grad = torch.empty_like(parameter)
            known.append(parameter.grad)
        elif parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    return known

"""A merge put into a live model, block after block, nothing written: for the ablation and for the check of a written model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from frbio_lite import hub, model
from frbio_lite.errors import RequestError
from frbio_lite.kernels.interpolate import blend
from frbio_lite.merging.blocks import Block, scratch, workers
from frbio_lite.merging.inputs import FullModel, Inputs
from frbio_lite.merging.merger import Merger, Rounding
from frbio_lite.merging.methods import WeightedSum
from frbio_lite.merging.weights import NUMPY, Bytes, Weights
from frbio_lite.progress import Progress

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def write_into(live: model.Model, merger: Merger, ratio: float, rounding: Rounding | None, label: str = "") -> None:
    """Give each parameter of a live model (any device and dtype) the value it has when merged at `ratio`.

    With a `rounding` these are the values that `merge_models` writes, bit for bit, in the parameter's dtype; with None
    the unrounded fp32 ones. Head and embedding of the model are parted first where the merge parts them; a tied head
    is the embedding's parameter and follows it. `label` names the merge on the progress line, else its ratio does.
    Raises RequestError, before any value is changed, when the merge lacks a parameter of the model or its shape.
    """
    if merger.inputs.unties:
        model.untie(live)
    targets = _targets(live, merger.inputs)
    for name, target in targets.items():
        if name not in merger.rules or tuple(target.shape) != merger.inputs.shape(name):
            raise RequestError(
                f"{merger.inputs.base.directory} stores its tensors under other names or shapes than the model has in "
                f"memory ({name}): write the merged model with `frbio merge` and load that"
            )

    def put(part: Tensor, values: Tensor) -> bool:
        part.copy_(values)
        return True

    def shortcut(block: Block, part: Tensor) -> bool:
        return blend_there(block, part, merger, ratio, rounding)

    _each_block(targets, merger, ratio, rounding, f"merge {label or f'{ratio:g}'}", put, shortcut)


def blend_there(block: Block, part: Tensor, merger: Merger, ratio: float, rounding: Rounding | None) -> bool:
    """Merge a block in torch on the device of `part`, its place in the live model, from the bytes of the files: the same
    bits as numpy's, which streams files of any size without loading torch, in half the time.

    False, with nothing done, where the merge is no weighted sum of two stored tensors, or its values are not simply
    rounded to the live dtype: stochastically, to another dtype, to float16 (whose overflow is an error).
    """
    inputs, rule = merger.inputs, merger.rules[block.name]
    source = inputs.adapted[0]
    if len(inputs.adapted) > 1 or not isinstance(source, FullModel) or block.name in source.rows:
        return False
    written = None if rounding is None else merger.written(block.name, rounding)
    if written == "F16" or (rounding is not None and rounding.stochastic) or not isinstance(rule, WeightedSum):
        return False
    if written is not None and TORCH[written] != part.dtype:
        return False
    share = merger.factors[block.name] * ratio
    first, second = (1.0, 0.0) if share == 0.0 else rule.coefficients(merger.grams.get(block.name), share)
    held = block.name if block.name in source.weights else source.tied[block.name]
    places = [(inputs.base, inputs.stored(block.name)), (source.weights, held)]
    if part.is_cuda:
        base, adapted = (_stored(*place, block).to(part.device, copy=True) for place in places)
        blend(base, adapted, (first, second), part)
        return True
    terms = []
    for i, (place, weight) in enumerate(zip(places, (first, second), strict=True)):
        if weight != 0.0:
            terms.append(torch.from_numpy(scratch(i, block.count)).copy_(_stored(*place, block)).mul_(weight))
    part.copy_(terms[0].add_(terms[1]) if len(terms) == 2 else terms[0])
    return True


def _stored(weights: Weights, name: str, block: Block) -> Tensor:
    """A block as its file holds it, in this thread's buffer: use before reading on."""
    raw = weights.read(name, block.start, block.count)
    return torch.from_numpy(raw).view(TORCH[weights.stored_dtype(name)])


def differing(live: model.Model, merger: Merger, ratio: float, rounding: Rounding) -> str | None:
    """The first tensor of a live fp32 model that is not, bit for bit, what `write_into` would put there; else None."""
    targets = _targets(live, merger.inputs)
    for name, target in targets.items():
        if name not in merger.rules or tuple(target.shape) != merger.inputs.shape(name):
            return name
    if lost := sorted(merger.inputs.read_from.keys() - targets.keys()):  # a head that is tied again
        return lost[0]

    def same(part: Tensor, values: Tensor) -> bool:
        return part.cpu().view(torch.int32).equal(values.float().view(torch.int32))

    return _each_block(targets, merger, ratio, rounding, "compare", same)


def _targets(live: model.Model, inputs: Inputs) -> dict[str, Tensor]:
    """The parameters by their names in the base's files, and those buffers that the files hold."""
    prefix = hub.text_prefix(inputs.base.directory)
    stored = set(inputs.names)
    held = {prefix + name: b for name, b in live.named_buffers()}
    buffers = {name: b for name, b in held.items() if name in stored and inputs.is_float(name)}
    return {prefix + name: p.detach() for name, p in live.named_parameters()} | buffers


def _each_block(
    targets: dict[str, Tensor],
    merger: Merger,
    ratio: float,
    rounding: Rounding | None,
    label: str,
    do: Callable[[Tensor, Tensor], bool],
    shortcut: Callable[[Block, Tensor], bool] = lambda block, part: False,
) -> str | None:
    """`do(part of the target, merged block)` for all blocks; the first name for which it is false.

    Blocks for which `shortcut(block, part of the target)` is true are done by that.
    """
    merger.survey()
    flat = {name: target.view(-1) for name, target in targets.items()}
    blocks = [b for name in flat for b in merger.inputs.blocks(name)]

    def work(block: Block) -> bool:
        part = flat[block.name][block.start : block.start + block.count]
        if shortcut(block, part):
            return True
        merged = merger.merged(block, merger.inputs.read(block), ratio)
        if rounding is None:
            values = torch.from_numpy(merged)
        else:
            values = _tensor(merger.rounded(block, merged, rounding), merger.written(block.name, rounding))
        return do(part, values)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in each of the workers
    try:
        with Progress(label, sum(b.count for b in blocks), "weights") as bar, workers() as run:
            for block, fine in zip(blocks, run(work, blocks), strict=True):
                if not fine:
                    return block.name
                bar.advance(block.count)
    finally:
        torch.set_num_threads(threads)
    return None


def _tensor(raw: Bytes, dtype: str) -> Tensor:
    """What was rounded, in torch's type of the same bits; it shares their memory."""
    if dtype == "BF16":
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw.view(NUMPY[dtype]))

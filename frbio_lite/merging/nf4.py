"""The base as 4-bit training held it: NF4 and back, block by block (Dettmers et al. 2023, QLoRA, arXiv 2305.14314).

QLoRA trains an adapter on dequantise(quantise(W)), so that sum is what was trained; W + s B A is another model. Nothing
here is written in 4 bits.

A weight's 4-bit code depends on its own 64 neighbours alone, but their scales are quantised a second time with the mean
of all scales of the tensor. So one pass over a tensor collects its scales (fp32, 1/64 of its elements: 3 MB for a layer
of 12288 x 4096), and then each block is quantised and dequantised by itself: the whole tensor is never held.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from frbio_lite import hub
from frbio_lite.errors import RequestError
from frbio_lite.merging.blocks import BLOCK, Block, scratch
from frbio_lite.merging.weights import DTYPES, Floats, Weights

GROUP = 64  # weights that share a scale
GROUPS = 256  # scales that share a scale of theirs
KEPT = 4  # tensors whose scales are in memory


class Nf4Base:
    """The linear layers (`names`) of a base that `load_model(nf4=True)` holds in 4 bits. Safe to use from threads.

    Bits are those of bitsandbytes on one thread with fp32 weights; a GPU, or more threads, add the scales of a large tensor
    in another order, which can move their mean, and with it every weight, by its last bit. Blocks go in flat: the CPU
    kernel of bitsandbytes 0.50 takes wrong scales for rows of 32, 96, 160, … weights.
    """

    def __init__(self, base: Weights) -> None:
        """Raises RequestError when the architecture stores these layers transposed or under other names."""
        self.base = base
        self.names = linear_layers(base)
        self._recent: dict[str, Any] = {}
        self._lock = threading.Lock()

    def fill(self, block: Block, out: Floats) -> None:
        """The block, quantised and dequantised, fp32 [count], into `out`."""
        import torch
        from bitsandbytes import functional

        scales = self._scales(block.name)
        first = block.start // GROUP * GROUP
        end = block.start + block.count
        last = min(-(-end // GROUP) * GROUP, self.base.elements(block.name))
        values = scratch(-1, last - first)
        self.base.fill(block.name, first, values)
        packed, state = functional.quantize_4bit(torch.from_numpy(values), blocksize=GROUP, quant_type="nf4")
        state.absmax = scales[first // GROUP : -(-last // GROUP)]
        found = functional.dequantize_4bit(packed, state).reshape(-1)
        np.copyto(out, found[block.start - first : end - first].numpy())

    def _scales(self, name: str) -> Any:
        """The doubly quantised scale of each group of a tensor, a torch tensor, fp32 [groups]; the last ones are kept."""
        with self._lock:
            if name not in self._recent:
                if len(self._recent) >= KEPT:
                    del self._recent[next(iter(self._recent))]
                self._recent[name] = self._quantised_scales(name)
            return self._recent[name]

    def _quantised_scales(self, name: str) -> Any:
        import torch
        from bitsandbytes import functional

        total = self.base.elements(name)
        exact = np.empty(-(-total // GROUP), dtype=np.float32)
        for start in range(0, total, BLOCK):  # a multiple of GROUP
            count = min(BLOCK, total - start)
            values = scratch(-1, count)
            self.base.fill(name, start, values)
            whole = count // GROUP * GROUP
            place = exact[start // GROUP :][: -(-count // GROUP)]
            np.abs(values, out=values)[:whole].reshape(-1, GROUP).max(axis=1, out=place[: whole // GROUP])
            if whole < count:
                place[-1] = values[whole:].max()
        found = torch.from_numpy(exact)
        mean = found.mean()
        codes, state = functional.quantize_blockwise(found.sub_(mean), blocksize=GROUPS)
        return functional.dequantize_blockwise(codes, state).add_(mean)


def linear_layers(base: Weights) -> frozenset[str]:
    """The tensors of the layers that transformers converts to 4 bits: all linear ones but the head, as it decides.

    The model is built without weights. Raises RequestError when the architecture stores one transposed, or the base
    stores one under another name or not as floats.
    """
    import torch
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hub.load_config(base.directory))
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    replace_with_bnb_linear(model, kept, BitsAndBytesConfig(load_in_4bit=True))
    prefix = hub.text_prefix(base.directory)
    found = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear4bit))
    layers = {f"{prefix}{name}.weight": layer for name, layer in found}
    for name, layer in layers.items():
        if issubclass(layer.source_cls, Conv1D):
            raise RequestError(f"{base.directory} stores {name} transposed: use adapter_base bf16")
        if name not in base or base.stored_dtype(name) not in DTYPES:
            raise RequestError(
                f"{base.directory} stores its tensors under other names than the model has in memory ({name}), "
                "so what 4-bit training held of them is not known: use adapter_base bf16"
            )
    return frozenset(layers)

"""The model as training builds it, without its weights: on the meta device, or as fake tensors that only know their size.

The classes are transformers', PEFT's and bitsandbytes' own, put together as `model.load_model` and `training.prepare_model` do.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers import AutoHfQuantizer

from frbio_lite import nf4_head, recipe
from frbio_lite.kernels.swap import swap_kernels
from frbio_lite.model import Model, attach_lora
from frbio_lite.offload import checkpoint_layers
from frbio_lite.optim import trained_dtype

NF4_BLOCK = 64  # weights to a scale: bitsandbytes' default


def build(
    config: Any, settings: recipe.Train, dtype: torch.dtype, *, quantize_head: bool = False, kernels: bool = False,
    layers: int | None = None, host: str = "cpu",
) -> Model:  # fmt: skip
    """The model that `settings` train, on the meta device, all of it or with `layers` decoder layers.

    `quantize_head`: the recipe's of that name. `kernels`: the fused ones are bound. `host`: where inputs are offloaded to.
    """
    full = settings.method == "full"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shorten(config, layers),
            dtype=trained_dtype(settings.optimizer, dtype) if full else dtype,
            attn_implementation="sdpa",
        )
    if settings.method == "qlora":
        model = _in_nf4(model, dtype)
    if quantize_head:
        nf4_head.quantize_head(model, dtype)
    if settings.activation_checkpointing:
        checkpoint_layers(model, offload=settings.activation_checkpointing == "offload", host=host)
    model = model if full else attach_lora(model, settings.lora, 0)
    if kernels:
        swap_kernels(model, dtype)
    return model


def count(model: Model) -> int:
    """Parameters of the model as it is stored: unquantised, without adapters."""
    sizes = (
        parameter.quant_state.shape.numel() if hasattr(parameter, "quant_state") else parameter.numel()
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    )
    return int(sum(sizes))


def shorten(config: Any, layers: int | None) -> Any:
    """A copy of a configuration with so many decoder layers, of each kind in turn where a model has several."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if layers is not None and layers < text.num_hidden_layers:
        kinds = getattr(text, "layer_types", None)
        text.num_hidden_layers = layers
        if kinds:
            distinct = list(dict.fromkeys(kinds))
            text.layer_types = [distinct[i % len(distinct)] for i in range(layers)]
    return config


def _in_nf4(model: Model, dtype: torch.dtype) -> Model:
    """The same with 4-bit linear layers, as transformers replaces and bitsandbytes quantises them."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    quantizer = AutoHfQuantizer.from_config(settings)
    quantizer.preprocess_model(model, device_map=None)
    # bitsandbytes keeps its code table from the first call of a process: that call must not be one without data
    quantize_4bit(torch.zeros(NF4_BLOCK), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4")
    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight = module.weight.to(dtype)
            packed, state = quantize_4bit(weight, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4")
            module.weight = Params4bit(
                packed, quant_state=state, blocksize=NF4_BLOCK, quant_type="nf4", bnb_quantized=True
            )
    return quantizer.postprocess_model(model)


def constants(parameter: Tensor) -> list[Tensor]:
    """What a 4-bit parameter holds beside its codes: 8-bit scales, their scales and mean, and two tables of code values."""
    state = getattr(parameter, "quant_state", None)
    return [] if state is None else [t for t in tree_leaves(_parts(state)) if isinstance(t, Tensor)]


def _parts(state: Any) -> dict[str, Any]:
    parts = {name: getattr(state, name) for name in ("absmax", "code", "offset")}
    return parts if state.state2 is None else {**parts, "state2": _parts(state.state2)}


def materialise(model: Model) -> None:
    """Replace all tensors of a model on the meta device by empty ones; shared parameters stay shared.

    Under FakeTensorMode these take no memory.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = _like(parameter)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _like(parameter: Tensor) -> torch.nn.Parameter:
    new: Any = torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
    if hasattr(parameter, "quant_state"):  # no Params4bit: that cannot be a fake
        new.quant_state = copy.copy(parameter.quant_state)
        for state in (new.quant_state, new.quant_state.state2):
            for name, tensor in vars(state).items():
                if isinstance(tensor, Tensor):
                    setattr(state, name, torch.empty(tensor.shape, dtype=tensor.dtype))
    return cast(torch.nn.Parameter, new)

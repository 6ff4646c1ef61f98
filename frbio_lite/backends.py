"""What loads the base for training, beside ourselves: `base.backend: unsloth`, and what speaks against a choice in `base`.

    check_backend(recipe.base, recipe.train)                       # before the first hour of work
    model = load_unsloth(directory, settings, packing, dtype, seed)

unsloth brings its own kernels and its own way of loading; our loop, data and loss do the rest, and the adapter that is saved is a
standard one. It is imported here alone and only when asked for: importing it changes other libraries in the whole process.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from frbio_lite import recipe
from frbio_lite.device import pick_device
from frbio_lite.errors import RequestError
from frbio_lite.hub import text_prefix
from frbio_lite.model import Model, hidden_states

DECODER_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEAK = 1e-3  # of the hidden states' size: what another document's tokens may change is nothing but rounding


def check_backend(base: recipe.Base, train: recipe.Train) -> None:
    """Raise RequestError when `base.backend` or `base.quantize_head` cannot be had with this training, on this machine."""
    if why := recipe.conflict(base, train):
        raise RequestError(why)
    if base.backend == "unsloth" and importlib.util.find_spec("unsloth") is None:
        raise RequestError('base.backend: unsloth is not installed: pip install "frbio-lite[unsloth]", or use native')
    if base.backend == "unsloth" and pick_device().type != "cuda":
        raise RequestError("base.backend: unsloth needs a GPU and this machine has none: use native")


def load_unsloth(
    directory: Path, settings: recipe.Train, packing: recipe.Packing, dtype: torch.dtype, seed: int
) -> Model:
    """The base with fresh adapters in fp32, as unsloth loads it. Raises RequestError when it does not load, or its attention
    lets packed documents see each other although `packing.document_mask` is on."""
    if text_prefix(directory):
        raise RequestError("base.backend: unsloth would adapt this model's part for images as well: use native")
    FastLanguageModel = importlib.import_module("unsloth").FastLanguageModel

    lora = settings.lora
    checkpointing: bool | str = "unsloth" if settings.activation_checkpointing else False
    try:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(directory),
            max_seq_length=packing.sequence_length,
            dtype=dtype,
            load_in_4bit=settings.method == "qlora",
            use_exact_model_name=True,  # it would load other weights under some names
            trust_remote_code=False,
            use_gradient_checkpointing=checkpointing,
        )
        adapted: Any = FastLanguageModel.get_peft_model(
            model,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=DECODER_LINEARS if lora.targets == "all-linear" else lora.targets,
            bias="none",
            use_gradient_checkpointing=checkpointing,
            random_state=seed,
            max_seq_length=packing.sequence_length,
        )
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise RequestError(
            f"base.backend: unsloth does not load {directory}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # 16-bit adapters would swallow small updates
            parameter.data = parameter.data.float()
    if packing.document_mask:
        check_documents_apart(adapted, dtype)
    return adapted


def check_documents_apart(model: Model, dtype: torch.dtype) -> None:
    """Raise RequestError unless hidden states of a packed document are independent of the document before it."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    second = torch.arange(8, 16, device=device)
    positions = torch.arange(16, device=device)[None] % 8
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        one, other = (
            hidden_states(model, torch.cat((first, second))[None], positions)[0, 8:].float()
            for first in (torch.arange(8, device=device), torch.arange(16, 24, device=device))
        )
    model.train(training)
    if float((one - other).norm()) > LEAK * float(one.norm()):
        raise RequestError(
            "base.backend: unsloth's attention lets packed documents see each other: set packing.document_mask: false "
            "to accept that, or use native"
        )

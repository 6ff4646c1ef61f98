"""The language model: load it in 16 or 32 bits or NF4, attach adapters, run it over packed documents.

A model is a directory with config.json, *.safetensors and a tokenizer (`hub.fetch` makes one of a Hub id). Nothing here
executes code that came with a model.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from frbio_lite import recipe
from frbio_lite.artifacts import write_json
from frbio_lite.errors import RequestError
from frbio_lite.hub import check_parent, copy_tokenizer, is_adapter, load_config, text_prefix
from frbio_lite.kernels.linear_cross_entropy import SMALLEST_CHUNK, linear_cross_entropy

if TYPE_CHECKING:
    from peft import PeftModel  # peft takes seconds to load, which models without adapters need not wait for

Model = Any  # a transformers causal LM, or a PeftModel around one
Tokenizer = Any

LOGITS_BYTES = 256 * 2**20  # logits held at once while computing the loss
for noisy in ("datasets", "httpx"):  # their retries; what is wrong is said once, by us
    logging.getLogger(noisy).setLevel(logging.CRITICAL)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def check_positions(config: Any, sequence_length: int) -> None:
    """Raise RequestError when a sequence would reach beyond the model's positions."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and sequence_length > limit:
        raise RequestError(
            f"packing.sequence_length: {sequence_length} is beyond the model's {limit} positions: use {limit} or less"
        )


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory. Raises RequestError when there is none, or it has no end-of-text token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{directory} has no usable tokenizer: {str(error).splitlines()[0]}") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # made of the configuration alone, it knows no piece
        raise RequestError(
            f"{directory} has no tokenizer: bring tokenizer.json and tokenizer_config.json from where it came"
        )
    if tokenizer.eos_token_id is None:
        raise RequestError(
            f"the tokenizer of {directory} has no end-of-text token (eos_token), which separates documents"
        )
    return tokenizer


def leading_tokens(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text: the begin-of-text token of Gemma and Llama, nothing for Qwen.

    Models that were trained with it answer nonsense without it.
    """
    return [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id][:1]


def load_model(directory: Path, *, dtype: torch.dtype, device: torch.device, nf4: bool = False) -> Model:
    """A causal LM with weights in `dtype`; with `nf4` all its linear layers but the head are in 4 bits, doubly quantised.

    Of a model of text and images (`hub.TEXT_PREFIXES`) this is the text model; the rest is not read. Raises RequestError
    when the weights do not load, or do not make a whole model.
    """
    quantization = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if nf4
        else None
    )
    prefix = text_prefix(directory)
    part = {"config": load_config(directory), "key_mapping": {f"^{re.escape(prefix)}": ""}} if prefix else {}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            **part,
            output_loading_info=True,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="sdpa",
            quantization_config=quantization,
            device_map={"": device} if nf4 else None,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RequestError(
            f"{directory} does not load as a causal language model: {str(error).splitlines()[0]}"
        ) from error
    if missing := sorted(found["missing_keys"]):  # they would hold random numbers
        raise RequestError(f"{directory} does not load as a causal language model: it has no tensor for {missing[0]}")
    return (model if nf4 else model.to(device)).eval()


def save_model(model: Model, base: Path, directory: Path) -> None:
    """Write a trained causal LM in the dtypes it has, with the tokenizer of `base`, under its tensor names.

    The rest of a model of text and images goes with it as it was, so that the whole loads as before.
    """
    copy_tokenizer(base, directory)
    if not (prefix := text_prefix(base)):
        model.save_pretrained(directory)
        return
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    state = {prefix + n: t.contiguous() for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys() if not name.startswith(prefix)}  # noqa: SIM118
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for part in (config, config["text_config"]):
        part.pop("torch_dtype", None)
        part["dtype"] = str(model.dtype).removeprefix("torch.")
    write_json(directory / "config.json", config)


def untie(model: Model) -> None:
    """Give a head that shares the embedding's parameter one of its own, equal to it; nothing happens where it has one."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=head.weight.requires_grad)


def attach_lora(model: Model, lora: recipe.Lora, seed: int) -> PeftModel:
    """Freeze the model and add LoRA adapters in fp32, with B = 0, so that it computes what it did before.

    Raises RequestError on targets that the model lacks.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise RequestError(
            f"train.lora.targets: {lora.targets!r} names no linear layer of this model: {str(error).splitlines()[0]}"
        ) from error


def load_adapter(model: Model, base: Path, directory: Path) -> PeftModel:
    """Put a saved adapter on the loaded model of `base`, frozen. Raises RequestError when it does not belong to this base."""
    if not is_adapter(directory):
        raise RequestError(f"{directory} is no adapter (it has no adapter_config.json): pass a whole model as --model")
    check_parent(base, directory)
    from peft import PeftModel, get_peft_model_state_dict

    try:
        adapted = PeftModel.from_pretrained(model, str(directory), local_files_only=True).eval()
        with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise RequestError(
            f"the adapter {directory} does not belong to the base {base}: {str(error).splitlines()[0]}"
        ) from error
    loaded = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    # peft leaves what does not fit aside; beside adapters on embedding or head it saves the base's own weight of them
    copies = {key for key in saved if key.endswith((".base_layer.weight", "embed_tokens.weight", "lm_head.weight"))}
    if strange := sorted((saved - copies) ^ (loaded - copies)):
        raise RequestError(
            f"the adapter {directory} does not belong to the base {base}: {strange[0]} is in one of them only"
        )
    return adapted


def causal_lm(model: Model) -> Model:
    """The transformers model inside a PeftModel (its adapters stay active), or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


def hidden_states(
    model: Model,
    input_ids: Tensor,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | dict[str, Tensor] | None = None,
    keys: Any = None,
) -> Tensor:
    """Last hidden states, [B, T, H] in the model's dtype, of `input_ids` [B, T] (int64), before the head.

    `position_ids` [B, T] restart at 0 where a document begins; attention then stays within each document (transformers
    reads the boundaries from the positions when there is no attention mask and no cache; tests hold it for each architecture).
    `attention_mask`: bool [B, 1, T, S], true where a position is seen, or one for each of the configuration's layer types.
    `keys`: a cache in transformers' sense; each layer gives its keys and values to `update` and attends to what that returns.
    """
    return cast(
        Tensor,
        causal_lm(model)
        .get_decoder()(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=keys,
            use_cache=False,
        )
        .last_hidden_state,
    )


def logits(model: Model, hidden: Tensor) -> Tensor:
    """fp32 logits [..., V] of hidden states [..., H], with the final soft-cap of the models that have one."""
    scores = causal_lm(model).get_output_embeddings()(hidden).float()
    cap = _softcap(model)
    return cast(Tensor, torch.tanh(scores / cap) * cap if cap else scores)


def _softcap(model: Model) -> float | None:
    return getattr(causal_lm(model).config.get_text_config(), "final_logit_softcapping", None) or None


def token_losses(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, fp32 [N], of hidden states [N, H] against labels [N] (int64; -100 gives 0)."""
    return _losses(model, hidden, labels, "none")


def summed_loss(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """Sum of the token losses of [B, T, H] hidden states and [B, T] labels (int64; -100 gives 0), logits a chunk at a time."""
    return _losses(model, hidden.flatten(0, 1), labels.flatten(), "sum")


def _losses(model: Model, hidden: Tensor, labels: Tensor, reduction: str) -> Tensor:
    head = causal_lm(model).get_output_embeddings()
    if not _is_matrix(head):
        return _losses_of_module(model, hidden, labels, reduction)
    return linear_cross_entropy(
        hidden, head.weight, labels, bias=head.bias, softcap=_softcap(model), reduction=reduction, chunk_bytes=LOGITS_BYTES,
    )  # fmt: skip


def _is_matrix(head: Any) -> bool:
    """Whether the head is its weight, in floats or four bits, and no more: adapters on it are not."""
    return isinstance(head, torch.nn.Linear) and (
        head.weight.is_floating_point() or getattr(head.weight, "quant_state", None) is not None
    )


def _losses_of_module(model: Model, hidden: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The losses through a head that is called; its logits are recomputed by chunks for the backward."""

    def part_losses(hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits(model, hidden), labels, reduction=reduction, ignore_index=-100)

    vocabulary = causal_lm(model).config.get_text_config().vocab_size
    chunk = max(SMALLEST_CHUNK, LOGITS_BYTES // (4 * vocabulary))
    parts = zip(torch.split(hidden, chunk), torch.split(labels, chunk), strict=True)
    losses = [checkpoint(part_losses, *part, use_reentrant=False) for part in parts]
    return torch.cat(losses) if reduction == "none" else torch.stack(losses).sum()

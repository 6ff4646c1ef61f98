"""The language model: fetch it, load it in 16 or 32 bits or NF4, attach adapters, run it over packed documents.

A model is a directory with config.json, *.safetensors and a tokenizer; `fetch` makes one of a Hub id. Nothing here executes
code that came with a model, and pickle checkpoints are refused.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from frbio_lite import recipe
from frbio_lite.artifacts import MANIFEST, canonical_hash, file_sha256
from frbio_lite.errors import RequestError

Model = Any  # a transformers causal LM, or a PeftModel around one
Tokenizer = Any

LOGITS_BYTES = 256 * 2**20  # fp32 logits held at once while computing the loss
SMALLEST_CHUNK = 256  # positions; fewer leave the matrix product idle
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
FETCHED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    *TOKENIZER_FILES,
)
IDENTIFYING = ("config.json", "adapter_config.json", "tokenizer.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

for noisy in ("huggingface_hub", "datasets", "httpx"):  # their retries; what is wrong is said once, by us
    logging.getLogger(noisy).setLevel(logging.CRITICAL)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def fetch(name: str, revision: str | None = None) -> Path:
    """The directory of a model or adapter: `name` itself when it is one, else a snapshot of that Hub repository.

    Raises RequestError when it is not there, not reachable, or holds no safetensors.
    """
    directory = Path(name)
    if not directory.is_dir():
        if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise RequestError(
                f"no model directory {name}: pass an existing directory or a Hub id such as Qwen/Qwen3-0.6B-Base"
            )
        directory = _snapshot(name, revision)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = next((p.name for pattern in PICKLES for p in directory.glob(pattern)), None)
        detail = f"{pickled} is a pickle, which can execute code" if pickled else "it holds no *.safetensors"
        raise RequestError(
            f"{name} has no safetensors weights: {detail}; convert it with `save_pretrained(safe_serialization=True)`"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):  # reads the header and compares it with the file's size
                pass
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{file} is damaged ({error}): download or copy it again") from error
    return directory


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FETCHED)))
    except GatedRepoError as error:
        raise RequestError(
            f"{name} asks for its terms to be accepted: accept them on its Hub page, then run `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise RequestError(f"the Hub has no model {name}" + (f" at revision {revision}" if revision else "")) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise RequestError(
            f"{name} is not in the local cache and the Hub is not reachable: where there is a network run "
            f"`hf download {name} --local-dir DIR`, bring DIR here and pass it as base.model"
        ) from error


def digest(directory: Path) -> str:
    """Hash of a model's or adapter's weights, configuration and vocabulary: the same wherever it came from."""
    files = [p for p in directory.iterdir() if p.suffix == ".safetensors" or p.name in IDENTIFYING]
    return canonical_hash({p.name: _content(p) for p in files})


def _content(path: Path) -> str:
    """sha256 of a file; the Hub's cache keeps weights under theirs, so they need not be read again."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    status = blob.stat()
    return _hashed(blob, status.st_size, status.st_mtime_ns)


@lru_cache
def _hashed(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def load_config(directory: Path) -> Any:
    """The model's configuration. Raises RequestError when it is missing, broken or of an architecture transformers lacks."""
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{directory} has no usable config.json: {str(error).splitlines()[0]}") from error


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


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy tokenizer and generation settings from one model directory to another."""
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def load_model(directory: Path, *, dtype: torch.dtype, device: torch.device, nf4: bool = False) -> Model:
    """A causal LM with weights in `dtype`; with `nf4` all its linear layers but the head are in 4 bits, doubly quantised.

    Raises RequestError when the weights do not load.
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
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
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
    return (model if nf4 else model.to(device)).eval()


def attach_lora(model: Model, lora: recipe.Lora, seed: int) -> PeftModel:
    """Freeze the model and add LoRA adapters in fp32, with B = 0, so that it computes what it did before.

    Raises RequestError on targets that the model lacks.
    """
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


def is_adapter(directory: Path) -> bool:
    return (directory / "adapter_config.json").is_file()


def read_adapter_config(directory: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RequestError(f"{directory} has no readable adapter_config.json: {error}") from error


def load_adapter(model: Model, base: Path, directory: Path) -> PeftModel:
    """Put a saved adapter on the loaded model of `base`, frozen. Raises RequestError when it does not belong to this base."""
    if not is_adapter(directory):
        raise RequestError(f"{directory} is no adapter (it has no adapter_config.json): pass a whole model as --model")
    check_parent(base, directory)
    try:
        adapted = PeftModel.from_pretrained(model, str(directory), local_files_only=True).eval()
        with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise RequestError(
            f"the adapter {directory} does not belong to the base {base}: {str(error).splitlines()[0]}"
        ) from error
    loaded = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if strange := sorted(saved ^ loaded):  # peft leaves what does not fit aside
        raise RequestError(
            f"the adapter {directory} does not belong to the base {base}: {strange[0]} is in one of them only"
        )
    return adapted


def check_parent(base: Path, adapted: Path) -> None:
    """Raise RequestError when weights that frbio_lite trained say that they were trained on another base."""
    path = adapted / MANIFEST
    if not path.is_file():
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))["parents"].get("base")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is damaged: {error}") from error
    if recorded is not None and recorded != digest(base):
        raise RequestError(f"{adapted} was trained on another base than {base}: pass the base it was trained on")


def causal_lm(model: Model) -> Model:
    """The transformers model inside a PeftModel (its adapters stay active), or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def hidden_states(model: Model, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Last hidden states, [B, T, H] in the model's dtype, of `input_ids` [B, T] (int64), before the head.

    `position_ids` [B, T] restart at 0 where a document begins; attention then stays within each document (transformers
    reads the boundaries from the positions when there is no attention mask and no cache; tests hold it for each architecture).
    """
    return cast(
        Tensor,
        causal_lm(model)
        .get_decoder()(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        .last_hidden_state,
    )


def logits(model: Model, hidden: Tensor) -> Tensor:
    """fp32 logits [..., V] of hidden states [..., H], with the final soft-cap of the models that have one."""
    inner = causal_lm(model)
    scores = inner.get_output_embeddings()(hidden).float()
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return cast(Tensor, torch.tanh(scores / cap) * cap if cap else scores)


def token_losses(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, fp32 [N], of hidden states [N, H] against labels [N] (int64; -100 gives 0)."""
    return F.cross_entropy(logits(model, hidden), labels, reduction="none", ignore_index=-100)


def summed_loss(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """Sum of the token losses of [B, T, H] hidden states and [B, T] labels; logits are recomputed by chunks for the backward."""
    rows, targets = hidden.flatten(0, 1), labels.flatten()
    vocabulary = causal_lm(model).get_output_embeddings().weight.shape[0]
    chunk = max(SMALLEST_CHUNK, LOGITS_BYTES // (4 * vocabulary))
    if rows.shape[0] <= chunk:
        return token_losses(model, rows, targets).sum()
    total = torch.zeros((), device=rows.device)
    for start in range(0, rows.shape[0], chunk):
        part = slice(start, start + chunk)
        total = total + checkpoint(_loss_sum, model, rows[part], targets[part], use_reentrant=False)
    return total


def _loss_sum(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    return token_losses(model, hidden, labels).sum()


def cache_directory() -> Path:
    """Where what is made once for all runs is kept: $FRBIO_CACHE, or frbio_lite in the user's cache directory."""
    if "FRBIO_CACHE" in os.environ:
        return Path(os.environ["FRBIO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frbio_lite"

"""Tiny real models and adapters, made fresh for each test from its seed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from frbio_lite.merging import Parameters, Profile, Rounding, by_method, merge_models, open_inputs, output_dtype

VOCABULARY = 96


def config(*, tied: bool = True, **changes: Any) -> Qwen3Config:
    settings = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
    )
    return Qwen3Config(**{**settings, **changes})


def new_model(seed: int, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Qwen3ForCausalLM:
    """Weights large enough that logits differ visibly; norms are not all one, so that each tensor counts."""
    torch.manual_seed(seed)
    made = Qwen3ForCausalLM(config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else torch.randn_like(parameter) * 0.15)
    return made.to(dtype)


def save_base(directory: Path, seed: int = 0, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    new_model(seed, dtype=dtype, **settings).save_pretrained(directory)
    return directory


def save_adapted(
    directory: Path, base: Path, seed: int = 1, size: float = 0.05, dtype: torch.dtype | None = None
) -> Path:
    """The base with noise of a given size on every tensor, as full-parameter training leaves it."""
    torch.manual_seed(seed)
    model = load(base, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size * parameter.std())
    model.to(dtype or next(iter(tensors(base).values())).dtype).save_pretrained(directory)
    return directory


def save_adapter(directory: Path, base: Path, seed: int = 2, **settings: Any) -> Path:
    """A LoRA adapter whose A and B are both random, so that it changes what the model computes."""
    torch.manual_seed(seed)
    chosen = dict(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load(base, torch.float32), LoraConfig(**{**chosen, **settings}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.1)
                elif "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(directory)
    return directory


def load(directory: Path, dtype: torch.dtype) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(directory, dtype=dtype, use_safetensors=True).eval()


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def input_ids(seed: int = 3) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(seed))


def merge(
    base: Path, adapted: Path | list[Path], method: str, ratio: float, dtype: Any, directory: Path, **how: Any
) -> dict[str, Any]:
    """Merge to disk in one call; `how`: parameters, profile, adapter_base, vocabulary, or what merge_models takes."""
    inputs = open_inputs(
        base,
        adapted if isinstance(adapted, list) else [adapted],
        **{key: how.pop(key) for key in ("adapter_base", "vocabulary") if key in how},
    )
    merger = by_method(inputs, method, how.pop("parameters", Parameters()), how.pop("profile", Profile()))
    rounding = Rounding(output_dtype(dtype), how.pop("stochastic", False), how.pop("seed", 17))
    return merge_models(merger, directory, ratio=ratio, rounding=rounding, description={"method": method}, **how)

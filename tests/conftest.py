"""Tiny real things for the tests: a byte-level tokenizer, models of each supported class, packed tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from frbio_lite.packing import PackedTokens

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings

FRENCH = [
    "Le patient reçoit 10 µg/kg de sufentanil, puis 2,5 mg de midazolam.",
    "La fièvre dépasse 38,5 °C ; la CRP est à 140 mg/L et l'œdème persiste.",
    "Où naît le nerf phrénique ? Il naît des racines cervicales C3 à C5.",
    "L'eau bout à 100 °C au niveau de la mer, et la Loire se jette dans l'Atlantique.",
]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 8, "max_position_embeddings": 256}  # fmt: skip
CLASSES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {}),
}


def build_tokenizer(texts: list[str], vocabulary: int = 320) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(FRENCH)


@pytest.fixture
def make_base(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """`make_base("qwen3", tied=True, dtype=torch.bfloat16, name="base", seed=0)` → a model directory of random weights."""

    def make(kind: str = "qwen3", tied: bool = True, dtype: torch.dtype = torch.float32, name: str = "base", seed: int = 0) -> Path:
        config_class, model_class, extra = CLASSES[kind]
        torch.manual_seed(seed)
        config = config_class(vocab_size=len(tokenizer), tie_word_embeddings=tied, bos_token_id=tokenizer.eos_token_id,
                              eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id, **SHAPE, **extra)  # fmt: skip
        model: PreTrainedModel = model_class(config)
        with torch.no_grad():  # larger than the usual initialisation, so that logits differ well
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.2)
        model.to(dtype).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def write_packed(directory: Path, documents: list[list[int]], sequence_length: int, end: int) -> PackedTokens:
    """Pack token lists as the packing stage does: each with its end token, best-fit decreasing."""
    import numpy as np

    from frbio_lite.packing import _write, plan_windows

    directory.mkdir(parents=True, exist_ok=True)
    stream = np.array([t for d in documents for t in [*d, end]], dtype=np.uint16)
    lengths = np.array([len(d) + 1 for d in documents], dtype=np.int64)
    plan, _ = plan_windows(np.cumsum(lengths) - lengths, lengths, sequence_length)
    _write(directory, stream, plan, sequence_length, end)
    return PackedTokens(directory)


@pytest.fixture
def make_packed(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """`make_packed(documents=60, sequence_length=64)` → a directory of packed random documents of 3 to 150 tokens."""

    def make(documents: int = 60, sequence_length: int = 64, seed: int = 0, name: str = "packed") -> Path:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 150, (documents,), generator=generator).tolist()
        texts = [torch.randint(1, len(tokenizer), (n,), generator=generator).tolist() for n in lengths]
        write_packed(tmp_path / name, texts, sequence_length, tokenizer.eos_token_id)
        return tmp_path / name

    return make

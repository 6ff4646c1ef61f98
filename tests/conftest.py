"""Fixtures that make tiny models and packed tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network

import pytest
import torch
from tiny import CLASSES, FRENCH, SHAPE, build_tokenizer, write_packed
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()  # tests read what a command prints, and save models themselves
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(FRENCH)


@pytest.fixture
def make_base(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """`make_base("qwen3", tied=True, dtype=torch.bfloat16, name="base", seed=0)` → a model directory of random weights."""

    def make(
        kind: str = "qwen3", tied: bool = True, dtype: torch.dtype = torch.float32, name: str = "base", seed: int = 0
    ) -> Path:
        config_class, model_class, extra = CLASSES[kind]
        torch.manual_seed(seed)
        end = tokenizer.eos_token_id
        ids = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
        config = config_class(tie_word_embeddings=tied, **ids, **SHAPE, **extra)
        model: PreTrainedModel = model_class(config)
        with torch.no_grad():  # larger than the usual initialisation, so that logits differ well
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.2)
        model.to(dtype).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


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

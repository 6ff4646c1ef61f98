from __future__ import annotations

import pytest
from eval_models import make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model() -> Qwen3ForCausalLM:
    return make_model()

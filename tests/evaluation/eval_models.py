"""A tiny tokenizer and model, made here, and the naive scorer that the tests compare with."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SENTENCES = [
    "Le foie produit la bile et le pancréas sécrète l'insuline après le repas.",
    "La kaliémie du patient est élevée : 6,8 mmol/L, à contrôler dès ce soir.",
    "Question : quel organe filtre le sang ?\nRéponse : le rein, où naît l'urine.",
    "Paris est sur la Seine, Lyon au confluent du Rhône et de la Saône.",
]
POSITIONS = 64


def make_tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def make_model(seed: int = 0, positions: int = POSITIONS) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=420,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


def reference(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """Sum of log p of the choice's tokens: one sequence, all logits, no batch, no padding."""
    spaces = len(prompt) - len(prompt.rstrip())
    context, continuation = prompt[: len(prompt) - spaces], prompt[len(prompt) - spaces :] + choice
    head = tokenizer(context, add_special_tokens=False)["input_ids"]
    tail = tokenizer(context + continuation, add_special_tokens=False)["input_ids"][len(head) :]
    sequence = ((head or [tokenizer.eos_token_id]) + tail)[-(POSITIONS + 1) :]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence[:-1]])).logits[0].float()
    every = torch.log_softmax(logits, dim=-1)
    start = len(sequence) - 1 - len(tail)
    return sum(every[start + n, token].item() for n, token in enumerate(tail))

"""The embedded world's model before it has read anything: a byte-level BPE tokenizer and a random Qwen3 of 0.75 million weights.

frbio run demo        trains it on the general part first, then keeps it as the base model named `demo`
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from frbio_lite.demo.world import documents

VOCABULARY = 2048
END = "<|endoftext|>"
SEED = 1  # the base's texts; recipes use other seeds, so that what they hold out was not read before
COPIES = 4  # passes over the general facts that the tokenizer learns its pieces from


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from general texts alone, as a real base's is: medical words fall into several pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d["text"] for d in documents("general", SEED, COPIES)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def make_config(vocabulary: int, end: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        rope_theta=10_000.0,
    )


def write_untrained(directory: Path) -> dict[str, int]:
    """Write tokenizer, configuration and random bf16 weights to `directory`; the same bytes each time."""
    tokenizer = make_tokenizer()
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(make_config(len(tokenizer), tokenizer.eos_token_id)).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}

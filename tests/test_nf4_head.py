"""Embeddings and head in NF4: rows as in the matrix dequantised whole, one tensor where tied, a loss near the 16-bit one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file
from tiny import CLASSES
from transformers import PreTrainedTokenizerFast

from frbio_lite import merging, model, training
from frbio_lite.errors import RequestError
from frbio_lite.kernels.nf4 import dequantise
from frbio_lite.nf4_head import NF4Embedding, NF4Head, dequantise_rows, quantize_head
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Base, Packing, Train

Make = Callable[..., Path]
CPU = torch.device("cpu")
WIDTH = 64  # of 32, bitsandbytes' own dequantisation on a CPU takes wrong scales


def loaded(kind: str, tokenizer: PreTrainedTokenizerFast, place: Path, tied: bool = True, width: int = WIDTH) -> Any:
    """A 4-bit model as training loads it, of random weights."""
    save(kind, tokenizer, place, tied, width)
    return model.load_model(place, dtype=torch.float32, device=CPU, nf4=True)


def save(kind: str, tokenizer: PreTrainedTokenizerFast, place: Path, tied: bool = True, width: int = WIDTH) -> None:
    config_class, model_class, extra = CLASSES[kind]
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    shape = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256}  # fmt: skip
    torch.manual_seed(0)
    made = model_class(config_class(vocab_size=len(tokenizer), tie_word_embeddings=tied, **{**ids, **shape, **extra}))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.1)
    made.save_pretrained(place)
    tokenizer.save_pretrained(place)


@pytest.mark.parametrize("blocksize", [32, 64])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_whole_matrix(blocksize: int, nested: bool, dtype: torch.dtype) -> None:
    weight = torch.randn(333, 192) * torch.linspace(0.01, 30.0, 333)[:, None]
    packed, state = functional.quantize_4bit(weight, blocksize=blocksize, compress_statistics=nested, quant_type="nf4")
    rows = torch.tensor([0, 332, 7, 7, 255, 256, 1])
    whole = dequantise(packed, state, dtype)
    assert torch.equal(dequantise_rows(packed, state, rows, dtype), whole[rows])
    assert dequantise_rows(packed, state, rows[:0], dtype).shape == (0, 192)


@pytest.mark.parametrize("kind", sorted(CLASSES))
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_with_its_dequantised_matrices(
    kind: str, tied: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    quantised = loaded(kind, tokenizer, tmp_path / "base", tied)
    quantize_head(quantised, torch.float32)
    embedding, head = quantised.get_input_embeddings(), quantised.get_output_embeddings()
    assert type(embedding) is NF4Embedding and type(head) is NF4Head
    assert (head.weight is embedding.weight) == tied
    assert not any(p.requires_grad for p in (*embedding.parameters(), *head.parameters()))
    plain = model.load_model(tmp_path / "base", dtype=torch.float32, device=CPU, nf4=True)
    with torch.no_grad():
        for theirs, ours in ((plain.get_input_embeddings(), embedding), (plain.get_output_embeddings(), head)):
            theirs.weight.copy_(dequantise(ours.weight, ours.weight.quant_state, torch.float32))
        ids = torch.randint(1, 300, (2, 17))
        hidden = model.hidden_states(quantised, ids)
        torch.testing.assert_close(hidden, model.hidden_states(plain, ids))
        torch.testing.assert_close(model.logits(quantised, hidden), model.logits(plain, hidden))
        expected = model.token_losses(plain, hidden.flatten(0, 1), ids.flatten())
        torch.testing.assert_close(model.token_losses(quantised, hidden.flatten(0, 1), ids.flatten()), expected)


def test_bytes_held_are_those_of_nf4(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """FACTS of the format: half a byte, and 8 bits for 64 and 32 for 16,384 weights: 0.516 bytes a weight, once where tied."""
    quantised = loaded("qwen3", tokenizer, tmp_path / "base")
    weights = quantised.get_input_embeddings().weight.numel()
    quantize_head(quantised, torch.float32)
    held = quantised.get_input_embeddings().weight
    state = held.quant_state
    constants = state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert (held.numel() + constants) / weights == pytest.approx(0.516, abs=1e-3)
    seen = {id(p): p.numel() for p in quantised.parameters() if hasattr(p, "quant_state")}
    assert sum(seen.values()) == weights // 2 + 2 * (4 * 64 * 64 + 3 * 64 * 64) // 2


def test_rows_that_end_inside_a_block_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save("qwen3", tokenizer, tmp_path / "base", width=48)
    unquantised = model.load_model(tmp_path / "base", dtype=torch.float32, device=CPU)
    with pytest.raises(RequestError, match=r"base\.quantize_head: rows of 48 weights are no multiple of 32"):
        quantize_head(unquantised, torch.float32)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_it_trains_a_standard_adapter_that_merges_into_the_stored_base(
    checkpointing: bool, tied: bool, tokenizer: PreTrainedTokenizerFast, make_packed: Make, tmp_path: Path
) -> None:
    base, packed = tmp_path / "base", make_packed()
    save("qwen3", tokenizer, base, tied)
    values = {
        "method": "qlora", "tokens": 64 * 4 * 12, "tokens_per_step": 64 * 4, "micro_batch_size": 4,
        "optimizer": {"learning_rate": 5e-3}, "activation_checkpointing": checkpointing, "lora": {"rank": 4},
    }  # fmt: skip
    finals = {}
    for quantised in (False, True):
        out = tmp_path / f"out-{quantised}"
        out.mkdir()
        how, loading = Train.model_validate(values), Base(model="any", quantize_head=quantised)
        figures = training.train(base, PackedTokens(packed), how, Packing(sequence_length=64), 3, out, loading)
        finals[quantised] = figures["final_loss"]
        names = load_file(out / "adapter_model.safetensors").keys()
        assert len(names) == 2 * 2 * 7 and not any("embed" in name or "lm_head" in name for name in names)
    assert finals[True] == pytest.approx(finals[False], rel=0.02) and finals[True] != finals[False]
    place = tmp_path / "merged"
    place.mkdir()
    inputs = merging.open_inputs(base, [tmp_path / "out-True"], adapter_base="nf4-dequant")
    merging.merge_models(merging.by_method(inputs, "linear", merging.Parameters(), merging.Profile()), place)
    merged, stored = load_file(place / "model.safetensors"), load_file(base / "model.safetensors")
    for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        assert torch.equal(merged[name], stored[name]), "the merged model keeps the stored embeddings and head"
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], stored["model.layers.0.mlp.up_proj.weight"])

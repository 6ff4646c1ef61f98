"""The base as 4-bit training holds it, against bitsandbytes on whole tensors and in live models, bit for bit."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from frbio_lite import model
from frbio_lite.errors import RequestError
from frbio_lite.merging import Parameters, Profile, Rounding, blocks, by_method, merge_models, nf4, open_inputs
from frbio_lite.merging.blocks import blocks_of
from frbio_lite.merging.nf4 import Nf4Base, linear_layers
from frbio_lite.merging.weights import Weights
from tests.merging.tiny_models import input_ids, load, save_adapted, save_adapter, save_base, tensors
from tests.tiny import CLASSES, SHAPE

CPU = torch.device("cpu")
# bitsandbytes 0.50 dequantises rows of an odd multiple of 32 wrongly on the CPU, so none of these has such rows.
ODD: dict[str, Any] = {"hidden_size": 36, "intermediate_size": 63, "head_dim": 10}  # groups that span rows, and a rest
EVEN: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def held(base: Path) -> dict[str, torch.Tensor]:
    """What a model that is loaded in 4 bits dequantises to, by tensor name."""
    layers = model.load_model(base, dtype=torch.float32, device=CPU, nf4=True).named_modules()
    return {
        f"{name}.weight": functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        for name, layer in layers
        if isinstance(layer, Linear4bit)
    }


def whole(source: Nf4Base, name: str) -> torch.Tensor:
    shape = source.base.shape(name)
    found = torch.full((source.base.elements(name),), torch.nan)
    for block in reversed(blocks_of(name, shape)):
        source.fill(block, found[block.start : block.start + block.count].numpy())
    return found.view(shape)


def merge(base: Path, adapter: Path, out: Path, ratio: float = 1.0) -> dict[str, torch.Tensor]:
    inputs = open_inputs(base, [adapter], adapter_base="nf4-dequant")
    merger = by_method(inputs, "linear", Parameters(), Profile())
    merge_models(merger, out, ratio=ratio, rounding=Rounding("F32"))
    return tensors(out)


@pytest.mark.parametrize("block", [129, blocks.BLOCK])
@pytest.mark.parametrize("shape", [ODD, EVEN], ids=["odd", "even"])
def test_blocks_are_the_live_model_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, shape: dict[str, Any]
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    base = save_base(tmp_path / "base", 11, dtype=torch.bfloat16, **shape)
    source, expected = Nf4Base(Weights(base)), held(base)
    assert source.names == expected.keys() and len(expected) == 14
    for name in source.names:
        assert whole(source, name).view(torch.int32).equal(expected[name].view(torch.int32)), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_the_layers_that_transformers_converts(tmp_path: Path, name: str, tied: bool) -> None:
    config, architecture, extra = CLASSES[name]
    settings = dict(vocab_size=96, pad_token_id=0, tie_word_embeddings=tied)
    architecture(config(**settings, **SHAPE, **extra)).save_pretrained(tmp_path / "base")
    found = linear_layers(Weights(tmp_path / "base"))
    assert found == held(tmp_path / "base").keys()
    assert len(found) == 14 and not any("lm_head" in n or "embed" in n for n in found)


@pytest.mark.parametrize(
    "shape", [(1,), (2,), (63,), (64,), (65,), (129, 3), (7, 1), (5, 2, 33), (10, 67), (32, 3), (301, 64), (257, 129)]
)
def test_odd_shapes_against_the_whole_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """The double quantisation groups 256 scales, and its mean depends on all of them."""
    monkeypatch.setattr(blocks, "BLOCK", 700)
    monkeypatch.setattr(nf4, "BLOCK", 640)
    monkeypatch.setattr(nf4, "linear_layers", lambda base: frozenset(["w"]))
    w = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02
    w.view(-1)[64:128] = 0.0  # a group of zeros has the scale 0
    save_file({"w": w}, tmp_path / "model.safetensors")
    packed, state = functional.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    expected = functional.dequantize_4bit(packed, state).reshape(-1)[: w.numel()]
    found = whole(Nf4Base(Weights(tmp_path)), "w")
    assert found.shape == shape and found.view(-1).view(torch.int32).equal(expected.view(torch.int32))


def test_scales_are_made_once_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    base = save_base(tmp_path / "base", 12, **EVEN)
    source, expected = Nf4Base(Weights(base)), held(base)
    made: list[str] = []
    original, start = Nf4Base._quantised_scales, threading.Barrier(4)
    monkeypatch.setattr(Nf4Base, "_quantised_scales", lambda self, name: (made.append(name), original(self, name))[1])

    def work(number: int) -> dict[str, torch.Tensor]:
        start.wait()
        return {name: whole(source, name) for name in sorted(source.names)[:3]}

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert all(found[name].equal(expected[name]) for found in results for name in found)
    assert sorted(made) == sorted(source.names)[:3]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_merge_is_the_adapter_on_the_dequantised_model(tmp_path: Path, dora: bool) -> None:
    """Also where a layer has no adapter of its own; at ratio 0 it is the stored base."""
    base = save_base(tmp_path / "base", 13, dtype=torch.bfloat16, **ODD)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "down_proj"], use_dora=dora)
    merged, stored, quantised = merge(base, adapter, tmp_path / "out"), tensors(base), held(base)
    for name, tensor in merged.items():
        if name in quantised and not any(part in name for part in ("q_proj", "down_proj")):
            assert tensor.equal(quantised[name]) and not tensor.equal(stored[name].float())
        elif name not in quantised:
            assert tensor.equal(stored[name].float())
    dequantised = load(base, torch.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, tensor in quantised.items():
            dequantised.get_parameter(name).copy_(tensor)
        expected = PeftModel.from_pretrained(dequantised, adapter).eval()(input_ids()).logits
        found = load(tmp_path / "out", torch.float32)(input_ids()).logits
        plain = PeftModel.from_pretrained(load(base, torch.float32), adapter).eval()(input_ids()).logits
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max() < (plain - expected).abs().max() / 100
    half, none = merge(base, adapter, tmp_path / "half", 0.5), merge(base, adapter, tmp_path / "none", 0.0)
    for name in merged:
        assert none[name].equal(stored[name].float())
        middle = (merged[name].double() + stored[name].double()) / 2
        assert (half[name] - middle).abs().max() <= 1e-7 * middle.abs().max() * 2


def test_what_cannot_be_dequantised_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(RequestError, match=r"adapted is a whole model.* adapter_base nf4-dequant is for adapters"):
        open_inputs(base, [save_adapted(tmp_path / "adapted", base)], adapter_base="nf4-dequant")
    adapter = save_adapter(tmp_path / "adapter", base)
    inputs = open_inputs(base, [adapter], adapter_base="nf4-dequant")
    with pytest.raises(RequestError, match=r"is added to the NF4 weights.* use the method linear"):
        by_method(inputs, "lora_scale", Parameters(), Profile())
    GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(RequestError, match=r"gpt2 stores .*c_attn\.weight transposed: use adapter_base bf16"):
        Nf4Base(Weights(tmp_path / "gpt2"))
    renamed = {n.replace("up_proj", "w3"): t for n, t in tensors(base).items()}
    save_file(renamed, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"under other names than the model has in memory \(.*up_proj\.weight\)"):
        Nf4Base(Weights(base))

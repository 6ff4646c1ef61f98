"""A merge in a live model, and the check of a written model: what it passes, and every way to be wrong that it must see."""

from __future__ import annotations

import gc
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from frbio_lite import model
from frbio_lite.errors import RequestError
from frbio_lite.merging import Merger, Parameters, Profile, Rounding, blocks, by_method, merge_models, open_inputs
from frbio_lite.merging.adapters import LoraAdapter
from frbio_lite.merging.live import differing, write_into
from frbio_lite.merging.verify import verify
from tests.merging.tiny_models import load, save_adapted, save_adapter, save_base, tensors

CPU = torch.device("cpu")
STORED = Rounding()


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> Iterator[None]:
    """What the imports left need not be searched each time a model is freed."""
    gc.freeze()
    yield
    gc.unfreeze()


HEAD = {"target_modules": ["q_proj", "lm_head"]}
DORA = {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}
SAVED = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
TIED = {"target_modules": ["embed_tokens", "v_proj"], "ensure_weight_tying": True}
LIVE: dict[str, tuple[dict[str, Any], str, float]] = {  # adapter, method, ratio: what a live adapter can be scaled to
    "lora": ({}, "linear", 1.0),
    "part of it": ({"use_rslora": True}, "task_arithmetic", 0.3),
    "scaled": ({}, "lora_scale", 0.7),
    "slerp at its end": ({}, "slerp", 1.0),
    "a head": (HEAD, "linear", 0.5),
    "tied by peft": (TIED, "linear", 0.6),
    "dora": (DORA, "linear", 1.0),
    "a saved head": (SAVED, "slerp", 1.0),
}
ALONE: dict[str, tuple[dict[str, Any], str, float]] = {
    "the base": ({}, "linear", 0.0),
    "on the way of slerp": ({"lora_alpha": 64}, "slerp", 0.5),
    "part of dora": (DORA, "linear", 0.5),
    "part of a saved head": (SAVED, "linear", 0.5),
}


def written(
    tmp_path: Path, settings: dict[str, Any], method: str, ratio: float, rounding: Rounding = STORED, **base: Any
) -> tuple[Merger, Path]:
    source = save_base(tmp_path / "base", 21, dtype=torch.bfloat16, **base)
    adapter = save_adapter(tmp_path / "adapter", source, 22, **settings)
    merger = by_method(open_inputs(source, [adapter]), method, Parameters(), Profile())
    merge_models(merger, tmp_path / "out", ratio=ratio, rounding=rounding)
    return merger, tmp_path / "out"


@pytest.mark.parametrize(("settings", "method", "ratio"), LIVE.values(), ids=LIVE)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_was_merged_is_what_the_live_adapter_computes(
    tmp_path: Path, tied: bool, settings: dict[str, Any], method: str, ratio: float
) -> None:
    merger, out = written(tmp_path, settings, method, ratio, tied=tied)
    found = verify(merger, out, ratio=ratio, rounding=STORED)
    assert found["reloaded_equal"] is True and found["tokens"] == 64
    assert 0.0 < found["live_adapter_error"] < 1e-4
    assert 1e-5 < found["rounding_change"] < 0.2  # bfloat16 has 8 bits


@pytest.mark.parametrize(("settings", "method", "ratio"), ALONE.values(), ids=ALONE)
def test_a_merge_that_no_scaling_expresses(tmp_path: Path, settings: dict[str, Any], method: str, ratio: float) -> None:
    merger, out = written(tmp_path, settings, method, ratio)
    found = verify(merger, out, ratio=ratio, rounding=STORED)
    assert found["reloaded_equal"] is True and found["live_adapter_error"] is None
    assert found["rounding_change"] is None if ratio == 0.0 else found["rounding_change"] > 1e-5


@pytest.mark.parametrize(
    "rounding",
    [Rounding("F32"), Rounding("F16"), Rounding("BF16", True, 5)],
    ids=["fp32", "fp16", "stochastic"],
)
def test_every_rounding(tmp_path: Path, rounding: Rounding) -> None:
    merger, out = written(tmp_path, HEAD, "linear", 0.8, rounding)
    change = verify(merger, out, ratio=0.8, rounding=rounding)["rounding_change"]
    assert change == 0.0 if rounding.dtype == "F32" else change > 0.0
    if rounding.stochastic:
        with pytest.raises(RuntimeError, match="is not what was merged"):
            verify(merger, out, ratio=0.8, rounding=Rounding("BF16", True, 6))


def test_models_profiles_and_dequantised_bases_have_no_live_adapter(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", 23, dtype=torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base)
    profile = Profile((("mlp", (0.2, 0.9)),))
    for inputs, chosen in (
        (open_inputs(base, [save_adapted(tmp_path / "adapted", base, size=0.3)]), Profile()),
        (open_inputs(base, [adapter]), profile),
        (open_inputs(base, [adapter], adapter_base="nf4-dequant"), Profile()),
        (open_inputs(base, [adapter, tmp_path / "adapted"]), Profile()),
    ):
        merger = by_method(inputs, "linear", Parameters(), chosen)
        out = tmp_path / "out"
        merge_models(merger, out, ratio=0.6)
        found = verify(merger, out, ratio=0.6, rounding=STORED, device=CPU)
        assert found["live_adapter_error"] is None and 0.0 < found["rounding_change"] < 0.2
        shutil.rmtree(out)


def test_one_bit_of_one_tensor(tmp_path: Path) -> None:
    """Also one that no token of the check reads."""
    merger, out = written(tmp_path, HEAD, "linear", 1.0)
    held = tensors(out)
    for name in (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
    ):
        changed = held[name].clone()
        changed.view(torch.int16).view(-1)[-1] ^= 1
        save_file(held | {name: changed}, out / "model.safetensors", {"format": "pt"})
        with pytest.raises(RuntimeError, match=rf"{name}, loaded again, is not what was merged"):
            verify(merger, out, ratio=1.0, rounding=STORED)
    save_file(held, out / "model.safetensors", {"format": "pt"})
    verify(merger, out, ratio=1.0, rounding=STORED)


def test_the_sign_of_zero_is_a_bit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", 24)
    held = tensors(base)
    held["model.norm.weight"][3] = 0.0
    save_file(held, base / "model.safetensors", {"format": "pt"})
    adapter = save_adapter(tmp_path / "adapter", base)
    merger = by_method(open_inputs(base, [adapter]), "linear", Parameters(), Profile())
    merge_models(merger, tmp_path / "out", ratio=1.0)
    held = tensors(tmp_path / "out")
    held["model.norm.weight"][3] = -0.0
    save_file(held, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight, loaded again"):
        verify(merger, tmp_path / "out", ratio=1.0, rounding=STORED)


def test_an_adapter_that_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merger, out = written(tmp_path, {}, "linear", 1.0)
    shutil.copyfile(tmp_path / "base" / "model.safetensors", out / "model.safetensors")
    with pytest.raises(RuntimeError, match="is not what was merged"):
        verify(merger, out, ratio=1.0, rounding=STORED)
    monkeypatch.setattr(LoraAdapter, "fill", lambda self, block, base, out: np.copyto(out, base))  # by the merge itself
    with pytest.raises(RuntimeError, match=r"not what the live adapter .*/adapter at ratio 1 computes.* by 1 of"):
        verify(merger, out, ratio=1.0, rounding=STORED)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merge_that_forgets_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    """The trained head, and a single projection of one layer."""
    settings = {"target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "lm_head"]}
    merger, _ = written(tmp_path, settings, "linear", 0.5, tied=tied)
    fill = LoraAdapter.fill
    for part in ("lm_head", "layers.1.self_attn.k_proj"):

        def forgetting(self: LoraAdapter, block: Any, base: Any, out: Any, part: str = part) -> None:
            np.copyto(out, base) if part in block.name else fill(self, block, base, out)

        monkeypatch.setattr(LoraAdapter, "fill", forgetting)
        merge_models(merger, tmp_path / part, ratio=0.5)
        with pytest.raises(RuntimeError, match="not what the live adapter"):
            verify(merger, tmp_path / part, ratio=0.5, rounding=STORED)


@pytest.mark.parametrize("settings", [HEAD, SAVED], ids=["lora", "saved"])
def test_a_trained_head_that_is_dropped(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Tied again by config.json, not in the file, or both, as merges of tied models have left it."""
    merger, out = written(tmp_path, settings, "linear", 1.0)
    held, config = tensors(out), json.loads((out / "config.json").read_text())
    headless = {n: t for n, t in held.items() if n != "lm_head.weight"}
    tied, lacking = "lm_head.weight, loaded again, is not what was merged", "it has no tensor for lm_head.weight"
    for kept, tie, said in ((headless, True, tied), (headless, False, lacking)):
        save_file(kept, out / "model.safetensors", {"format": "pt"})
        (out / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tie}))
        with pytest.raises(RuntimeError, match=re.escape(said)):
            verify(merger, out, ratio=1.0, rounding=STORED)


def test_the_right_weights_with_another_configuration(tmp_path: Path) -> None:
    merger, out = written(tmp_path, {}, "linear", 1.0)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-2}))
    with pytest.raises(RuntimeError, match=r"the merged weights but other logits: its config\.json is wrong"):
        verify(merger, out, ratio=1.0, rounding=STORED)
    (out / "config.json").write_text(json.dumps(config))
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(RuntimeError, match="the merged model does not load"):
        verify(merger, out, ratio=1.0, rounding=STORED)


def test_saved_copies_in_the_dtype_of_the_training(tmp_path: Path) -> None:
    """PEFT would load the rounded copy over the base's fp32 embedding; the merge keeps the base's."""
    base = save_base(tmp_path / "base", 25)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["v_proj", "embed_tokens"])
    held = load_file(adapter / "adapter_model.safetensors")
    copies = {n: t.bfloat16() for n, t in held.items() if "base_layer" in n}
    assert len(copies) == 1
    save_file(held | copies, adapter / "adapter_model.safetensors")
    merger = by_method(open_inputs(base, [adapter]), "linear", Parameters(), Profile())
    merge_models(merger, tmp_path / "out", ratio=1.0)
    assert verify(merger, tmp_path / "out", ratio=1.0, rounding=STORED)["live_adapter_error"] < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("settings", [{}, HEAD, TIED], ids=["lora", "a head", "tied by peft"])
def test_a_live_model_takes_the_bits_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 129)
    merger, out = written(tmp_path, settings, "slerp", 0.4)
    live = load(tmp_path / "base", dtype)
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.fill_(torch.nan)
    write_into(live, merger, 0.9, None)  # what an earlier ratio left is overwritten
    write_into(live, merger, 0.4, Rounding())
    reloaded = load(out, dtype)
    assert dict(live.named_parameters()).keys() == dict(reloaded.named_parameters()).keys()
    assert all(p.equal(reloaded.get_parameter(name)) for name, p in live.named_parameters())
    if dtype == torch.float32:
        assert differing(live, merger, 0.4, Rounding()) is None
        live.model.layers[1].mlp.down_proj.weight.data.view(-1)[-1] += 1.0
        assert differing(live, merger, 0.4, Rounding()) == "model.layers.1.mlp.down_proj.weight"


def test_unrounded_is_the_fp32_merge(tmp_path: Path) -> None:
    merger, out = written(tmp_path, HEAD, "linear", 0.3, Rounding("F32"))
    live, before = load(tmp_path / "base", torch.float32), threading.active_count()
    write_into(live, merger, 0.3, None, "a label")
    held = tensors(out)
    assert {n: p.equal(held[n]) for n, p in live.named_parameters()} == dict.fromkeys(held, True)
    assert threading.active_count() <= before  # one that an earlier test left may end


def test_a_live_model_with_other_parameters_is_left_alone(tmp_path: Path) -> None:
    merger, _ = written(tmp_path, {}, "linear", 0.5)
    for other in ({"num_hidden_layers": 3}, {"intermediate_size": 65}, {"tied": False}):
        live = load(save_base(tmp_path / "other", 26, **other), torch.float32)
        before = {name: p.clone() for name, p in live.named_parameters()}
        with pytest.raises(RequestError, match=r"under other names or shapes .* \((model\.layers|lm_head)"):
            write_into(live, merger, 0.5, Rounding())
        assert all(p.equal(before[name]) for name, p in live.named_parameters())
        assert differing(live, merger, 0.5, Rounding()) is not None


def test_untying_keeps_what_the_model_computes(tmp_path: Path) -> None:
    live = model.load_model(save_base(tmp_path / "base"), dtype=torch.float32, device=CPU)
    tokens = torch.arange(96)[None]
    with torch.no_grad():
        before = live(tokens).logits
        model.untie(live)
        model.untie(live)
        assert live(tokens).logits.equal(before)
        live.lm_head.weight.zero_()
        assert live(tokens).logits.eq(0).all() and live.model.embed_tokens.weight.abs().min() > 0
    live.tie_weights()
    live.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved", torch.float32).lm_head.weight.eq(0).all()

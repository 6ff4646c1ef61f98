"""Merged models on disk: bits, shards, figures, and every pair that must be refused before anything is written."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from frbio_lite import model
from frbio_lite.errors import RequestError
from frbio_lite.merge import merge_models, open_pair, slerp, weights
from tests.merge.tiny_models import input_ids, load, new_model, save_adapted, save_adapter, save_base, tensors

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.contiguous().view(BITS[a.dtype]).equal(b.contiguous().view(BITS[b.dtype]))


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_ends_bit_for_bit_after_reload(tmp_path: Path, tied: bool, dtype: torch.dtype, method: str) -> None:
    base = save_base(tmp_path / "base", dtype=dtype, tied=tied)
    adapted = save_adapted(tmp_path / "adapted", base)
    for ratio, source in ((0.0, base), (1.0, adapted)):
        out = tmp_path / f"out{ratio}"
        figures = merge_models(base, adapted, method, ratio, "auto", out)
        reloaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
        expected = AutoModelForCausalLM.from_pretrained(source, dtype="auto").state_dict()
        assert reloaded.keys() == expected.keys() and all(same_bits(reloaded[n], expected[n]) for n in expected)
        assert figures["effective_ratio"] == pytest.approx(ratio, abs=1e-9)
        assert (
            figures["dtype"]
            == str(dtype).removeprefix("torch.")
            == json.loads((out / "config.json").read_text())["dtype"]
        )


def test_each_tensor_is_the_method_rounded_once(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapted = save_adapted(tmp_path / "adapted", base, size=0.5)
    merge_models(base, adapted, "slerp", 0.3, "auto", tmp_path / "out")
    ours, b, a = tensors(tmp_path / "out"), tensors(base), tensors(adapted)
    assert ours.keys() == b.keys()
    assert all(same_bits(ours[n], slerp(b[n], a[n], 0.3).bfloat16()) for n in b)
    assert not any(same_bits(ours[n], b[n]) for n in b)


def test_figures_against_fp64(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapted = save_adapted(tmp_path / "adapted", base, size=0.4)
    figures = merge_models(base, adapted, "linear", 0.25, "bfloat16", tmp_path / "out")
    b, a, o = ({n: t.double().flatten() for n, t in tensors(d).items()} for d in (base, adapted, tmp_path / "out"))
    rows = {r["name"]: r for r in csv.DictReader((tmp_path / "out" / "tensors.csv").open(encoding="utf-8"))}
    assert rows.keys() == b.keys()
    for name, row in rows.items():
        cosine = (b[name] @ a[name] / b[name].norm() / a[name].norm()).item()
        assert float(row["relative_change"]) == pytest.approx(
            ((a[name] - b[name]).norm() / b[name].norm()).item(), rel=1e-5
        )
        assert float(row["angle_degrees"]) == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-5)
        assert row["slerp_is_linear"] == str(cosine > 0.9995).lower()
        assert float(row["effective_ratio"]) == pytest.approx(
            ((o[name] - b[name]).norm() / (a[name] - b[name]).norm()).item(), rel=1e-5
        )
    whole = [torch.cat([t[n] for n in sorted(b)]) for t in (b, a, o)]
    assert figures["relative_change"] == pytest.approx(
        ((whole[1] - whole[0]).norm() / whole[0].norm()).item(), rel=1e-9
    )
    assert figures["effective_ratio"] == pytest.approx(
        ((whole[2] - whole[0]).norm() / (whole[1] - whole[0]).norm()).item(), rel=1e-9
    )
    assert figures["angle_degrees_max"] == pytest.approx(
        max(float(r["angle_degrees"]) for r in rows.values()), rel=1e-5
    )
    share = sum(r["slerp_is_linear"] == "true" for r in rows.values()) / len(rows)
    assert figures["slerp_is_linear_share"] == share and figures["parameters"] == whole[0].numel()
    assert figures["bytes"] == 2 * whole[0].numel() and figures["tensors"] == len(rows)


def test_equal_models_have_no_ratio_and_no_angle_worth_naming(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    figures = merge_models(base, base, "slerp", 0.5, "auto", tmp_path / "out")
    assert (
        figures["effective_ratio"] is None
        and figures["slerp_is_linear_share"] is None
        and figures["relative_change"] == 0.0
    )
    assert json.dumps(figures, allow_nan=False)
    assert all(t.equal(tensors(base)[n]) for n, t in tensors(tmp_path / "out").items())


def test_shards_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save_base(tmp_path / "whole", dtype=torch.bfloat16)
    new_model(0, dtype=torch.bfloat16).save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    adapted = save_adapted(tmp_path / "adapted", whole)
    merge_models(whole, adapted, "linear", 0.5, "auto", tmp_path / "one")
    monkeypatch.setattr(weights, "SHARD_BYTES", 9_000)
    merge_models(tmp_path / "sharded", adapted, "linear", 0.5, "auto", tmp_path / "many")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == [f.name for f in files]
    for file in files:
        held = load_file(file)
        assert sum(t.nbytes for t in held.values()) <= 9_000 or len(held) == 1
        assert all(index["weight_map"][name] == file.name for name in held)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(tmp_path / "one").values())
    assert [p.name for p in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    one, many = (
        load(tmp_path / "one", torch.bfloat16).state_dict(),
        load(tmp_path / "many", torch.bfloat16).state_dict(),
    )
    assert all(same_bits(one[n], many[n]) for n in one)
    merge_models(tmp_path / "many", tmp_path / "one", "slerp", 0.7, "auto", tmp_path / "again")  # what we write we read


def test_a_head_stored_beside_its_tied_embedding(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    held = tensors(base)
    save_file(
        {**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    plain = save_base(tmp_path / "plain")
    adapted = save_adapted(tmp_path / "adapted", plain, size=0.3)
    merge_models(base, adapted, "linear", 0.5, "auto", tmp_path / "out")
    merge_models(plain, adapted, "linear", 0.5, "auto", tmp_path / "expected")
    with torch.no_grad():
        a, b = (load(tmp_path / d, torch.float32)(input_ids()).logits for d in ("out", "expected"))
    assert a.equal(b)
    save_file(
        {**held, "lm_head.weight": held["model.embed_tokens.weight"] + 1}, base / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(RequestError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        open_pair(base, adapted)


def test_mixed_dtypes_and_integers_stay_as_the_base_stores_them(tmp_path: Path) -> None:
    base, adapted = save_base(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "adapted"
    save_adapted(adapted, base, dtype=torch.float32)
    held, other = tensors(base), tensors(adapted)
    held["model.norm.weight"] = held["model.norm.weight"].float()
    held["steps"] = other["steps"] = torch.tensor([3, 4])
    save_file(held, base / "model.safetensors", {"format": "pt"})
    save_file(other, adapted / "model.safetensors", {"format": "pt"})
    merge_models(base, adapted, "linear", 0.5, "auto", tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in held.items()} and found[
        "steps"
    ].tolist() == [3, 4]
    save_file({**other, "steps": torch.tensor([3, 5])}, adapted / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match="steps is not of floats and differs"):
        open_pair(base, adapted)


def test_model_card_and_tokenizer(tmp_path: Path) -> None:
    base, adapted = save_base(tmp_path / "b`|a\nse"), tmp_path / "adapted"
    save_adapted(adapted, base)
    (base / "tokenizer_config.json").write_text("{}")
    merge_models(base, adapted, "slerp", 0.5, "auto", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| method | slerp |" in card and "| ratio | 0.5 " in card and "Merged by frbio_lite" in card
    assert "Not for clinical decisions" in card and str(tmp_path) not in card and "`b'|a se`" in card
    assert (tmp_path / "out" / "tokenizer_config.json").is_file() and (
        tmp_path / "out" / "generation_config.json"
    ).is_file()


# ------------------------------------------------ what must be refused


def pair(tmp_path: Path, **settings: Any) -> tuple[Path, Path]:
    base = save_base(tmp_path / "base", **settings)
    return base, save_adapted(tmp_path / "adapted", base)


def refused(base: Path, adapted: Path, message: str, **changes: Any) -> None:
    settings = {"method": "slerp", "ratio": 0.5, "dtype": "auto", **changes}
    out = base.parent / "refused"
    with pytest.raises(RequestError, match=message):
        merge_models(base, adapted, **settings, directory=out)
    assert not out.exists() or not any(out.rglob("*config.json"))


@pytest.mark.parametrize("ratio", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_ratio_outside(tmp_path: Path, ratio: float) -> None:
    refused(*pair(tmp_path), "ratio", ratio=ratio)


def test_unknown_method_and_dtype(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    refused(base, adapted, "did you mean 'slerp'", method="slrp")
    refused(base, adapted, "not as int8", dtype="int8")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1},
        {"num_attention_heads": 8, "head_dim": 4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"tied": False},
        {"rms_norm_eps": 1e-3},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_settings(tmp_path: Path, changes: dict[str, Any]) -> None:
    base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other", **changes)
    refused(base, other, "tie_word_embeddings" if "tied" in changes else next(iter(changes)))


def test_other_architecture(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    base = save_base(tmp_path / "base")
    LlamaForCausalLM(
        LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ).save_pretrained(tmp_path / "llama")
    refused(base, tmp_path / "llama", "model_type is llama .* and qwen3")


def test_other_vocabulary(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    refused(base, save_base(tmp_path / "bigger", vocab_size=128), "vocab_size is 128 .* and 96")
    adapted = save_adapted(tmp_path / "adapted", base)
    Tokenizer(WordLevel({"le": 0, "foie": 1}, unk_token="le")).save(str(base / "tokenizer.json"))
    Tokenizer(WordLevel({"le": 1, "foie": 0}, unk_token="le")).save(str(adapted / "tokenizer.json"))
    refused(base, adapted, "token 'foie' is 1 in the first and 0 in the second")
    shutil.copy(base / "tokenizer.json", adapted / "tokenizer.json")
    assert open_pair(base, adapted).names
    (adapted / "tokenizer.json").write_text("{")
    refused(base, adapted, "not a usable tokenizer")


def rewrite(directory: Path, change: Any) -> None:
    held = tensors(directory)
    change(held)
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("side", ["base", "adapted"])
def test_tensors_that_differ_or_are_broken(tmp_path: Path, side: str) -> None:
    base, adapted = pair(tmp_path)
    directory = base if side == "base" else adapted
    original = (directory / "model.safetensors").read_bytes()
    for change, message in (
        (lambda t: t.pop(NORM), f"{side} lacks {NORM},"),
        (lambda t: t.update(extra=torch.ones(2)), "lacks extra"),
        (lambda t: t.update({NORM: torch.ones(31)}), f"{NORM} is .*31"),
        (lambda t: t.update({NORM: torch.ones(32, dtype=torch.int8)}), f"{NORM} is stored as"),
        (lambda t: t[NORM].__setitem__(3, math.nan), f"{side}: {NORM} holds NaN or Inf"),
        (lambda t: t[NORM].__setitem__(3, -math.inf), f"{side}: {NORM} holds NaN or Inf"),
    ):
        rewrite(directory, change)
        refused(base, adapted, message)
        (directory / "model.safetensors").write_bytes(original)
    (directory / "model.safetensors").write_bytes(original[:-50])
    refused(base, adapted, r"model\.safetensors is missing or damaged")
    (directory / "model.safetensors").write_bytes(b"\xff" * 64)
    refused(base, adapted, "damaged")
    (directory / "model.safetensors").unlink()
    refused(base, adapted, "neither model.safetensors nor")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_dtypes_that_fp32_arithmetic_does_not_serve(tmp_path: Path, dtype: torch.dtype) -> None:
    base, adapted = pair(tmp_path)
    for directory in (base, adapted):
        rewrite(directory, lambda t: t.update({NORM: t[NORM].to(dtype)}))
    refused(base, adapted, f"{NORM} is")


def test_index_that_lies(tmp_path: Path) -> None:
    base = tmp_path / "base"
    new_model(0).save_pretrained(base, max_shard_size="20KB")
    adapted = save_adapted(tmp_path / "adapted", base)
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    for name, file, message in (
        (first, "../adapted/model.safetensors", "not a safetensors file beside it"),
        (first, "absent.safetensors", "missing or damaged"),
        ("ghost", index["weight_map"][first], "lacks the tensor ghost"),
    ):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: file}}))
        refused(base, adapted, message)
    for text in ("{", "[]", '{"weight_map": 3}'):
        path.write_text(text)
        refused(base, adapted, "not an index")


def test_overflow_of_float16_is_named(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    rewrite(adapted, lambda t: t[NORM].__setitem__(0, 3e5))
    refused(base, adapted, f"{NORM}: the value 1.5e\\+05 is beyond float16", dtype="float16", method="linear")
    merge_models(base, adapted, "linear", 0.5, "bfloat16", tmp_path / "wide")


def test_a_base_it_was_not_trained_on(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    adapter = save_adapter(tmp_path / "adapter", base)
    for directory in (adapted, adapter):
        (directory / "manifest.json").write_text(json.dumps({"parents": {"base": model.digest(base)}}))
        assert open_pair(base, directory).names
    other = save_base(tmp_path / "other", seed=9)
    for directory in (adapted, adapter):
        refused(other, directory, "was trained on another base")
        (directory / "manifest.json").write_text('{"parents')
        refused(base, directory, "manifest.json is damaged")


def test_quantised_models_are_refused(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    refused(base, adapted, "quantised")


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapted = pair(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    refused(base, adapted, "no space left for the merged model")

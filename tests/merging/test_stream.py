"""Merged models on disk: bits, shards, figures, and every pair that must be refused before anything is written."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from frbio_lite import hub
from frbio_lite.artifacts import file_hash, locked
from frbio_lite.cli import main
from frbio_lite.errors import RequestError
from frbio_lite.merging import blocks, open_inputs, parse_profile
from frbio_lite.merging.profile import depth_of
from tests.merging.tiny_models import input_ids, load, merge, new_model, save_adapted, save_adapter, save_base, tensors

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
        figures = merge(base, adapted, method, ratio, "auto", out)
        reloaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
        expected = AutoModelForCausalLM.from_pretrained(source, dtype="auto").state_dict()
        assert reloaded.keys() == expected.keys() and all(same_bits(reloaded[n], expected[n]) for n in expected)
        assert figures["effective_ratio"] == pytest.approx(ratio, abs=1e-6)
        assert (
            figures["dtype"]
            == str(dtype).removeprefix("torch.")
            == json.loads((out / "config.json").read_text())["dtype"]
        )


def test_each_tensor_is_the_method_rounded_once(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapted = save_adapted(tmp_path / "adapted", base, size=0.5)
    merge(base, adapted, "slerp", 0.3, "auto", tmp_path / "out")
    ours, b, a = tensors(tmp_path / "out"), tensors(base), tensors(adapted)
    assert ours.keys() == b.keys()
    for n in b:
        x, y = b[n].double(), a[n].double()
        angle = torch.acos((x.flatten() @ y.flatten()) / x.norm() / y.norm())
        assert angle.cos().abs() < 0.9995  # slerp proper
        exact = (torch.sin(0.7 * angle) * x + torch.sin(0.3 * angle) * y) / torch.sin(angle)
        step = exact.abs().clamp(min=2.0**-126).log2().floor().exp2() * 2.0**-7  # between neighbours in bfloat16
        off = (ours[n].double() - exact).abs() / step
        assert off.max() <= 0.5 + 2.0**-10  # rounded once; fp32 moves the middle between neighbours a little
    assert not any(same_bits(ours[n], b[n]) for n in b)


def test_figures_against_fp64(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapted = save_adapted(tmp_path / "adapted", base, size=0.4)
    figures = merge(base, adapted, "linear", 0.25, "bfloat16", tmp_path / "out")
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
        ((whole[1] - whole[0]).norm() / whole[0].norm()).item(), rel=2e-6
    )
    assert figures["effective_ratio"] == pytest.approx(
        ((whole[2] - whole[0]).norm() / (whole[1] - whole[0]).norm()).item(), rel=2e-6
    )
    assert figures["angle_degrees_max"] == pytest.approx(
        max(float(r["angle_degrees"]) for r in rows.values()), rel=1e-5
    )
    share = sum(r["slerp_is_linear"] == "true" for r in rows.values()) / len(rows)
    assert figures["slerp_is_linear_share"] == share and figures["parameters"] == whole[0].numel()
    assert figures["bytes"] == 2 * whole[0].numel() and figures["tensors"] == len(rows)


def test_equal_models_have_no_ratio_and_no_angle_worth_naming(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    figures = merge(base, base, "slerp", 0.5, "auto", tmp_path / "out")
    assert (
        figures["effective_ratio"] is None
        and figures["slerp_is_linear_share"] is None
        and figures["relative_change"] == 0.0
    )
    assert json.dumps(figures, allow_nan=False)
    assert all(t.equal(tensors(base)[n]) for n, t in tensors(tmp_path / "out").items())


def test_shards_in_and_out(tmp_path: Path) -> None:
    whole = save_base(tmp_path / "whole", dtype=torch.bfloat16)
    new_model(0, dtype=torch.bfloat16).save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    adapted = save_adapted(tmp_path / "adapted", whole)
    merge(whole, adapted, "linear", 0.5, "auto", tmp_path / "one")
    hashes: dict[str, str] = {}
    merge(tmp_path / "sharded", adapted, "linear", 0.5, "auto", tmp_path / "many", shard_bytes=9_000, hashes=hashes)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == [f.name for f in files]
    for file in files:
        assert hashes[file.name] == file_hash(file)
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
    merge(tmp_path / "many", tmp_path / "one", "slerp", 0.7, "auto", tmp_path / "again")  # what we write we read


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
    merge(base, adapted, "linear", 0.5, "auto", tmp_path / "out")
    merge(plain, adapted, "linear", 0.5, "auto", tmp_path / "expected")
    with torch.no_grad():
        a, b = (load(tmp_path / d, torch.float32)(input_ids()).logits for d in ("out", "expected"))
    assert a.equal(b)
    save_file(
        {**held, "lm_head.weight": held["model.embed_tokens.weight"] + 1}, base / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(RequestError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        open_inputs(base, [adapted])


def test_mixed_dtypes_and_integers_stay_as_the_base_stores_them(tmp_path: Path) -> None:
    base, adapted = save_base(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "adapted"
    save_adapted(adapted, base, dtype=torch.float32)
    held, other = tensors(base), tensors(adapted)
    held["model.norm.weight"] = held["model.norm.weight"].float()
    held["steps"] = other["steps"] = torch.tensor([3, 4])
    save_file(held, base / "model.safetensors", {"format": "pt"})
    save_file(other, adapted / "model.safetensors", {"format": "pt"})
    merge(base, adapted, "linear", 0.5, "auto", tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in held.items()} and found[
        "steps"
    ].tolist() == [3, 4]
    save_file({**other, "steps": torch.tensor([3, 5])}, adapted / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match="steps is not of floats and differs"):
        open_inputs(base, [adapted])


def test_model_card_and_tokenizer(tmp_path: Path) -> None:
    base, adapted = save_base(tmp_path / "b`|a\nse"), tmp_path / "adapted"
    save_adapted(adapted, base)
    (base / "tokenizer_config.json").write_text("{}")
    merge(base, adapted, "slerp", 0.5, "auto", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| method | slerp |" in card and "| ratio | 0.5 " in card and "Merged by frbio_lite" in card
    assert "Not for clinical decisions" in card and str(tmp_path) not in card and "`b'/a se`" in card
    assert (tmp_path / "out" / "tokenizer_config.json").is_file() and (
        tmp_path / "out" / "generation_config.json"
    ).is_file()


def test_blocks_and_threads_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are whole rows by shape alone, so any number of threads gives the same bytes; small blocks cross no tensor."""
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapted = save_adapted(tmp_path / "adapted", base, size=0.3)
    monkeypatch.setattr(blocks, "BLOCK", 300)
    written = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(blocks, "cores", lambda n=threads: n)
        merge(base, adapted, "slerp", 0.4, "auto", tmp_path / str(threads), stochastic=True)
        written.append((tmp_path / str(threads) / "model.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]
    monkeypatch.undo()
    merge(base, adapted, "linear", 0.4, "auto", tmp_path / "whole")
    monkeypatch.setattr(blocks, "BLOCK", 33)  # less than two rows
    merge(base, adapted, "linear", 0.4, "auto", tmp_path / "small")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "small" / "model.safetensors"
    ).read_bytes()


def test_stochastic_rounding_keeps_the_mean(tmp_path: Path) -> None:
    """At 1 % of a 1 % change nearly nothing survives rounding to the nearest; on average all of it does here."""
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapted = save_adapted(tmp_path / "adapted", base, size=0.01, dtype=torch.float32)
    wanted, kept, seeds = {}, {}, 60
    b, a = tensors(base), tensors(adapted)
    for seed in range(seeds):
        merge(base, adapted, "linear", 0.01, "auto", tmp_path / f"s{seed}", stochastic=True, seed=seed)
        for name, tensor in tensors(tmp_path / f"s{seed}").items():
            assert tensor.dtype == torch.bfloat16
            exact = b[name].double() + 0.01 * (a[name].double() - b[name].double())
            step = (
                torch.maximum(exact.abs(), b[name].double().abs()).clamp(min=2.0**-100).log2().floor().exp2() * 2.0**-7
            )
            assert ((tensor.double() - exact).abs() <= step * 1.001).all()  # one of the two neighbours
            wanted[name] = (a[name].double() - b[name].double()) * 0.01
            kept[name] = kept.get(name, 0.0) + (tensor.double() - b[name].double()) / seeds
    x, y = (torch.cat([t[n].flatten() for n in sorted(t)]) for t in (wanted, kept))
    slope = (x @ y / (x @ x)).item()
    assert slope == pytest.approx(1.0, abs=0.15)
    first, again = (tmp_path / d / "model.safetensors" for d in ("s0", "again"))
    merge(base, adapted, "linear", 0.01, "auto", tmp_path / "again", stochastic=True, seed=0)
    assert first.read_bytes() == again.read_bytes() != (tmp_path / "s1" / "model.safetensors").read_bytes()
    with pytest.raises(RequestError, match="stochastic rounding is for bfloat16"):
        merge(base, adapted, "linear", 0.5, "float16", tmp_path / "half", stochastic=True)


def test_a_profile_multiplies_the_ratio_by_part_and_depth(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", num_hidden_layers=3)
    adapted = save_adapted(tmp_path / "adapted", base, size=0.3)
    profile = parse_profile(["self_attn=0,0.5", "mlp=1,0.5,0", "*=0.25"])
    merge(base, adapted, "linear", 0.8, "auto", tmp_path / "out", profile=profile)
    b, a, o = tensors(base), tensors(adapted), tensors(tmp_path / "out")
    for name in b:
        depth = depth_of(name, 3)
        factor = 0.5 * depth if "self_attn" in name else 1.0 - depth if "mlp" in name else 0.25
        exact = b[name].double() + 0.8 * factor * (a[name].double() - b[name].double())
        assert torch.allclose(o[name].double(), exact, rtol=1e-6, atol=1e-8), name
    assert same_bits(o["model.layers.0.self_attn.q_proj.weight"], b["model.layers.0.self_attn.q_proj.weight"])


def test_a_vocabulary_is_brought_to_the_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"mot{i}" for i in range(96)]
    base, adapted = (
        save_base(tmp_path / "base", tied=False),
        save_base(tmp_path / "adapted", 5, tied=False, vocab_size=97),
    )
    Tokenizer(WordLevel({w: i for i, w in enumerate(words[:94])}, unk_token="mot0")).save(str(base / "tokenizer.json"))
    order = [*words[40:90], "neuf", *words[:40], "dix", *words[92:]]  # 90 and 91 are not among them
    Tokenizer(WordLevel({w: i for i, w in enumerate(order)}, unk_token="mot0")).save(str(adapted / "tokenizer.json"))
    refused(base, adapted, "different vocabularies: token 'dix' .*--vocab base")
    monkeypatch.setattr(blocks, "BLOCK", 32 * 7)
    merge(base, adapted, "linear", 1.0, "auto", tmp_path / "out", vocabulary="base")
    b, a, o = tensors(base), tensors(adapted), tensors(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for i in range(94):
            expected = a[name][order.index(words[i])] if words[i] in order else b[name][i]
            assert same_bits(o[name][i], expected), (name, i)
        assert same_bits(o[name][94:], a[name][94:96]) and len(o[name]) == 96  # padding rows keep their place
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 96
    assert load(tmp_path / "out", torch.float32)(input_ids()).logits.isfinite().all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from Linux's /proc")
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """A tensor of 512 MB per side is merged within 0.2 GB."""
    script = """
import json, re, sys
from pathlib import Path
import numpy as np
from frbio_lite.merging import weights
place = Path(sys.argv[1])
settings = {"model_type": "qwen3", "tie_word_embeddings": True}
for side in ("base", "adapted"):
    (place / side).mkdir()
    (place / side / "config.json").write_text(json.dumps(settings))
    entries = [weights.Entry("model.embed_tokens.weight", "BF16", (1 << 18, 1 << 10))]
    writer = weights.ShardWriter(place / side, entries)
    block = np.random.default_rng(len(side)).integers(0, 1 << 14, 1 << 20, dtype=np.uint16).view(np.uint8)
    for i in range(1 << 8):
        writer.write(entries[0].name, i << 20, block)
    writer.finish()
from frbio_lite.merging import Parameters, Profile, by_method, merge_models, open_inputs
inputs = open_inputs(place / "base", [place / "adapted"])
figures = merge_models(by_method(inputs, "slerp", Parameters(), Profile()), place / "out", ratio=0.5)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss counts the parent's memory too
print(int(peak[1]) * 1024, figures["bytes"])
"""
    found = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    resident, written = map(int, found.stdout.split())
    assert written == 1 << 29 and resident < 0.2e9


def test_an_adapter_that_parts_a_tied_head_beside_a_model_that_does_not(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapted = save_adapted(tmp_path / "adapted", base)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    merge(base, [adapter, adapted], "linear", 1.0, "auto", tmp_path / "out")
    merge(base, adapter, "linear", 1.0, "auto", tmp_path / "alone")
    o, x, y = tensors(tmp_path / "out"), tensors(tmp_path / "alone"), tensors(adapted)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    assert torch.allclose(o[head], (x[head] + y[embedding]) / 2, rtol=1e-6, atol=1e-7)
    assert torch.allclose(o[embedding], (x[embedding] + y[embedding]) / 2, rtol=1e-6, atol=1e-7)


# ------------------------------------------------ interrupted, crowded, full


def command(base: Path, adapted: Path, out: Path, *more: str) -> list[str]:
    return ["merge", "--base", str(base), "--model", str(adapted), "--ratio", "0.5", "--out", str(out), *more]


def run_cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_a_killed_merge_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    script = """
import os, signal, sys
from frbio_lite.merging.weights import ShardWriter
real, left = ShardWriter.write, [5]
def write(self, *arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *arguments)
ShardWriter.write = write
from frbio_lite.cli import main
main(sys.argv[1:])
"""
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", script, *command(base, adapted, out)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    assert not any(p.name in ("config.json", "manifest.json") for p in tmp_path.glob("out*/*"))
    assert run_cli(*command(base, adapted, out)) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapted", "base", "out"]
    assert load(out, torch.float32)(input_ids()).logits.isfinite().all()


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapted = pair(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    assert run_cli(*command(base, adapted, out)) == 0  # an empty one is taken
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for _ in range(2):
        assert run_cli(*command(base, adapted, out, "--dtype", "float32")) == 2
        assert "exists and is not empty" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert run_cli(*command(base, adapted, base / "config.json")) == 2


def test_two_merges_into_one_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapted = pair(tmp_path)
    with locked(tmp_path / "out.partial"):
        assert run_cli(*command(base, adapted, tmp_path / "out")) == 2
    assert "another frbio process is working" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_out_of_disk_halfway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapted = pair(tmp_path)
    real, left = os.pwrite, [7]

    def pwrite(*arguments: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert run_cli(*command(base, adapted, tmp_path / "out")) == 2
    assert "no space left on disk" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapted", "base"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard-size", "0"), "--shard-size 0"),
        (("--shard-size", "viele"), "500MB or 2GB"),
        (("--profile", "mlp"), "PART=VALUES"),
        (("--profile", "mlp=2"), "between 0 and 1"),
        (("--method", "model_stock"), "2 or more adapted models"),
        (("--method", "tie"), "did you mean 'ties'"),
        (("--method", "ties", "--density", "0"), "density"),
        (("--ratio", "nan"), "ratio nan"),
        (("--method", "lora_scale"), "lora_scale"),
        (("--adapter", "x"), "give the adapted side"),
    ],
)
def test_requests_that_cannot_be_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    base, adapted = pair(tmp_path)
    assert run_cli(*command(base, adapted, tmp_path / "out", *more)) == 2
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapted", "base"]


def test_several_models_and_shards_from_the_command_line(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    other = save_adapted(tmp_path / "other", base, seed=8)
    arguments = command(base, adapted, tmp_path / "out", "--model", str(other), "--method", "linear")
    assert run_cli(*arguments, "--shard-size", "20KB") == 0
    b, x, y, o = (tensors(tmp_path / d) for d in ("base", "adapted", "other", "out"))
    for name in b:
        exact = 0.5 * b[name].double() + 0.25 * (x[name].double() + y[name].double())
        assert torch.allclose(o[name].double(), exact, rtol=1e-6, atol=1e-7)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["parents"] == {
        "base": hub.digest(base),
        "train": hub.digest(adapted),
        "train-2": hub.digest(other),
    }
    mean, moved = (
        torch.cat([change[n].flatten() for n in sorted(b)])
        for change in (
            {n: (x[n].double() + y[n].double()) / 2 - b[n].double() for n in b},
            {n: o[n].double() - b[n].double() for n in b},
        )
    )
    assert manifest["figures"]["effective_ratio"] == pytest.approx((moved.norm() / mean.norm()).item(), rel=2e-6)
    for name, record in manifest["files"].items():
        assert file_hash(tmp_path / "out" / name) == record["xxh3"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| adapted 2 | `other` |" in card and "| method | linear |" in card


# ------------------------------------------------ what must be refused


def pair(tmp_path: Path, **settings: Any) -> tuple[Path, Path]:
    base = save_base(tmp_path / "base", **settings)
    return base, save_adapted(tmp_path / "adapted", base)


def refused(base: Path, adapted: Path, message: str, **changes: Any) -> None:
    settings = {"method": "slerp", "ratio": 0.5, "dtype": "auto", **changes}
    out = base.parent / "refused"
    with pytest.raises(RequestError, match=message):
        merge(base, adapted, **settings, directory=out)
    assert not list(base.parent.glob("*.tmp"))
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
    assert open_inputs(base, [adapted]).names
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
    merge(base, adapted, "linear", 0.5, "bfloat16", tmp_path / "wide")


def test_a_base_it_was_not_trained_on(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    adapter = save_adapter(tmp_path / "adapter", base)
    for directory in (adapted, adapter):
        (directory / "manifest.json").write_text(json.dumps({"parents": {"base": hub.digest(base)}}))
        assert open_inputs(base, [directory]).names
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


def test_a_configurations_card_names_no_private_path(tmp_path: Path) -> None:
    base, adapted = pair(tmp_path)
    config = tmp_path / "merge.yaml"
    config.write_text(
        f"merge_method: slerp\nbase_model: {base}\nmodels: [{{model: {base}}}, {{model: {adapted}}}]\n"
        "parameters: {t: 0.3}\ndtype: float32\n"
    )
    assert run_cli("merge", "--config", str(config), "--out", str(tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card and "    base_model: base\n" in card and "| ratio |" not in card
    assert "    parameters: {t: 0.3}" in card and "| adapted | `adapted` |" in card
    merge(base, adapted, "slerp", 0.3, "float32", tmp_path / "expected")
    ours, expected = tensors(tmp_path / "out"), tensors(tmp_path / "expected")
    assert all(same_bits(ours[n], expected[n]) for n in expected)
    for option in ("--ratio", "--method", "--base"):
        assert run_cli("merge", "--config", str(config), "--out", str(tmp_path / "no"), option, "0.5") == 2
    assert not (tmp_path / "no").exists()

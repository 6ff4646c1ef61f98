"""`frbio export --format gguf`: with llama.cpp's own converter where it is, and what happens when it fails or lies."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from frbio_lite.errors import RequestError
from frbio_lite.export.card import write_card
from frbio_lite.export.facts import Merged
from frbio_lite.export.gguf import default_type, find_converter, text_shapes, write_gguf
from frbio_lite.export.licenses import License
from frbio_lite.export.ollama import obstacle
from frbio_lite.export.source import open_model

Base = Callable[..., Path]
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# A converter of the tests: it copies the tensors of a tiny Qwen3 under their GGUF names, and does one thing wrong.
STAND_IN = """
import json, os, sys
from pathlib import Path
from safetensors.numpy import load_file
import gguf
fault, source, outfile = os.environ["FAULT"], Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
Path(os.environ["SEEN"]).write_text(json.dumps([sorted(p.name for p in source.iterdir()), sys.argv[2:], dict(os.environ)]))
if fault == "truncated":
    Path(outfile).write_bytes(b"GGUF")
    raise SystemExit
names, config = json.loads(os.environ["NAMES"]), json.loads((source / "config.json").read_text())
writer = gguf.GGUFWriter(outfile, "qwen3")
writer.add_block_count(config["num_hidden_layers"] + (fault == "layers"))
writer.add_embedding_length(config["hidden_size"])
writer.add_token_list([f"t{i}" for i in range(config["vocab_size"] - (fault == "tokens"))])
for name, tensor in load_file(source / "model.safetensors").items():
    for long, short in names.items():
        name = name.replace(long, short)
    if fault == "missing" and name == "blk.1.ffn_up.weight":
        continue
    if fault == "shape" and name == "blk.1.ffn_up.weight":
        tensor = tensor.T.copy()
    writer.add_tensor(name, tensor)
if fault == "extra":
    writer.add_tensor("blk.9.ffn_up.weight", tensor)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`stand_in(fault)` makes it the converter and returns where it notes what it saw."""
    pytest.importorskip("gguf", reason="needs the gguf package")

    def make(fault: str, script: str = STAND_IN) -> Path:
        folder = tmp_path / "llama.cpp"
        folder.mkdir(exist_ok=True)
        (folder / "convert_hf_to_gguf.py").write_text(script)
        known = {"LLAMA_CPP": folder, "FAULT": fault, "SEEN": tmp_path / "seen.json", "NAMES": json.dumps(NAMES)}
        for name, value in known.items():
            monkeypatch.setenv(name, str(value))
        return tmp_path / "seen.json"

    return make


def test_without_the_converter_the_way_to_get_it_is_told(
    make_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_converter() is None
    with pytest.raises(RequestError, match=r"git clone .*llama\.cpp.*pip install gguf.*export LLAMA_CPP"):
        write_gguf(open_model(make_base()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(RequestError, match=r"which holds no convert_hf_to_gguf\.py"):
        find_converter()
    monkeypatch.delenv("LLAMA_CPP")
    (tmp_path / "convert_hf_to_gguf.py").touch(mode=0o755)
    assert find_converter() == [str(tmp_path / "convert_hf_to_gguf.py")]


def test_a_faithful_file_takes_its_place(make_base: Base, stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    seen = stand_in("none")
    model = make_base(name="Mon modèle")
    for name in ("manifest.json", "tokenization_evil.py", "notes.txt"):
        (model / name).write_text("")
    path = write_gguf(open_model(model), tmp_path / "out", "f32")
    assert path == tmp_path / "out" / "mon-mod-le-f32.gguf" and [p.name for p in path.parent.iterdir()] == [path.name]
    files, arguments, environment = json.loads(seen.read_text())
    assert set(files) == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                          "tokenizer_config.json"}  # fmt: skip
    assert arguments[:2] == ["--outtype", "f32"] and environment["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(RequestError, match="exists: remove it"):
        write_gguf(open_model(model), tmp_path / "out", "f32")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("truncated", "cannot be read back"),
        ("layers", "block_count 3, and config.json 2"),
        ("tokens", "token_embd.weight is"),
        ("missing", "lacks blk.1.ffn_up.weight"),
        ("shape", "blk.1.ffn_up.weight is"),
        ("extra", "holds blk.9.ffn_up.weight"),
    ],
)
def test_a_file_that_is_not_the_model_is_not_kept(
    make_base: Base, stand_in: Callable[[str], Path], tmp_path: Path, fault: str, said: str
) -> None:
    stand_in(fault)
    with pytest.raises(RuntimeError, match=said):
        write_gguf(open_model(make_base()), tmp_path / "out", "f32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        ("NotImplementedError('BPE pre-tokenizer was not recognized - update it')", RequestError, "does not know the tokenizer"),
        ("OSError(28, 'No space left on device')", RequestError, "no space left on disk"),
        ("ModuleNotFoundError('No module named sentencepiece')", RequestError, "lacks a package .*sentencepiece"),
        ("NotImplementedError('Architecture Foo is not supported')", RequestError, "does not know Qwen3ForCausalLM"),
        ("RuntimeError('odd')", RuntimeError, "RuntimeError: odd"),
    ],
)  # fmt: skip
def test_what_the_converter_says_is_told_in_one_line(
    make_base: Base, stand_in: Any, tmp_path: Path, raised: str, kind: type[Exception], said: str
) -> None:
    stand_in("", f"import sys\nopen(sys.argv[5], 'w').write('half')\nraise {raised}\n")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(kind, match=said):
        write_gguf(open_model(make_base()), out, "f32")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(make_base: Base, stand_in: Any, name: str, tmp_path: Path) -> None:
    seen = stand_in("none")
    model = make_base()
    settings = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": "evil--repo.Tokenizer"}}))
    with pytest.raises(RequestError, match="names code of its own"):
        write_gguf(open_model(model), tmp_path / "out")
    assert not seen.exists()


def test_no_space(make_base: Base, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stand_in("none")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="no space left for the GGUF file"):
        write_gguf(open_model(make_base()), tmp_path / "out", "f32")
    assert not seen.exists() and not (tmp_path / "out").exists()


def test_the_type_follows_the_weights(make_base: Base) -> None:
    assert default_type(open_model(make_base(dtype=torch.bfloat16, name="b"))) == "bf16"
    assert default_type(open_model(make_base(name="f"))) == "f16"


# ------------------------------------------------ with llama.cpp's converter


def llama(directory: Path, tied: bool) -> Path:
    """A tiny Llama with a sentencepiece vocabulary, which the converter reads by its own rules."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="makes a vocabulary that llama.cpp knows")
    written = io.BytesIO()
    lines = [f"Le patient numéro {i} reçoit {i % 7},5 mg de midazolam ; la CRP est à {i * 3} mg/L." for i in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=330, model_type="bpe", byte_fallback=True,
        minloglevel=2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=330, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(written.getvalue())
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    write_card(directory, Merged(("a/b", "c"), License("apache-2.0", None), {}, 0.5, {"method": "slerp"}))
    return directory


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="needs llama.cpp's converter in $LLAMA_CPP")
@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpps_own_converter(tmp_path: Path, tied: bool) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    model = open_model(llama(tmp_path / "modele", tied))
    assert obstacle(model)
    weights = load_file(model.directory / "model.safetensors")
    for kind, tolerance in (("f32", 0.0), ("q8_0", 0.01)):
        path = write_gguf(model, tmp_path / "out", kind)  # type: ignore[arg-type]
        reader = gguf.GGUFReader(path)
        held = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        embedding = weights["model.embed_tokens.weight"].numpy()
        assert np.abs(held["token_embd.weight"] - embedding).max() <= tolerance * np.abs(embedding).max()
        assert reader.get_field("general.license").contents() == "apache-2.0"
        assert reader.get_field("llama.context_length").contents() == 128
        assert len(held) == len(text_shapes(model.directory))

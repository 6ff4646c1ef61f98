"""What loads the base for training: refusals before the first hour, and unsloth's calls, here to a module of its shape."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from frbio_lite import backends, model, training
from frbio_lite.errors import RequestError
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Base, Packing, Train

Make = Callable[..., Path]
CPU = torch.device("cpu")


def settings(**changes: Any) -> Train:
    values: dict[str, Any] = {
        "method": "lora", "tokens": 64 * 4 * 6, "tokens_per_step": 64 * 4, "micro_batch_size": 2,
        "optimizer": {"learning_rate": 1e-3}, "lora": {"rank": 4, "alpha": 8},
    }  # fmt: skip
    return Train.model_validate({**values, **changes})


class FakeLanguageModel:
    """The part of unsloth.FastLanguageModel that is called, made of transformers and PEFT."""

    calls: ClassVar[dict[str, dict[str, Any]]] = {}
    leaky = False  # attention that does not heed documents, as with a kernel that is only causal
    fails: Exception | None = None

    @classmethod
    def from_pretrained(cls, model_name: str, **named: Any) -> tuple[Any, Any]:
        cls.calls["from_pretrained"] = {"model_name": model_name, **named}
        if cls.fails is not None:
            raise cls.fails
        loaded = AutoModelForCausalLM.from_pretrained(model_name, dtype=named["dtype"])
        if cls.leaky:
            decoder = loaded.get_decoder()
            decoder.forward = partial(_causal_only, decoder.forward)
        return loaded, AutoTokenizer.from_pretrained(model_name)

    @classmethod
    def get_peft_model(cls, model: Any, r: int, target_modules: Any, **named: Any) -> Any:
        cls.calls["get_peft_model"] = {"r": r, "target_modules": target_modules, **named}
        kept = {name: named[name] for name in ("lora_alpha", "lora_dropout", "bias")}
        torch.manual_seed(named["random_state"])
        adapted = get_peft_model(model, LoraConfig(r=r, target_modules=target_modules, task_type="CAUSAL_LM", **kept))
        for parameter in adapted.parameters():  # unsloth's adapters are in 16 bits where training is
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        return adapted


def _causal_only(forward: Callable[..., Any], input_ids: torch.Tensor, **named: Any) -> Any:
    return forward(input_ids=input_ids, **{**named, "attention_mask": torch.ones_like(input_ids)})


@pytest.fixture
def unsloth(monkeypatch: pytest.MonkeyPatch) -> type[FakeLanguageModel]:
    module: Any = ModuleType("unsloth")
    module.__spec__ = ModuleSpec("unsloth", None)
    module.FastLanguageModel = FakeLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr(FakeLanguageModel, "calls", {})
    monkeypatch.setattr(backends, "pick_device", lambda: torch.device("cuda", 0))
    return FakeLanguageModel


def run(base: Path, packed: Path, out: Path, how: Train, loading: Base, **packing: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return training.train(base, PackedTokens(packed), how, Packing(sequence_length=64, **packing), 3, out, loading)


def test_unsloth_loads_and_our_loop_trains(
    unsloth: type[FakeLanguageModel], make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    base, packed, loading = make_base(), make_packed(), Base(model="any", backend="unsloth")
    figures = run(base, packed, tmp_path / "out", settings(), loading)
    assert unsloth.calls["from_pretrained"] == {
        "model_name": str(base), "max_seq_length": 64, "dtype": torch.float32, "load_in_4bit": False,
        "use_exact_model_name": True, "trust_remote_code": False, "use_gradient_checkpointing": False,
    }  # fmt: skip
    given = unsloth.calls["get_peft_model"]
    assert given["r"] == 4 and given["lora_alpha"] == 8 and given["random_state"] == 3
    assert sorted(given["target_modules"]) == sorted(backends.DECODER_LINEARS)
    assert figures["kernels"] == {"swapped": {}, "plain": {"all": "unsloth's own"}}
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(saved) == 2 * 2 * 7 and {t.dtype for t in saved.values()} == {torch.float32}
    adapted = model.load_adapter(model.load_model(base, dtype=torch.float32, device=CPU), base, tmp_path / "out")
    assert any(float(p.abs().sum()) > 0 for n, p in adapted.named_parameters() if "lora_B" in n)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    native = run(base, packed, tmp_path / "native", settings(), Base(model="any"))
    first = json.loads((tmp_path / "native" / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert len(lines) == native["steps"] and lines[0]["loss"] == pytest.approx(first["loss"], rel=1e-6)


def test_what_the_recipe_says_reaches_unsloth(unsloth: type[FakeLanguageModel], make_base: Make) -> None:
    how = settings(method="qlora", activation_checkpointing=True, lora={"targets": ["q_proj"], "dropout": 0.1})
    backends.load_unsloth(make_base(), how, Packing(sequence_length=32), torch.float32, 5)
    assert unsloth.calls["from_pretrained"]["load_in_4bit"] is True
    assert unsloth.calls["from_pretrained"]["use_gradient_checkpointing"] == "unsloth"
    assert unsloth.calls["get_peft_model"]["target_modules"] == ["q_proj"]
    assert unsloth.calls["get_peft_model"]["lora_dropout"] == 0.1


def test_attention_across_documents_is_refused(
    unsloth: type[FakeLanguageModel],
    make_base: Make,
    make_packed: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsloth, "leaky", True)
    base, packed, loading = make_base(), make_packed(), Base(model="any", backend="unsloth")
    with pytest.raises(RequestError, match=r"see each other: set packing\.document_mask: false"):
        run(base, packed, tmp_path / "out", settings(), loading)
    assert run(base, packed, tmp_path / "out", settings(), loading, document_mask=False)["steps"] == 6


@pytest.mark.parametrize("error", [RuntimeError("Unsloth: no such\nmodel"), NotImplementedError(), OSError("no file")])
def test_what_unsloth_cannot_load_is_one_line(
    error: Exception, unsloth: type[FakeLanguageModel], make_base: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsloth, "fails", error)
    with pytest.raises(RequestError, match=r"base\.backend: unsloth does not load .*base: \S+") as told:
        backends.load_unsloth(make_base(), settings(), Packing(sequence_length=32), torch.float32, 5)
    assert "\n" not in str(told.value)


def test_unsloth_needs_the_package_a_gpu_and_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = Base(model="any", backend="unsloth")
    monkeypatch.setitem(sys.modules, "unsloth", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r'not installed: pip install "frbio-lite\[unsloth\]"'):
        backends.check_backend(loading, settings())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(backends, "pick_device", lambda: CPU)
    with pytest.raises(RequestError, match="unsloth needs a GPU and this machine has none: use native"):
        backends.check_backend(loading, settings())
    monkeypatch.setattr(backends, "pick_device", lambda: torch.device("cuda", 0))
    with pytest.raises(RequestError, match=r"unsloth trains adapters here: use train\.method: qlora or lora"):
        backends.check_backend(loading, settings(method="full"))
    backends.check_backend(loading, settings())


@pytest.mark.parametrize(
    ("changes", "backend", "message"),
    [
        ({"method": "lora"}, "native", r"go with train\.method: qlora, not lora"),
        ({"method": "full"}, "native", r"go with train\.method: qlora, not full"),
        ({"lora": {"targets": ["q_proj", "lm_head"]}}, "native", "trains lm_head"),
        ({"lora": {"targets": ["model.embed_tokens"]}}, "native", "trains embed_tokens"),
        ({"lora": {"targets": r".*(q_proj|lm_head)"}}, "native", "trains lm_head"),
        ({}, "unsloth", "unsloth keeps embeddings and head in 16 bits"),
    ],
)
def test_a_quantised_head_is_refused_where_it_cannot_be(changes: dict[str, Any], backend: Any, message: str) -> None:
    loading = Base(model="any", backend=backend, quantize_head=True)
    with pytest.raises(RequestError, match=message):
        backends.check_backend(loading, settings(**{"method": "qlora", **changes}))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"], r".*\.self_attn\.(q|k)_proj"])
def test_a_quantised_head_goes_with_adapters_on_the_decoder(targets: str | list[str]) -> None:
    how = settings(method="qlora", lora={"targets": targets})
    backends.check_backend(Base(model="any", quantize_head=True), how)

"""Adapters merged on disk and reloaded against the same adapter live in PEFT, and the adapters that must be refused."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from frbio_lite.errors import RequestError
from frbio_lite.merging import Parameters, Profile, Rounding, blocks, by_method, merge_models, open_inputs
from frbio_lite.merging.adapters import LoraAdapter
from tests.merging.tiny_models import input_ids, load, save_adapted, save_adapter, save_base, tensors
from tests.tiny import CLASSES, SHAPE

FILE = "adapter_model.safetensors"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "mlp.*": 6},
        "alpha_pattern": {"v_proj": 32, r"layers\.1\..*": 3},
    },
    "dora, patterns": {
        "use_dora": True,
        "rank_pattern": {"mlp.*": 6},
        "alpha_pattern": {"v_proj": 32},
    },
    "dora and rslora": {"use_dora": True, "use_rslora": True},
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["mlp", "norm", "k_proj"]},
}
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
TARGETS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "head beside a saved embedding": {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    "embedding beside a saved head": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
}
IMPOSSIBLE = ("head beside a saved embedding", True, True)  # PEFT cannot tie these: it raises TypeError


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids()).logits.float()
    return found


def attached(model: Any, adapter: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, adapter).eval()


def live(base: Path, adapter: Path) -> torch.Tensor:
    return logits(attached(load(base, torch.float32), adapter))


def merge(base: Path, adapter: Path, out: Path, ratio: float = 1.0, method: str = "linear") -> Path:
    merge_models(by_method(open_inputs(base, [adapter]), method, Parameters(), Profile()), out, ratio=ratio)
    return out


def open_adapter(base: Path, adapter: Path) -> LoraAdapter:
    source = open_inputs(base, [adapter]).adapted[0]
    assert isinstance(source, LoraAdapter)
    return source


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_settings(adapter: Path, **changes: Any) -> None:
    change_json(adapter / "adapter_config.json", **changes)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_ratio_one_is_the_live_adapter(tmp_path: Path, tied: bool, settings: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base", tied=tied)
    adapter = save_adapter(tmp_path / "adapter", base, **copy.deepcopy(settings))
    merge(base, adapter, tmp_path / "out", method="slerp")
    expected = live(base, adapter)
    assert (expected - logits(load(base, torch.float32))).abs().max() > 0.05  # the adapter does something
    assert close(logits(load(tmp_path / "out", torch.float32)), expected)


@pytest.mark.parametrize(
    ("target", "kind"),
    [(t, k) for t in TARGETS for k in KINDS if k != "rslora" or "modules_to_save" not in TARGETS[t]],
)
@pytest.mark.parametrize("ensure", [False, True], ids=["", "ensured"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embedding_and_head_reload_as_the_live_adapter(
    tmp_path: Path, tied: bool, ensure: bool, target: str, kind: str
) -> None:
    """Two tensors where the live model has two, also of a base that ties them, and one where PEFT keeps one."""
    base = save_base(tmp_path / "base", tied=tied, dtype=torch.bfloat16)
    settings = copy.deepcopy(TARGETS[target]) | KINDS[kind] | ({"ensure_weight_tying": True} if ensure else {})
    if (target, tied, ensure) == IMPOSSIBLE:
        with pytest.raises(TypeError, match="modules_to_save cannot be applied"):
            save_adapter(tmp_path / "adapter", base, **settings)
        return
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    inputs = open_inputs(base, [adapter])
    merger = by_method(inputs, "linear", Parameters(), Profile())
    merge_models(merger, tmp_path / "out", ratio=1.0, rounding=Rounding("F32"))
    model = attached(load(base, torch.float32), adapter)
    expected = logits(model)
    assert (expected - logits(load(base, torch.float32))).abs().max() > 0.05
    assert close(logits(load(tmp_path / "out", torch.float32)), expected)
    two = not tied or not torch.allclose(*vocabulary_matrices(model), atol=1e-5)
    assert ("lm_head.weight" in tensors(tmp_path / "out")) == two
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] == (not two)
    assert inputs.unties == (tied and two)


def vocabulary_matrices(model: PeftModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedding and the head that a live model computes with, by what it answers."""
    inner = model.get_base_model()
    with torch.no_grad():
        embedding = inner.get_input_embeddings()(torch.arange(inner.config.vocab_size))
        return embedding, inner.get_output_embeddings()(torch.eye(inner.config.hidden_size)).T


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", CLASSES)
def test_the_embedding_and_head_of_each_architecture(tmp_path: Path, name: str, kind: str) -> None:
    """Gemma scales its embeddings when it looks them up, and caps its logits."""
    config, architecture, extra = CLASSES[name]
    torch.manual_seed(5)
    settings = dict(vocab_size=96, pad_token_id=0, tie_word_embeddings=True)
    architecture(config(**settings, **SHAPE, **extra)).save_pretrained(tmp_path / "base")
    held = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = ["q_proj", "embed_tokens", "lm_head"]
        model = get_peft_model(held, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **KINDS[kind]))
        with torch.no_grad():
            for parameter, tensor in model.named_parameters():
                if "lora_" in parameter:
                    tensor.copy_(torch.randn_like(tensor) * 0.2)
        model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    expected = logits(model.eval())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert (expected - logits(base)).abs().max() > 1e-2
    assert close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected)


def test_dora_is_the_formula_in_fp64_and_what_peft_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 129)  # blocks of a few rows, the last one shorter
    base = save_base(tmp_path / "base", tied=False)
    settings = {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "use_dora": True, "lora_alpha": 3}
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    merged, stored, held = tensors(merge(base, adapter, tmp_path / "out")), tensors(base), tensors(adapter)
    prefix = "base_model.model."
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj", "lm_head"):
        a, b, m = (
            held[f"{prefix}{name}.lora_{part}"].double() for part in ("A.weight", "B.weight", "magnitude_vector")
        )
        changed = stored[f"{name}.weight"].double() + 3 / 4 * b @ a
        expected = m[:, None] * changed / changed.norm(dim=1, keepdim=True)
        assert (merged[f"{name}.weight"] - expected).abs().max() <= 1e-6 * expected.abs().max()
    name = "model.embed_tokens"
    a, b, m = (held[f"{prefix}{name}.lora_{p}"].double() for p in ("embedding_A", "embedding_B", "magnitude_vector"))
    changed = stored[f"{name}.weight"].double() + 3 / 4 * (b @ a).T
    expected = m * changed / changed.norm(dim=0)
    assert (merged[f"{name}.weight"] - expected).abs().max() <= 1e-6 * expected.abs().max()
    theirs = attached(load(base, torch.float32), adapter).merge_and_unload().state_dict()
    assert all((merged[n] - theirs[n]).abs().max() <= 1e-5 * theirs[n].abs().max() for n in merged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_sixteen_bits_differ_by_rounding_alone(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    """Each weight is within half a unit in the last place of the fp32 sum, and the logits follow."""
    base = save_base(tmp_path / "base", tied=tied, dtype=dtype)
    adapter = save_adapter(tmp_path / "adapter", base)
    merge(base, adapter, tmp_path / "out")
    merged = PeftModel.from_pretrained(load(base, torch.float32), adapter).merge_and_unload().state_dict()
    half_ulp = torch.finfo(dtype).eps / 2
    for name, weight in load(tmp_path / "out", torch.float32).state_dict().items():
        assert ((weight - merged[name]).abs() <= half_ulp * merged[name].abs() + 1e-6).all(), name
    expected = live(base, adapter)
    error = (logits(load(tmp_path / "out", torch.float32)) - expected).norm() / expected.norm()
    change = (logits(load(base, torch.float32)) - expected).norm() / expected.norm()
    assert error < 3 * torch.finfo(dtype).eps < change / 3


@pytest.mark.parametrize("method", ["linear", "lora_scale"])
def test_half_the_ratio_is_half_the_scaling(tmp_path: Path, method: str) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, lora_alpha=8)
    merge(base, adapter, tmp_path / "out", 0.5, method)
    change_settings(adapter, lora_alpha=4)
    assert close(logits(load(tmp_path / "out", torch.float32)), live(base, adapter))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"modules_to_save": ["lm_head"]}, r"replaces lm_head\.weight as a whole"),
    ],
)
def test_lora_scale_is_for_what_a_scaling_can_express(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], **settings)
    assert not open_adapter(base, adapter).scalable
    with pytest.raises(RequestError, match=rf"{reason}.* use the method linear"):
        merge(base, adapter, tmp_path / "out", 0.5, "lora_scale")
    assert open_adapter(base, save_adapter(tmp_path / "plain", base, use_rslora=True)).scalable
    with pytest.raises(RequestError, match=r"whole is a whole model: use the method linear"):
        merge(base, save_adapted(tmp_path / "whole", base), tmp_path / "out", 0.5, "lora_scale")
    assert not (tmp_path / "out").exists()


def test_untouched_tensors_are_the_base_to_the_bit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    merge(base, adapter, tmp_path / "out", 0.37, "slerp")
    before, after = tensors(base), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {n for n in before if not after[n].view(torch.int16).equal(before[n].view(torch.int16))} == {
        n for n in before if "q_proj" in n
    }


def test_an_untied_merge_at_zero_is_the_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    after, before = tensors(merge(base, adapter, tmp_path / "out", 0.0)), tensors(base)
    assert after.keys() == {*before, "lm_head.weight"}
    assert all(after[n].view(torch.int16).equal(before[n].view(torch.int16)) for n in before)
    assert after["lm_head.weight"].equal(before["model.embed_tokens.weight"])


def test_one_adapter_unties_and_another_keeps_tied(tmp_path: Path) -> None:
    """The second one's embedding is also its head, though the merged model has two tensors."""
    base = save_base(tmp_path / "base")
    one = save_adapter(tmp_path / "one", base, 5, target_modules=["lm_head"])
    both = save_adapter(tmp_path / "both", base, 6, target_modules=["embed_tokens"], ensure_weight_tying=True)
    merger = by_method(open_inputs(base, [one, both]), "linear", Parameters(), Profile())
    merge_models(merger, tmp_path / "out", ratio=1.0)
    matrices = [vocabulary_matrices(attached(load(base, torch.float32), adapter)) for adapter in (one, both)]
    after = tensors(tmp_path / "out")
    for name, i in (("model.embed_tokens.weight", 0), ("lm_head.weight", 1)):
        assert torch.allclose(after[name], (matrices[0][i] + matrices[1][i]) / 2, atol=1e-5)


def test_a_tie_that_the_file_breaks_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["embed_tokens"], ensure_weight_tying=True)
    held = load_file(adapter / FILE)
    for broken in (
        held | {"base_model.model.lm_head.lora_A.weight": held["base_model.model.lm_head.lora_A.weight"] * 1.5},
        {n: t for n, t in held.items() if "lm_head" not in n},
    ):
        save_file(broken, adapter / FILE)
        with pytest.raises(RequestError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight .* differently"):
            open_inputs(base, [adapter])


def test_saved_copies_of_the_base(tmp_path: Path) -> None:
    """PEFT may save the embedding or head it did not train: the base's own, in the dtype of the training."""
    base = save_base(tmp_path / "base", tied=False)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "embed_tokens", "lm_head"])
    with pytest.raises(RequestError, match=r"another base: its copy of (lm_head|model\.embed_tokens)\.weight differs"):
        open_inputs(save_base(tmp_path / "other", seed=7, tied=False), [adapter])
    expected, held = tensors(merge(base, adapter, tmp_path / "out")), load_file(adapter / FILE)
    copies = {n: t.bfloat16() for n, t in held.items() if "base_layer" in n}
    assert len(copies) == 2
    save_file(held | copies, adapter / FILE)
    found = tensors(merge(base, adapter, tmp_path / "again"))
    assert all(found[n].equal(expected[n]) for n in expected)
    plain = save_adapter(tmp_path / "plain", base)
    head = tensors(base)["lm_head.weight"].clone()
    save_file(load_file(plain / FILE) | {"base_model.model.lm_head.weight": head}, plain / FILE)
    open_inputs(base, [plain])
    head[95, 31] *= 1.01
    save_file(load_file(plain / FILE) | {"base_model.model.lm_head.weight": head}, plain / FILE)
    with pytest.raises(RequestError, match=r"its copy of lm_head\.weight differs"):
        open_inputs(base, [plain])


@pytest.mark.parametrize("targets", [["c_attn", "c_proj"], ["c_attn", "wte", "lm_head"]], ids=str)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_fan_in_fan_out(tmp_path: Path, dora: bool, targets: list[str]) -> None:
    """GPT-2 stores its matrices transposed (Conv1D, one of them square), but for its head."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=64, tie_word_embeddings=False)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    held = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = LoraConfig(r=4, target_modules=targets, fan_in_fan_out=True, task_type="CAUSAL_LM", use_dora=dora)
        model = get_peft_model(held, settings).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(tmp_path / "adapter")
    change_settings(tmp_path / "adapter", fan_in_fan_out=True)  # PEFT records what the last layer made of it
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    expected = logits(model)
    assert (expected - logits(GPT2LMHeadModel.from_pretrained(tmp_path / "base"))).abs().max() > 1e-3
    assert close(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "out")), expected)
    if "wte" in targets:
        change_json(tmp_path / "base" / "config.json", tie_word_embeddings=True)
        with pytest.raises(RequestError, match=r"changes transformer\.wte\.weight, which .* may share with its head"):
            open_inputs(tmp_path / "base", [tmp_path / "adapter"])

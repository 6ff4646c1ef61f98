"""LoRA adapters merged on disk against the same adapter live in PEFT, and the adapters that must be refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from frbio_lite.errors import RequestError
from frbio_lite.merge import merge_models, open_pair
from tests.merge.tiny_models import input_ids, load, new_model, save_adapter, save_base, tensors

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "mlp.*": 6},
        "alpha_pattern": {"v_proj": 32, r"layers\.1\..*": 3},
    },
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids()).logits.float()
    return found


def live(base: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(load(base, torch.float32), adapter).eval())


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_ratio_one_is_the_live_adapter(tmp_path: Path, tied: bool, settings: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base", tied=tied)
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    merge_models(base, adapter, "slerp", 1.0, "auto", tmp_path / "out")
    expected, found = live(base, adapter), logits(load(tmp_path / "out", torch.float32))
    assert (expected - logits(load(base, torch.float32))).abs().max() > 0.05  # the adapter does something
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_sixteen_bits_differ_by_rounding_alone(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    """Each weight is within half a unit in the last place of the fp32 sum, and the logits follow."""
    base = save_base(tmp_path / "base", tied=tied, dtype=dtype)
    adapter = save_adapter(tmp_path / "adapter", base)
    merge_models(base, adapter, "linear", 1.0, "auto", tmp_path / "out")
    merged = PeftModel.from_pretrained(load(base, torch.float32), adapter).merge_and_unload().state_dict()
    half_ulp = torch.finfo(dtype).eps / 2
    for name, weight in load(tmp_path / "out", torch.float32).state_dict().items():
        assert ((weight - merged[name]).abs() <= half_ulp * merged[name].abs() + 1e-6).all(), name
    expected = live(base, adapter)
    error = (logits(load(tmp_path / "out", torch.float32)) - expected).norm() / expected.norm()
    change = (logits(load(base, torch.float32)) - expected).norm() / expected.norm()
    assert error < 3 * torch.finfo(dtype).eps < change / 3


def test_half_the_ratio_is_half_the_scaling(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, lora_alpha=8)
    merge_models(base, adapter, "linear", 0.5, "auto", tmp_path / "out")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 4}))
    expected = live(base, adapter)
    assert (logits(load(tmp_path / "out", torch.float32)) - expected).abs().max() <= 1e-5 * max(
        1.0, expected.abs().max().item()
    )


def test_untouched_tensors_are_the_base_to_the_bit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    merge_models(base, adapter, "slerp", 0.37, "auto", tmp_path / "out")
    before, after = tensors(base), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {n for n in before if not after[n].view(torch.int16).equal(before[n].view(torch.int16))} == {
        n for n in before if "q_proj" in n
    }


def test_untied_embedding_and_head(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tied=False)
    for name, settings in (
        ("lora", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        ("saved", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    ):
        adapter = save_adapter(tmp_path / name, base, **settings)
        merge_models(base, adapter, "linear", 1.0, "auto", tmp_path / f"{name}-out")
        expected = live(base, adapter)
        assert (
            logits(load(tmp_path / f"{name}-out", torch.float32)) - expected
        ).abs().max() <= 1e-5 * expected.abs().max().item()
    with pytest.raises(RequestError, match=r"another base: its copy of (lm_head|model\.embed_tokens)\.weight differs"):
        open_pair(save_base(tmp_path / "other", seed=7, tied=False), tmp_path / "lora")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=str,
)
def test_tied_embedding_or_head_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(RequestError, match=r"(lm_head|embed_tokens)\.weight.* shares between embedding and head"):
        open_pair(base, save_adapter(tmp_path / "adapter", base, **settings))


def test_fan_in_fan_out(tmp_path: Path) -> None:
    """GPT-2 stores its matrices transposed (Conv1D)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        tmp_path / "base"
    )
    from peft import LoraConfig, get_peft_model

    held = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model = get_peft_model(held, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"))
    torch.nn.init.normal_(
        model.get_parameter("base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight"), std=0.5
    )
    model.eval().save_pretrained(tmp_path / "adapter")
    merge_models(tmp_path / "base", tmp_path / "adapter", "linear", 1.0, "auto", tmp_path / "out")
    expected = logits(model)
    assert (expected - logits(GPT2LMHeadModel.from_pretrained(tmp_path / "base"))).abs().max() > 1e-3
    assert (logits(GPT2LMHeadModel.from_pretrained(tmp_path / "out")) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=lambda v: str(v),
)
def test_more_than_lora_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    base = save_base(tmp_path / "base", tied=False)
    with pytest.raises(RequestError, match=named):
        open_pair(base, save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], **settings))


def change_settings(adapter: Path, **changes: Any) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"r": None}, "no number 'r'"),
        ({"r": 3}, "rank 4 in adapter_model.safetensors and 3"),
        ({"some_new_trick": 1}, "some_new_trick"),
        ({"alpha_pattern": {"(": 1}}, "not a regular expression"),
    ],
    ids=str,
)
def test_settings_that_do_not_hold(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    change_settings(adapter, **changes)
    with pytest.raises(RequestError, match=message):
        open_pair(base, adapter)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    file = adapter / "adapter_model.safetensors"
    held = load_file(file)
    for change, message in (
        (
            {Q + ".lora_A.weight": torch.ones(4, 31)},
            r"q_proj\.weight: the adapter is made for shape \[32, 31\], the base has \[32, 32\]",
        ),
        ({Q + ".lora_B.weight": torch.ones(32, 5)}, "do not multiply"),
        ({Q + ".lora_B.weight": None}, "only one of lora_A and lora_B"),
        (
            {
                Q.replace("0", "9") + ".lora_A.weight": torch.ones(4, 32),
                Q.replace("0", "9") + ".lora_B.weight": torch.ones(32, 4),
            },
            r"layers\.9\.self_attn\.q_proj\.weight, which the base .* does not have",
        ),
        ({Q + ".lora_magnitude_vector": torch.ones(32)}, "lora_magnitude_vector is not part of a LoRA adapter"),
        ({"strange": torch.ones(2)}, "strange is not named as PEFT"),
        ({Q + ".lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}, "stored as I8"),
        ({name: None for name in held} | {Q + ".lora_A.weight": None}, "holds no LoRA tensors"),
    ):
        save_file({n: t for n, t in {**held, **change}.items() if t is not None}, file)
        with pytest.raises(RequestError, match=message):
            open_pair(base, adapter)
    save_file({**held, Q + ".lora_A.weight": torch.full((4, 32), math.nan)}, file)
    with pytest.raises(RequestError, match=r"adapter: model\.layers\.0\.self_attn\.q_proj\.weight holds NaN"):
        merge_models(base, adapter, "linear", 0.5, "auto", tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RequestError, match="damaged"):
        open_pair(base, adapter)
    file.unlink()
    with pytest.raises(RequestError, match=r"neither adapter_model\.safetensors"):
        open_pair(base, adapter)


def test_an_adapter_of_another_architecture(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    new_model(0, num_hidden_layers=3).save_pretrained(deep)
    adapter = save_adapter(tmp_path / "adapter", deep)
    with pytest.raises(RequestError, match=r"layers\.2\..* does not have"):
        open_pair(save_base(tmp_path / "base"), adapter)

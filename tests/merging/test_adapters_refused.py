"""Adapters that must be refused before anything is written, each by the name of what is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from frbio_lite.errors import RequestError
from frbio_lite.merging import open_inputs
from tests.merging.test_adapters import FILE, change_settings, merge
from tests.merging.tiny_models import new_model, save_adapter, save_base


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=lambda v: str(v),
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    base = save_base(tmp_path / "base", tied=False)
    with pytest.raises(RequestError, match=named):
        open_inputs(base, [save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], **settings)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"r": None}, "no number 'r'"),
        ({"r": 3}, "rank 4 in adapter_model.safetensors and 3"),
        ({"some_new_trick": 1}, "some_new_trick"),
        ({"alpha_pattern": {"(": 1}}, "not a regular expression"),
        ({"use_dora": True}, "q_proj lacks its lora_magnitude_vector although use_dora is true"),
    ],
    ids=str,
)
def test_settings_that_do_not_hold(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    change_settings(adapter, **changes)
    with pytest.raises(RequestError, match=message):
        open_inputs(base, [adapter])


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    file = adapter / FILE
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
        ({Q + ".lora_magnitude_vector": torch.ones(32)}, "has a lora_magnitude_vector although use_dora is false"),
        ({Q + ".weight": torch.ones(32, 32)}, r"q_proj\.weight is not part of a LoRA adapter"),
        ({"strange": torch.ones(2)}, "strange is not named as PEFT"),
        ({Q + ".lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}, "stored as I8"),
        ({name: None for name in held} | {Q + ".lora_A.weight": None}, "holds no LoRA tensors"),
    ):
        save_file({n: t for n, t in {**held, **change}.items() if t is not None}, file)
        with pytest.raises(RequestError, match=message):
            open_inputs(base, [adapter])
    save_file({**held, Q + ".lora_A.weight": torch.full((4, 32), math.nan)}, file)
    with pytest.raises(RequestError, match=r"adapter: model\.layers\.0\.self_attn\.q_proj\.weight holds NaN"):
        merge(base, adapter, tmp_path / "out", 0.5)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RequestError, match="damaged"):
        open_inputs(base, [adapter])
    file.unlink()
    with pytest.raises(RequestError, match=r"neither adapter_model\.safetensors"):
        open_inputs(base, [adapter])


def test_magnitudes_that_do_not_fit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], use_dora=True)
    held = load_file(adapter / FILE)
    save_file({**held, Q + ".lora_magnitude_vector": torch.ones(31)}, adapter / FILE)
    with pytest.raises(RequestError, match=r"q_proj\.weight: lora_magnitude_vector is \[31\] and B \[32, 4\]"):
        open_inputs(base, [adapter])


def test_an_adapter_of_another_architecture(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    new_model(0, num_hidden_layers=3).save_pretrained(deep)
    adapter = save_adapter(tmp_path / "adapter", deep)
    with pytest.raises(RequestError, match=r"layers\.2\..* does not have"):
        open_inputs(save_base(tmp_path / "base"), [adapter])

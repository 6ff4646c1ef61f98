"""Gemma 3 with images (4B and larger): its text part is adapted, merged and scored, and what sees images stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from frbio_lite import hub
from frbio_lite.ablation.live import Live
from frbio_lite.backends import load_unsloth
from frbio_lite.cli import main
from frbio_lite.errors import RequestError
from frbio_lite.memory import Job
from frbio_lite.merging import Parameters, Profile, Rounding, by_method, open_inputs
from frbio_lite.merging.live import differing, write_into
from frbio_lite.model import load_model, save_model
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Packing, Train, load_recipe
from frbio_lite.training import train

CPU = torch.device("cpu")
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 256, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
IMAGES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
          "patch_size": 14}  # fmt: skip
PREFIX = "language_model."


@pytest.fixture(autouse=True)
def _any_shape_in_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 4-bit kernel that bitsandbytes takes on some processors knows multiples of 32 outputs and 64 inputs only."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """As the Hub holds gemma-3-4b-pt, in small: bf16, config.json with few keys."""
    torch.manual_seed(3)
    config = Gemma3Config(
        text_config={**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config=IMAGES,
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    directory = tmp_path / "base"
    model.to(torch.bfloat16).save_pretrained(directory)
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    del settings["tie_word_embeddings"], settings["text_config"]["tie_word_embeddings"]
    (directory / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (directory / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    tokenizer.save_pretrained(directory)
    return directory


def adapted(base: Path, packed: Path, out: Path, **changes: Any) -> Path:
    settings = Train.model_validate(
        {
            "method": "lora", "tokens": 512, "tokens_per_step": 256, "precision": "fp32",
            "optimizer": {"learning_rate": 3e-3}, "lora": {"rank": 4, "alpha": 8}, **changes,
        }
    )  # fmt: skip
    out.mkdir()
    train(base, PackedTokens(packed), settings, Packing(sequence_length=64), 0, out)
    return out


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def images(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in found.items() if not name.startswith(PREFIX)}


def whole(directory: Path) -> Any:
    """With its part for images, and nothing of it made up."""
    model, found = Gemma3ForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model.eval()


IDS = torch.arange(3, 40)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def test_what_is_loaded_is_the_text_model_and_computes_what_the_whole_does_of_text(base: Path) -> None:
    text = load_model(base, dtype=torch.float32, device=CPU)
    assert type(text) is Gemma3ForCausalLM and not any("vision" in name for name, _ in text.named_parameters())
    assert text.get_output_embeddings().weight is text.get_input_embeddings().weight
    torch.testing.assert_close(logits(text), logits(whole(base)), rtol=0, atol=1e-4)
    quantised = load_model(base, dtype=torch.float32, device=CPU, nf4=True)
    assert type(quantised.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert Job.of(load_recipe("demo", [f"base.model={base}"])).config.model_type == "gemma3_text"


def test_a_model_that_lacks_a_tensor_is_refused(base: Path) -> None:
    found = tensors(base)
    del found[f"{PREFIX}model.layers.1.mlp.up_proj.weight"]
    save_file(found, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"it has no tensor for model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(base, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    "changes", [{}, {"method": "qlora"}, {"lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "lm_head"]}}]
)
def test_an_adapter_is_merged_into_the_whole_model(
    base: Path, make_packed: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    adapter = adapted(base, make_packed(), tmp_path / "adapter", **changes)
    command = ["merge", "--base", base, "--adapter", adapter, "--ratio", "0.5", "--dtype", "float32", "--verify"]
    if changes.get("method") == "qlora":
        command += ["--adapter-base", "nf4-dequant"]
    result = CliRunner().invoke(main, [*map(str, command), "--out", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    before, after = tensors(base), tensors(tmp_path / "merged")
    untied = {f"{PREFIX}lm_head.weight"} if "lora" in changes else set()
    assert after.keys() == before.keys() | untied
    assert all(tensor.equal(before[name].float()) for name, tensor in images(after).items())
    name = f"{PREFIX}model.layers.1.self_attn.q_proj.weight"
    assert not after[name].equal(before[name].float())
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()
    text = load_model(tmp_path / "merged", dtype=torch.float32, device=CPU)
    torch.testing.assert_close(logits(text), logits(whole(tmp_path / "merged")), rtol=0, atol=1e-4)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) is Gemma3ForConditionalGeneration


def test_an_ablation_scales_the_live_adapter(base: Path, make_packed: Callable[..., Path], tmp_path: Path) -> None:
    adapter = adapted(base, make_packed(), tmp_path / "adapter")
    inputs = open_inputs(base, [adapter])
    live = Live(base, [adapter], nf4=False, dtype=torch.float32, device=CPU)
    scaled = logits(live.scaled(by_method(inputs, "lora_scale", Parameters(), Profile()), 0.5))
    linear = by_method(inputs, "linear", Parameters(), Profile())
    torch.testing.assert_close(scaled, logits(live.merged(linear, 0.5, Rounding("F32"), "")), rtol=0, atol=1e-3)
    assert not scaled.allclose(logits(load_model(base, dtype=torch.float32, device=CPU)), atol=1e-3)


def test_all_weights_of_the_text_are_trained_saved_and_merged(
    base: Path, make_packed: Callable[..., Path], tmp_path: Path
) -> None:
    trained = adapted(base, make_packed(), tmp_path / "trained", method="full")
    before, after = tensors(base), tensors(trained)
    assert after.keys() == before.keys()
    assert all(tensor.equal(before[name]) for name, tensor in images(after).items())
    assert not any(after[name].equal(before[name].float()) for name in before if name.startswith(PREFIX))
    text = load_model(trained, dtype=torch.float32, device=CPU)
    torch.testing.assert_close(logits(text), logits(whole(trained)), rtol=0, atol=1e-4)
    merger = by_method(open_inputs(base, [trained]), "slerp", Parameters(), Profile())
    live = load_model(base, dtype=torch.float32, device=CPU)
    write_into(live, merger, 0.5, Rounding("F32"))
    assert differing(live, merger, 0.5, Rounding("F32")) is None
    halfway = live.model.layers[0].mlp.up_proj.weight
    name = f"{PREFIX}model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(halfway, (before[name].float() + after[name]) / 2, rtol=0, atol=1e-3)


def test_saving_keeps_the_shape_of_the_base(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save_model(load_model(base, dtype=torch.bfloat16, device=CPU), base, tmp_path / "out")
    before, after = tensors(base), tensors(tmp_path / "out")
    assert after.keys() == before.keys() and all(after[name].equal(before[name]) for name in before)
    assert hub.text_prefix(tmp_path / "out") == PREFIX


def test_unsloth_is_refused_before_it_is_imported(base: Path) -> None:
    settings = load_recipe("qwen3-0.6b-qlora-t4")
    with pytest.raises(RequestError, match="part for images"):
        load_unsloth(base, settings.train, settings.packing, torch.bfloat16, 0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": ["gemma3"]}', '{"model_type": "qwen3"}'])
def test_any_other_configuration_has_no_prefix(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert hub.text_prefix(tmp_path) == "" == hub.text_prefix(tmp_path / "nowhere")

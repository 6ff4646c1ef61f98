"""The GPU recipes, proven without their weights: full size on the meta device, reduced size through training and merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from click.testing import CliRunner
from tiny import write_packed
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, PreTrainedTokenizerFast

from frbio_lite.cli import main
from frbio_lite.evaluation import load_tasks
from frbio_lite.memory.bases import published
from frbio_lite.model import attach_lora
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import load_recipe, shipped_recipes
from frbio_lite.training import make_optimizer, total_steps, train

# Parameters of the text models as their publishers or those who converted them count them; Gaperon's card says 1.5 billion.
PARAMETERS = {
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-4b-pt": 3_880_263_168,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "HuggingFaceTB/SmolLM3-3B-Base": 3_075_098_624,
    "almanach/Gaperon-1125-1B": 1_498_482_688,
    "almanach/Gaperon-1125-8B": 8_030_261_248,
}
GPU_RECIPES = [name for name in shipped_recipes() if load_recipe(name).base.model in PARAMETERS]
TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 256}  # fmt: skip
# What a family has beside its sizes: stretched positions, windows, layers without positions (every fourth).
STRETCHED = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 64}  # fmt: skip
TRAITS: dict[str, dict[str, Any]] = {
    "meta-llama": {"rope_parameters": STRETCHED},
    "google": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "HuggingFaceTB": {"num_hidden_layers": 4},
}


@pytest.fixture(autouse=True)
def _any_shape_in_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 4-bit kernel that bitsandbytes takes on some processors knows multiples of 32 outputs and 64 inputs only."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


def tiny_base(model: str, tokenizer: PreTrainedTokenizerFast, directory: Path) -> Path:
    """The base's own classes at reduced size, stored in bf16 as it is."""
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    values = {**published()[model], **TINY, **TRAITS.get(model.partition("/")[0], {}), **ids}
    config = AutoConfig.for_model(**values)
    if model == "google/gemma-3-4b-pt":  # comes with a part that reads images
        images = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Gemma3Config(
            text_config=config.to_dict(), vision_config={**images, "image_size": 28, "patch_size": 14}
        )
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2)
    made.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def packed(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> PackedTokens:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, len(tokenizer), (40,), generator=generator).tolist() for _ in range(30)]
    return write_packed(tmp_path_factory.mktemp("data") / "packed", texts, 64, int(tokenizer.eos_token_id))


@pytest.mark.parametrize("model", PARAMETERS)
def test_the_base_has_its_size_and_takes_adapters(model: str) -> None:
    config = AutoConfig.for_model(**published()[model])
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in made.parameters()) == PARAMETERS[model]
        lora = attach_lora(made, load_recipe("qwen3-0.6b-qlora-t4").train.lora, 0)
    trained = {n: p for n, p in lora.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * config.num_hidden_layers and all("lora_" in n for n in trained)
    assert sum(p.numel() for p in trained.values()) < 0.05 * PARAMETERS[model]


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_the_recipe_trains_its_architecture_at_reduced_size_and_merges(
    name: str, tokenizer: PreTrainedTokenizerFast, packed: PackedTokens, tmp_path: Path
) -> None:
    sizes = ["packing.sequence_length=64", "train.tokens=640", "train.tokens_per_step=256", "train.precision=fp32"]
    recipe = load_recipe(name, [*sizes, "train.lora.rank=4"])
    base = tiny_base(recipe.base.model, tokenizer, tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()
    figures = train(base, packed, recipe.train, recipe.packing, recipe.seed, out, recipe.base)
    assert figures["steps"] == total_steps(recipe.train, packed) == 3
    full = recipe.train.method == "full"
    assert (out / ("model.safetensors" if full else "adapter_model.safetensors")).is_file()
    how = [
        "--model" if full else "--adapter",
        str(out),
        "--ratio",
        "0.5",
        "--verify",
        "--out",
        str(tmp_path / "merged"),
    ]
    result = CliRunner().invoke(main, ["merge", "--base", str(base), *how])
    assert result.exit_code == 0, result.output
    files = [p.read_bytes() for d in (base, tmp_path / "merged") for p in d.glob("*.safetensors")]
    assert len(files) == 2 and files[0] != files[1]


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_tasks_and_the_optimizer_of_every_recipe_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert load_tasks(recipe.eval.tasks)
    assert {t.group for t in load_tasks(recipe.eval.tasks)} >= set(recipe.merge.choose.retain) or len(
        recipe.merge.ratios
    ) <= 5
    assert make_optimizer(torch.nn.Linear(2, 2), recipe.train.optimizer).param_groups

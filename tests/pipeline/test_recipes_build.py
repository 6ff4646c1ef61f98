"""The GPU recipes, proven without their weights: full size on the meta device, reduced size through all of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3ForCausalLM

from frbio_lite.evaluation import load_tasks
from frbio_lite.model import attach_lora
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Recipe, load_recipe, shipped_recipes
from frbio_lite.training import make_optimizer, total_steps, train

# Layers, hidden size, MLP width, heads, key-value heads, head size, vocabulary and tied embeddings, from each model's
# config.json, with the number of parameters its card gives, in billions.
SHAPES = {
    "Qwen/Qwen3-0.6B-Base": ((28, 1024, 3072, 16, 8, 128, 151_936, True), 0.596),
    "Qwen/Qwen3-1.7B-Base": ((28, 2048, 6144, 16, 8, 128, 151_936, True), 1.721),
    "Qwen/Qwen3-4B-Base": ((36, 2560, 9728, 32, 8, 128, 151_936, True), 4.022),
    "Qwen/Qwen3-8B-Base": ((36, 4096, 12_288, 32, 8, 128, 151_936, False), 8.191),
    "google/gemma-3-1b-pt": ((26, 1152, 6912, 4, 1, 256, 262_144, True), 1.000),
}
GPU_RECIPES = [name for name in shipped_recipes() if load_recipe(name).base.model in SHAPES]


def build(recipe: Recipe) -> torch.nn.Module:
    layers, hidden, mlp, heads, kv, head, vocabulary, tied = SHAPES[recipe.base.model][0]
    shape = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": mlp, "num_attention_heads": heads,
             "num_key_value_heads": kv, "head_dim": head, "vocab_size": vocabulary, "tie_word_embeddings": tied,
             "max_position_embeddings": 32_768}  # fmt: skip
    with torch.device("meta"):
        return (
            Gemma3ForCausalLM(Gemma3TextConfig(**shape))
            if "gemma" in recipe.base.model
            else Qwen3ForCausalLM(Qwen3Config(**shape))
        )


def test_every_gpu_recipe_is_covered() -> None:
    assert len(GPU_RECIPES) >= 6
    assert all(load_recipe(n).base.model in {*SHAPES, "demo", "demo-untrained"} for n in shipped_recipes())


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_the_model_of_the_recipe_has_its_size_and_takes_its_adapters(name: str) -> None:
    recipe = load_recipe(name)
    model = build(recipe)
    total = sum(p.numel() for p in model.parameters())
    assert total / 1e9 == pytest.approx(SHAPES[recipe.base.model][1], rel=0.005)
    assert recipe.packing.sequence_length <= model.config.max_position_embeddings
    if recipe.train.method == "full":
        return
    lora = attach_lora(model, recipe.train.lora, recipe.seed)
    trained = {n: p for n, p in lora.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * SHAPES[recipe.base.model][0][0]
    assert all("lora_" in n for n in trained)
    assert sum(p.numel() for p in trained.values()) < 0.05 * total


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_the_recipe_trains_its_architecture_at_reduced_size(
    name: str, make_base: Callable[..., Path], make_packed: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(
        name, ["packing.sequence_length=64", "train.tokens=1280", "train.tokens_per_step=256", "train.precision=fp32"]
    )
    base = make_base("gemma3" if "gemma" in recipe.base.model else "qwen3", tied=SHAPES[recipe.base.model][0][-1])
    packed = make_packed(sequence_length=64)
    (tmp_path / "out").mkdir()
    figures = train(base, PackedTokens(packed), recipe.train, recipe.packing, recipe.seed, tmp_path / "out")
    assert figures["steps"] == total_steps(recipe.train, PackedTokens(packed)) == 5
    assert (
        tmp_path / "out" / ("model.safetensors" if recipe.train.method == "full" else "adapter_model.safetensors")
    ).is_file()


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_tasks_and_the_optimizer_of_every_recipe_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert load_tasks(recipe.eval.tasks)
    assert {t.group for t in load_tasks(recipe.eval.tasks)} >= set(recipe.merge.choose.retain) or len(
        recipe.merge.ratios
    ) <= 5
    assert make_optimizer(torch.nn.Linear(2, 2), recipe.train.optimizer).param_groups

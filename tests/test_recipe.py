"""Recipes: shipped ones load, wrong ones are refused with place, key and the nearest known name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from frbio_lite.errors import RequestError
from frbio_lite.recipe import READERS, Method, load_recipe, shipped_recipes

ISSUE_RECIPES = {
    "demo", "local-text", "qwen3-0.6b-qlora-t4", "qwen3-0.6b-full-12gb", "qwen3-1.7b-qlora-12gb", "qwen3-4b-qlora-16gb",
    "qwen3-8b-qlora-24gb", "gemma-3-1b-qlora-12gb",
}  # fmt: skip


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_under_their_own_name_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert load_recipe(write(tmp_path / "copy.yaml", recipe.to_yaml())).hash == recipe.hash


def test_the_promised_recipes_are_shipped() -> None:
    assert set(shipped_recipes()) >= ISSUE_RECIPES


def test_unknown_keys_are_reported_together_with_file_line_and_nearest_name(tmp_path: Path) -> None:
    file = write(
        tmp_path / "r.yaml", "extends: demo\nname: mine\ntrain:\n  tokenz: 5\npacking:\n  sequence_lenght: 64\n"
    )
    with pytest.raises(RequestError) as caught:
        load_recipe(file)
    message = str(caught.value)
    assert "r.yaml:4" in message and "did you mean 'tokens'" in message
    assert "r.yaml:6" in message and "did you mean 'sequence_length'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.tokens=many", "valid integer"),
        ("train.tokens=0", "greater than 0"),
        ("merge.ratios=[0, 1.5]", "less than or equal to 1"),
        ("merge.ratios=[-0.1]", "greater than or equal to 0"),
        ("merge.ratios=[.nan]", "merge.ratios"),
        ("merge.methods=[slurp]", "'slerp'"),
        ("merge.methods=[slerp, model_stock]", "two or more adapted models"),
        ("merge.density=0.3", "merge.methods has none of them"),
        ("merge.epsilon=0.1", "epsilon concerns della"),
        ("merge.density=0", "greater than 0"),
        ("merge.top=2", "set screen to bits_per_byte"),
        ("merge.screen=accuracy", "'bits_per_byte'"),
        ("merge.base=nf4", "'nf4-dequant'"),
        ("merge.profile=[{filter: mlp, values: [2]}]", "less than or equal to 1"),
        ("merge.profile=[{part: mlp, values: [1]}]", "unknown key"),
        ("merge.stochastick=true", "did you mean 'stochastic_rounding'"),
        ("train.method=dapt", "'full', 'lora' or 'qlora'"),
        ("train.optimizer.learning_rate=.inf", "finite"),
        ("seed=99999999999999999999", "less than 4294967296"),
        ("train.epochs=1", "either `tokens` or `epochs`"),
        ("train.tokens_per_step=1000", "multiple of packing.sequence_length"),
        ("corpus.sources.0.dataset=a/b", "either `dataset`"),
        ("corpus.sources=[]", "at least 1 item"),
        ("schema_version=2", "schema_version"),
        ("seed", "KEY=VALUE"),
        ("corpus.sources.7.path=x", "no corpus.sources.7"),
        ("train.lora.ranks=4", "did you mean 'rank'"),
        ("train.lora.targets='q_proj('", "train.lora.targets: 'q_proj(' is no regular expression"),
    ],
)
def test_wrong_overrides_name_what_is_wrong(override: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_recipe("demo", [override])
    assert said in str(caught.value)
    assert override.split("=")[0].split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["base.quantize_head=true", "train.method=lora"], "go with train.method: qlora, not lora: leave it out"),
        (["base.quantize_head=true", "train.method=full"], "go with train.method: qlora, not full"),
        (
            ["base.quantize_head=true", "train.method=qlora", "base.backend=unsloth"],
            "unsloth keeps embeddings and head",
        ),
        (["base.quantize_head=true", "train.method=qlora", "train.lora.targets=[q_proj, lm_head]"], "trains lm_head"),
        (["base.quantize_head=true", "train.method=qlora", "train.lora.targets=.*embed_tokens"], "trains embed_tokens"),
        (["base.backend=unsloth", "train.method=full"], "unsloth trains adapters here"),
    ],
)
def test_what_training_cannot_have_of_its_base_is_refused_with_the_recipe(overrides: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=r"^demo\.yaml:\d+: train: base\.") as caught:
        load_recipe("demo", overrides)
    assert said in str(caught.value)


def test_kernels_are_turned_off_by_a_bare_word(tmp_path: Path) -> None:
    text = "extends: demo\nname: mine\ntrain: {kernels: off}\n"
    made = load_recipe(write(tmp_path / "r.yaml", text))
    assert made.train.kernels == load_recipe("demo", ["train.kernels=off"]).train.kernels == "off"
    assert load_recipe(write(tmp_path / "copy.yaml", made.to_yaml())) == made
    with pytest.raises(RequestError, match=r"train\.kernels: should be 'auto' or 'off', not True"):
        load_recipe("demo", ["train.kernels=on"])


def test_such_a_refusal_names_file_and_line(tmp_path: Path) -> None:
    text = "extends: demo\nname: mine\nbase: {quantize_head: true}\ntrain:\n  method: lora\n"
    with pytest.raises(RequestError, match=r"r\.yaml:4: train: base\.quantize_head"):
        load_recipe(write(tmp_path / "r.yaml", text))
    good = load_recipe(write(tmp_path / "r.yaml", text.replace("method: lora", "method: qlora")))
    assert good.base.quantize_head and good.train.method == "qlora"


def test_overrides_reach_into_lists_and_keep_the_rest() -> None:
    recipe = load_recipe(
        "local-text", ["corpus.sources.0.path=a b.txt", "corpus.sources.1.document=line", "train.tokens=1_000"]
    )
    assert recipe.corpus.sources[0].path == "a b.txt"
    assert recipe.corpus.sources[0].license == "own"
    assert recipe.corpus.sources[1].document == "line"
    assert recipe.train.tokens == 1000


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    parent = load_recipe("demo")
    child = load_recipe(
        write(
            tmp_path / "c.yaml",
            "extends: demo\nname: c\ntrain: {optimizer: {learning_rate: 1e-4}}\nmerge: {ratios: [0.5]}\n",
        )
    )
    assert child.train.optimizer.learning_rate == 1e-4
    assert child.train.optimizer.warmup_ratio == parent.train.optimizer.warmup_ratio
    assert child.merge.ratios == [0.0, 0.5, 1.0]


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"extends: {b}\n", encoding="utf-8")
    b.write_text(f"extends: {a}\n", encoding="utf-8")
    with pytest.raises(RequestError, match="circle"):
        load_recipe(str(a))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("name: a\nname: b\n", ":2: 'name' is given twice"),
        ("x: !!python/object/apply:os.system [ls]\n", "unknown key 'x'"),
        ("x: &a [*a]\n", "refers to itself"),
        ("name: !!python/name:os.system x\n", "not valid YAML"),
        ("schema_version: 1\n", "'train' is missing"),
    ],
)
def test_broken_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"r\.yaml") as caught:
        load_recipe(write(tmp_path / "r.yaml", text))
    assert said in str(caught.value)


def test_missing_and_misspelt_names() -> None:
    with pytest.raises(RequestError, match="did you mean 'demo'"):
        load_recipe("demoo")
    with pytest.raises(RequestError, match="cannot be read"):
        load_recipe("not/there.yaml")


def test_binary_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RequestError, match=r"b\.yaml"):
        load_recipe(str(tmp_path / "b.yaml"))


def test_hash_follows_every_value() -> None:
    base = load_recipe("demo")
    assert base.hash == load_recipe("demo").hash
    for override in ("seed=18", "train.lora.rank=8", "eval.shots=1", "merge.dtype=float16"):
        assert load_recipe("demo", [override]).hash != base.hash
    assert yaml.safe_load(base.to_yaml())["name"] == "demo"


def test_a_recipe_names_the_methods_that_there_are() -> None:
    from frbio_lite.merging import METHODS

    assert set(get_args(Method)) == {name for name, method in METHODS.items() if method.least == 1}
    assert {name for names in READERS.values() for name in names} <= set(get_args(Method))


def test_what_is_said_of_a_merge_survives_a_round_trip(tmp_path: Path) -> None:
    made = load_recipe(
        "demo",
        [
            "merge.methods=[della, breadcrumbs]", "merge.density=0.3", "merge.gamma=0.02", "merge.epsilon=0.1",
            "merge.screen=bits_per_byte", "merge.top=2", "merge.stochastic_rounding=true", "merge.dtype=bfloat16",
            "merge.profile=[{filter: self_attn, values: [0, 0.5, 1]}, {filter: '*', values: [0.5]}]",
        ],
    )  # fmt: skip
    again = load_recipe(write(tmp_path / "copy.yaml", made.to_yaml()))
    assert again == made and again.merge.profile[0].values == [0.0, 0.5, 1.0]


def test_a_setting_is_refused_with_the_dtype_it_does_not_fit() -> None:
    with pytest.raises(RequestError, match=r"merge\.stochastic_rounding: stochastic rounding is for bfloat16"):
        load_recipe("demo", ["merge.dtype=float16", "merge.stochastic_rounding=true"])

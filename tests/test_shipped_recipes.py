"""The shipped recipes: no copies of one another, pinned, planned on the cards of their names, and listed in recipes/README.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from frbio_lite.cli import main
from frbio_lite.cli.recipes import CARDS, card_of, markdown_table, predicted
from frbio_lite.errors import RequestError
from frbio_lite.memory import CARDS as KNOWN
from frbio_lite.memory import find_card
from frbio_lite.memory.bases import published
from frbio_lite.recipe import load_recipe, recipe_text, shipped_recipes

FOLDER = Path(__file__).parent.parent / "recipes"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
GPU = [name for name in shipped_recipes() if card_of(name)]
MODELS = {
    "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-4B-Base", "Qwen/Qwen3-8B-Base", "google/gemma-3-1b-pt",
    "google/gemma-3-4b-pt", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "HuggingFaceTB/SmolLM3-3B-Base",
    "almanach/Gaperon-1125-1B", "almanach/Gaperon-1125-8B",
}  # fmt: skip
UNCONFIRMED = {"almanach/Gaperon-1125-1B", "almanach/Gaperon-1125-8B"}  # no public source names a whole commit
GATED = ("google/", "meta-llama/", "almanach/")
MARGIN = 0.95  # of a card's memory; what the plan holds in reserve comes on top


def written(name: str) -> dict[str, Any]:
    """What stands in the file of a recipe, and no more."""
    found: dict[str, Any] = yaml.safe_load(recipe_text(name)[0])
    return found


@cache
def table() -> tuple[str, ...]:
    result = CliRunner().invoke(main, ["recipes", "list", "--markdown"])
    assert result.exit_code == 0, result.output
    return tuple(result.stdout.splitlines())


def values(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Each value of a recipe by its keys; a list is one value."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {place: value for key, part in tree.items() for place, value in values(part, (*path, key)).items()}


def test_every_gpu_recipe_ends_with_a_card_and_every_other_needs_none() -> None:
    assert set(CARDS.values()) <= {card.name for card in KNOWN}
    others = set(shipped_recipes()) - set(GPU)
    assert {load_recipe(name).base.model for name in others} == {"demo", "demo-untrained"}
    assert {load_recipe(name).base.model for name in GPU} == MODELS <= published().keys()
    assert {card_of(name) for name in GPU} == set(CARDS.values())


@pytest.mark.parametrize("name", GPU)
def test_a_recipe_names_only_what_differs_from_the_one_it_extends(name: str) -> None:
    chain, mine = [name], written(name)
    while (parent := written(chain[-1]).get("extends")) is not None:
        chain.append(parent)
    assert chain[-1] == "qwen3-0.6b-qlora-t4" and len(chain) <= 3
    if len(chain) == 1:
        return
    inherited = values(load_recipe(chain[1]).model_dump(mode="json"))
    repeated = [
        place for place, value in values(mine).items() if inherited.get(place) == value and place != ("extends",)
    ]
    assert not repeated
    assert {place[0] for place in values(mine)} <= {
        "extends",
        "name",
        "base",
        "train",
    }  # data, merge and evaluation: once


def test_no_two_recipes_are_the_same_but_for_their_names() -> None:
    found = [load_recipe(name).model_dump(mode="json", exclude={"name"}) for name in GPU]
    assert all(found[i] != found[j] for i in range(len(found)) for j in range(i))


@pytest.mark.parametrize("name", GPU)
def test_bases_are_pinned_and_the_comment_says_what_a_person_must_do_first(name: str) -> None:
    base, text = load_recipe(name).base, recipe_text(name)[0]
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    if base.model in UNCONFIRMED:
        assert base.revision is None and "no\n# revision is pinned yet" in comment
    else:
        assert base.revision is not None and re.fullmatch("[0-9a-f]{40}", base.revision)
    assert ("hf auth login" in comment) == base.model.startswith(GATED)


def test_one_model_has_one_revision() -> None:
    pairs = {(load_recipe(name).base.model, load_recipe(name).base.revision) for name in GPU}
    assert len(pairs) == len({model for model, _ in pairs})
    pinned = [revision for _, revision in pairs if revision]
    assert len(pinned) == len(set(pinned))


def test_a_t4_is_asked_for_nothing_that_it_lacks() -> None:
    for name in GPU:
        recipe = load_recipe(name)
        if card_of(name) == "T4 16GB":
            assert not recipe.train.gradient_release and recipe.train.precision == "auto"
            assert not recipe.base.model.startswith("google/")  # fp16 does not hold Gemma's activations


@pytest.mark.slow
@pytest.mark.parametrize("name", GPU)
def test_every_recipe_fits_its_card_with_a_margin(name: str) -> None:
    recipe, planned = load_recipe(name), predicted(load_recipe(name))
    assert planned.card.name == card_of(name) and planned.needed <= MARGIN * planned.card.memory
    assert planned.needed == sum(planned.parts.values()) and min(planned.parts.values()) >= 0
    assert planned.parts["gradients"] == 0 or not recipe.train.gradient_release
    assert planned.tokens_per_step == recipe.train.tokens_per_step


@pytest.mark.slow
def test_the_readme_lists_each_recipe_with_the_figure_that_the_plan_gives_now() -> None:
    made = table()
    lines = README.splitlines()
    start = lines.index(made[0])
    end = next(i for i in range(start, len(lines)) if not lines[i])
    assert tuple(lines[start:end]) == made
    assert sorted(re.findall(r"^\| `([^`]+)`", "\n".join(made), re.M)) == sorted(GPU)


def test_the_readme_names_a_best_recipe_for_each_card() -> None:
    rows = re.findall(r"^\| ([^|`]+GB) \| `([^`]+)` \| `([^`]+)` \|$", README, re.M)
    assert [row[0] for row in rows] == list(CARDS.values())
    for card, full, qlora in rows:
        assert load_recipe(full).train.method == "full" and load_recipe(qlora).train.method == "qlora"
        for name in (full, qlora):
            meant = find_card(str(card_of(name)))
            assert meant.memory <= find_card(card).memory or name == "qwen3-0.6b-full-12gb"


@pytest.mark.slow
def test_what_the_readme_says_of_a_t4_holds() -> None:
    from frbio_lite.memory import Job, smallest_plan

    assert smallest_plan(Job.of(load_recipe("qwen3-0.6b-full-12gb")), find_card("T4")).fits


def test_every_recipe_that_is_named_in_the_readme_exists() -> None:
    named = set(re.findall(r"`([a-z0-9.]+-[a-z0-9.-]+-(?:t4|\d+gb))`", README))
    named |= set(re.findall(r"(?:show|plan|copy|check|extends:) ([a-z0-9.]+-[a-z0-9.-]+-(?:t4|\d+gb))", README))
    assert named == set(GPU)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, re.S))
def test_the_examples_of_the_readme_are_recipes(block: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(block, encoding="utf-8")
    result = CliRunner().invoke(
        main, ["recipes", "check", str(file), "--set", "train.epochs=4", "--set", "train.tokens=null"]
    )
    assert result.exit_code == 0 and "valid" in result.output, result.output
    assert load_recipe(str(file)).hash != load_recipe(written(str(file))["extends"]).hash


def test_the_list_is_short_and_by_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(main, ["recipes", "list"]).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    named = [line.split()[0] for line in lines[2:] if line.startswith(tuple(shipped_recipes()))]
    assert sorted(named) == shipped_recipes() and named[0] == "demo"
    cards = [card for name in named if (card := card_of(name))]
    assert cards == sorted(cards, key=list(CARDS.values()).index)


def test_the_table_of_a_recipe_of_ones_own_is_of_its_own_figures() -> None:
    small = load_recipe("qwen3-0.6b-qlora-t4", ["packing.sequence_length=256", "train.tokens_per_step=512"])
    row = markdown_table([small])[2]
    assert row.startswith("| `qwen3-0.6b-qlora-t4` | T4 16GB | Qwen/Qwen3-0.6B-Base | QLoRA | ")
    assert float(row.split("|")[5].split()[0]) == pytest.approx(predicted(small).needed / 2**30, abs=0.05)


# A revision belongs to its model


@pytest.mark.parametrize(
    ("overrides", "revision"),
    [
        ([], "da87bfb608c14b7cf20ba1ce41287e8de496c0cd"),
        (["base.model=a/b"], None),
        (["base.model=a/b", "base.revision=c"], "c"),
        (["base.revision=c", "base.model=a/b"], "c"),
        (["base={model: a/b, revision: d}"], "d"),
        (["base.model=Qwen/Qwen3-0.6B-Base"], "da87bfb608c14b7cf20ba1ce41287e8de496c0cd"),
    ],
)
def test_another_base_does_not_take_the_revision_of_the_recipes(overrides: list[str], revision: str | None) -> None:
    assert load_recipe("qwen3-0.6b-qlora-t4", overrides).base.revision == revision


def test_nor_does_a_recipe_that_extends_one(tmp_path: Path) -> None:
    def child(text: str) -> str | None:
        file = tmp_path / "child.yaml"
        file.write_text(f"extends: qwen3-1.7b-full-12gb\nname: child\n{text}\n", encoding="utf-8")
        return load_recipe(str(file)).base.revision

    parent = load_recipe("qwen3-1.7b-full-12gb").base.revision
    assert child("") == child("base: {backend: native}") == parent and parent is not None
    assert child("base: {model: a/b}") is None
    assert child("base: {model: a/b, revision: c}") == child("base: {revision: c}") == "c"
    assert child(f"base: {{model: {load_recipe('qwen3-1.7b-full-12gb').base.model}}}") == parent
    assert load_recipe("qwen3-1.7b-full-12gb").base.revision == parent  # the parent is as it was


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("demoo", "r.yaml:2: extends: no recipe is called 'demoo'; did you mean 'demo'?"),
        ("[demo, local-text]", "r.yaml:2: extends names one recipe or file, not ['demo', 'local-text']"),
        ("", "r.yaml:2: extends names one recipe or file, not None"),
        ("nowhere.yaml", "r.yaml:2: extends: the recipe nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_be_extended_is_said_with_its_place(value: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"name: r\nextends: {value}\n", encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert said in str(caught.value)

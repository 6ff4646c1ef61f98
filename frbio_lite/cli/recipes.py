"""The verbs on recipes: list, show, copy, check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from frbio_lite.cli import completion
from frbio_lite.cli.common import print_table
from frbio_lite.errors import RequestError
from frbio_lite.recipe import Recipe, load_recipe, recipe_text, shipped_recipes

if TYPE_CHECKING:
    from frbio_lite.memory import Plan

# How names of recipes end: the smallest card that each is meant for.
CARDS = {
    "t4": "T4 16GB",
    "12gb": "RTX 3060 12GB",
    "16gb": "RTX 4060 Ti 16GB",
    "24gb": "RTX 4090 24GB",
    "32gb": "RTX 5090 32GB",
}


@click.group("recipes")
def recipes_group() -> None:
    """The recipes that come with frbio: list, show, copy, check."""


@recipes_group.command("list")
@click.option(
    "--markdown",
    is_flag=True,
    help="The table of recipes/README.md, with the memory that `frbio plan` predicts (a minute).",
)
def recipes_list(markdown: bool) -> None:
    """Name the shipped recipes, by the card each is meant for.

    \b
    frbio recipes list
    """
    found = [(card_of(name), load_recipe(name)) for name in shipped_recipes()]
    found.sort(key=lambda pair: ([None, *CARDS.values()].index(pair[0]), pair[1].train.method, pair[1].name))
    if markdown:
        click.echo("\n".join(markdown_table([recipe for card, recipe in found if card])))
        return
    rows = [[r.name, card or "any, or a CPU", r.base.model.rpartition("/")[2], r.train.method] for card, r in found]
    print_table(["recipe", "for", "base", "method"], rows)
    click.echo("`frbio plan NAME` says what GPU memory one needs, on every card.")


def card_of(name: str) -> str | None:
    """The smallest card that a recipe is meant for, after the last dash of its name; None where it needs no GPU."""
    return CARDS.get(name.rpartition("-")[2])


def markdown_table(recipes: Sequence[Recipe]) -> list[str]:
    """The lines of the table in recipes/README.md."""
    lines = ["| recipe | for | base | method | predicted GiB |", "|---|---|---|---|---|"]
    for recipe in recipes:
        planned = predicted(recipe)
        how = (
            "all weights" if recipe.train.method == "full" else {"qlora": "QLoRA", "lora": "LoRA"}[recipe.train.method]
        )
        size = f"{planned.needed / 2**30:.1f} of {planned.card.memory / 2**30:.1f}"
        lines.append(f"| `{recipe.name}` | {planned.card.name} | {recipe.base.model} | {how} | {size} |")
    return lines


def predicted(recipe: Recipe) -> Plan:
    """What a GPU recipe needs at least on the card of its name."""
    from frbio_lite.memory import Job, find_card, smallest_plan

    return smallest_plan(Job.of(recipe), find_card(str(card_of(recipe.name))))


@recipes_group.command("show")
@click.argument("name", shell_complete=completion.RECIPE)
def recipes_show(name: str) -> None:
    """Print a recipe.

    \b
    frbio recipes show demo
    """
    click.echo(recipe_text(name)[0], nl=False)


@recipes_group.command("copy", short_help="Copy a recipe to change it.")
@click.argument("name", shell_complete=completion.RECIPE)
@click.argument("destination", required=False, type=click.Path(path_type=Path))
def recipes_copy(name: str, destination: Path | None) -> None:
    """Copy a recipe to change it; DESTINATION is a file (default: NAME.yaml here), never overwritten.

    \b
    frbio recipes copy demo mine.yaml
    """
    text, _ = recipe_text(name)
    target = destination or Path(f"{Path(name).stem}.yaml")
    if target.is_dir():
        target = target / f"{Path(name).stem}.yaml"
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RequestError(f"{target} exists: choose another name") from error
    except FileNotFoundError as error:
        raise RequestError(f"{target.parent} is not a directory") from error
    click.echo(target)


@recipes_group.command("check")
@click.argument("file", shell_complete=completion.RECIPE)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
def recipes_check(file: str, overrides: tuple[str, ...]) -> None:
    """Validate a recipe without loading weights or touching the network.

    \b
    frbio recipes check mine.yaml
    """
    from frbio_lite.evaluation import load_tasks

    recipe = load_recipe(file, overrides)
    contaminating = recipe.corpus.decontaminate.tasks if recipe.corpus.decontaminate else []
    load_tasks([*recipe.eval.tasks, *contaminating])
    click.echo(f"{recipe.name}: valid")

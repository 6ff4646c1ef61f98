"""The verbs on recipes: list, show, copy, check."""

from __future__ import annotations

from pathlib import Path

import click

from frbio_lite.cli.common import print_table
from frbio_lite.errors import RequestError
from frbio_lite.recipe import load_recipe, recipe_text, shipped_recipes


@click.group("recipes")
def recipes_group() -> None:
    """The recipes that come with frbio: list, show, copy, check."""


@recipes_group.command("list")
def recipes_list() -> None:
    """Name the shipped recipes.

    \b
    frbio recipes list
    """
    rows = []
    for name in shipped_recipes():
        recipe = load_recipe(name)
        rows.append([name, recipe.base.model, recipe.train.method, str(recipe.packing.sequence_length)])
    print_table(["recipe", "base", "method", "sequence"], rows)


@recipes_group.command("show")
@click.argument("name")
def recipes_show(name: str) -> None:
    """Print a recipe.

    \b
    frbio recipes show demo
    """
    click.echo(recipe_text(name)[0], nl=False)


@recipes_group.command("copy")
@click.argument("name")
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
@click.argument("file")
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

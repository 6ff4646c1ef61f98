"""The verb on a recipe's needs: plan."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from frbio_lite.cli import completion
from frbio_lite.cli.common import print_table, print_text, recipe_options
from frbio_lite.errors import RequestError
from frbio_lite.progress import Progress
from frbio_lite.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from frbio_lite.memory import Card, Change, Job, Plan

UNCHECKED = "Predicted; not yet compared with a GPU."


@click.command("plan", short_help="What GPU memory a recipe needs, and on which cards it fits.")
@recipe_options
@click.option(
    "--gpu",
    metavar="NAME",
    help="A card by name, such as 3060, T4 or 'A100 40GB'.  [default: the GPU at hand, else all known]",
    shell_complete=completion.CARD,
)
@click.option(
    "--vram", type=click.FloatRange(min=0.5), metavar="GIB", help="A card of this memory instead of a named one."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, bytes as integers.")
def plan_command(recipe: str, overrides: tuple[str, ...], gpu: str | None, vram: float | None, as_json: bool) -> None:
    """Say what GPU memory a recipe needs, part by part, whether it fits, and what to change when it does not.

    No weights are loaded and no GPU is needed: the model's own code runs on tensors that have a size but no memory. The
    predictions have not been compared with a GPU yet. What does not fit is an answer, not an error: the exit status is 0.

    \b
    frbio plan qwen3-4b-qlora-16gb --gpu T4
    frbio plan qwen3-8b-qlora-24gb --vram 10 --set base.quantize_head=true
    """
    from frbio_lite.memory import CARDS, Job

    loaded = load_recipe(recipe, overrides)
    card = _card(gpu, vram)
    job = Job.of(loaded)
    head = {"recipe": loaded.name, "base": loaded.base.model}
    if card is not None:
        _one(head, loaded, job, card, as_json)
    elif as_json:
        click.echo(json.dumps({**head, "cards": [brief for _, brief in _briefs(job, CARDS)]}))
    else:
        _all(job)


def _card(gpu: str | None, vram: float | None) -> Card | None:
    """The card that is asked for, or the one at hand."""
    from frbio_lite.memory import GIB, Card, card_at_hand, find_card

    if gpu is not None and vram is not None:
        raise RequestError("give --gpu or --vram, not both")
    if vram is not None:
        return Card(f"{vram:g} GiB", int(vram * GIB), 80)
    return find_card(gpu) if gpu is not None else card_at_hand()


def _one(head: dict[str, Any], loaded: Recipe, job: Job, card: Card, as_json: bool) -> None:
    from frbio_lite.memory import changes, plan

    planned = plan(job, card)
    smaller = [] if planned.fits else changes(job, card)
    if as_json:
        found = [{"set": c.overrides, "needed": c.needed, "fits": c.fits} for c in smaller]
        click.echo(json.dumps({**head, **planned.as_dict(), "changes": found}))
        return
    parts = [[part, _gib(size)] for part, size in planned.parts.items() if size]
    print_table([f"{loaded.name} on {card.name}", "GiB"], [*parts, ["together", _gib(planned.needed)]], numbers=[1])
    print_text(f"{'fits' if planned.fits else 'does not fit'} the {_gib(card.memory)} GiB of {card.name}")
    click.echo()
    print_table(["training", ""], _facts(planned))
    for name, needs in (("main memory", planned.host), ("disk, beside the corpus", planned.disk)):
        if any(needs.values()):
            print_table([name, "GiB"], [[part, _gib(size)] for part, size in needs.items() if size], numbers=[1])
    if smaller:
        print_table(
            ["with one window a micro-batch and", "GiB", "fits"],
            [[_sets(change), _gib(change.needed), "yes" if change.fits else "no"] for change in smaller],
            numbers=[1],
        )
    print_text(UNCHECKED)


def _facts(planned: Plan) -> list[list[str]]:
    windows = planned.micro_batch_size
    return [
        ["micro-batch", f"{windows} window{'s' if windows > 1 else ''}"],
        ["step", f"{planned.tokens_per_step:,} tokens, {planned.micro_batches_per_step} micro-batches"],
        ["arithmetic", f"{planned.precision}, kernels {'on' if planned.kernels else 'off'}"],
        ["parameters", f"{planned.parameters:,}, of which {planned.trained_parameters:,} are trained"],
    ]


def _all(job: Job) -> None:
    from frbio_lite.memory import CARDS

    rows = []
    for card, brief in _briefs(job, CARDS):
        if "why" in brief:
            rows.append([card.name, _gib(card.memory), "", "no", brief["why"]])
            continue
        windows = brief["micro_batch_size"]
        needs = _gib(brief["needed_for_one_window"])
        rows.append([card.name, _gib(card.memory), needs, "yes" if brief["fits"] else "no", str(windows or "")])
    print_table(["card", "GiB", "needs at least", "fits", "largest micro-batch"], rows, numbers=[1, 2])
    print_text(f"{UNCHECKED} --gpu NAME shows the parts, and what to change.")


def _briefs(job: Job, cards: Sequence[Card]) -> Iterator[tuple[Card, dict[str, Any]]]:
    with Progress("plan", total=len(cards), unit="cards") as bar:
        for card in cards:
            yield card, _brief(job, card)
            bar.advance()


def _brief(job: Job, card: Card) -> dict[str, Any]:
    """What a table of cards says about one."""
    from frbio_lite.memory import largest_micro_batch, smallest_plan

    try:
        one = smallest_plan(job, card)
    except RequestError as error:
        return {"card": card.name, "memory": card.memory, "fits": False, "why": str(error)}
    return {
        "card": card.name,
        "memory": card.memory,
        "fits": one.fits,
        "needed_for_one_window": one.needed,
        "micro_batch_size": largest_micro_batch(job, card) if one.fits else 0,
    }


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}" if size >= 2**30 / 200 else "< 0.01"


def _sets(change: Change) -> str:
    values = {True: "true", False: "false"}
    return " ".join(f"{k}={values.get(v, v) if isinstance(v, bool) else v}" for k, v in change.overrides.items())

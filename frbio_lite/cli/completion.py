"""What the shell's Tab key offers: recipes, tasks, methods, cards, models. Answers without torch, in a fraction of a second.

eval "$(_FRBIO_COMPLETE=bash_source frbio)"      # in ~/.bashrc; zsh_source and fish_source for the others
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib import resources
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem

from frbio_lite.recipe import shipped_recipes

MERGE_METHODS = (
    "linear", "slerp", "nuslerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "model_stock",
    "karcher", "lora_scale",
)  # fmt: skip
ONE_MODEL_METHODS = tuple(name for name in MERGE_METHODS if name != "model_stock")  # which takes two or more
# Those of `memory.CARDS`, which load torch, with dashes for their spaces: a shell would split the names.
CARDS = (
    "RTX-3060-12GB", "T4-16GB", "V100-16GB", "RTX-4060-Ti-16GB", "L4-24GB", "RTX-3090-24GB", "RTX-4090-24GB",
    "RTX-5090-32GB", "V100-32GB", "A100-40GB", "A100-80GB",
)  # fmt: skip

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _beginning(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    wanted = incomplete.lower()
    return [CompletionItem(name) for name in names if name.lower().startswith(wanted)]


def one_of(names: Callable[[], Iterable[str]], otherwise: str = "") -> Complete:
    """Offers the names that begin so; where none does, what the shell knows of this type (`file`, `dir`), if any."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = _beginning(names(), incomplete)
        return found or ([CompletionItem(incomplete, type=otherwise)] if otherwise else [])

    return complete


def list_of(names: Callable[[], Iterable[str]]) -> Complete:
    """The same for the last entry of a comma-separated list, without those that it has already."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        given = set(before.split(","))
        return [
            CompletionItem(f"{before}{comma}{item.value}")
            for item in _beginning(names(), last)
            if item.value not in given
        ]

    return complete


def task_and_set_names() -> list[str]:
    """As `evaluation.load_tasks` knows them; read from the files' names and one line of each, which takes no YAML parser."""
    tasks, sets = [], set()
    for file in resources.files("frbio_lite.evaluation").joinpath("tasks").iterdir():
        if file.name.endswith(".yaml"):
            tasks.append(file.name.removesuffix(".yaml"))
            line = re.search(r"^sets: *\[(.*)\]", file.read_text(encoding="utf-8"), re.MULTILINE)
            sets.update(re.findall(r"[\w-]+", line[1]) if line else [])
    return [*sorted(sets), *sorted(tasks)]


RECIPE = one_of(shipped_recipes, "file")
TASK = one_of(task_and_set_names, "file")
TASKS = list_of(task_and_set_names)
METHOD = one_of(lambda: MERGE_METHODS)
METHODS = list_of(lambda: ONE_MODEL_METHODS)
CARD = one_of(lambda: CARDS)
MODEL = one_of(lambda: ["demo"], "dir")
DIRECTORY = one_of(lambda: [], "dir")

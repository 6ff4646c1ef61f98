"""The verbs that merge: merge, ablate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from frbio_lite import api
from frbio_lite.cli import completion
from frbio_lite.cli.common import F, Shots, data_options, interval, print_table, print_text
from frbio_lite.errors import RequestError

METHODS = ", ".join(completion.MERGE_METHODS)
SINGLE = ", ".join(completion.ONE_MODEL_METHODS)


def _method_options(command: F) -> F:
    """What the methods can be told beside the ratio."""
    for option in (
        click.option(
            "--epsilon", type=float, default=0.15, help="della keeps with probabilities of density ± epsilon."
        ),
        click.option(
            "--gamma", type=float, default=0.01, help="Share of the largest differences that breadcrumbs drops."
        ),
        click.option(
            "--density",
            type=float,
            default=0.5,
            help="Share of the differences kept: ties, dare_*, della, breadcrumbs.",
        ),
        click.option(
            "--profile",
            multiple=True,
            metavar="PART=VALUES",
            help="Multiply the ratio for tensors with PART in their name, over the layers: self_attn=0,0.5,1 "
            "(repeatable; * is all).",
        ),
    ):
        command = option(command)
    return command


@click.command("merge", short_help="Merge an adapter or adapted models into their base.")
@click.option("--base", help="The base: a directory, a Hub id, or demo.", shell_complete=completion.MODEL)
@click.option("--adapter", help="The adapter: a directory or a Hub id.", shell_complete=completion.DIRECTORY)
@click.option(
    "--model",
    multiple=True,
    help="An adapted model: a directory or a Hub id (repeatable).",
    shell_complete=completion.DIRECTORY,
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A mergekit configuration that says all this instead.",
)
@click.option(
    "--method", default="slerp", metavar="METHOD", help=f"One of {METHODS}.", shell_complete=completion.METHOD
)
@click.option("--ratio", type=float, default=0.5, help="Share of the adapted side: 0 is the base, 1 the adapted model.")
@_method_options
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    default=17,
    help="Of random methods and stochastic rounding.",
)
@click.option(
    "--adapter-base",
    type=click.Choice(["bf16", "nf4-dequant"]),
    default="bf16",
    help="What the adapter is added to: the stored weights, or what training in 4 bits saw of them.",
)
@click.option(
    "--vocab",
    type=click.Choice(["same", "base"]),
    default="same",
    help="base: bring a model with another vocabulary to the base's.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    help="auto: as the base is stored, or as the configuration says.",
)
@click.option("--stochastic-rounding", is_flag=True, help="Round to bfloat16 so that small changes survive on average.")
@click.option("--shard-size", default="5GB", metavar="SIZE", help="Largest file of weights, such as 500MB or 2GB.")
@click.option("--verify", is_flag=True, help="Load the written model and compare its logits with what it was made of.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The merged model's directory.")
def merge_command(config: Path | None, **options: Any) -> None:
    """Merge an adapter or adapted models into their base and write the result, block by block.

    \b
    frbio merge --base demo --model runs/demo/train --ratio 0.5 --out merged
    frbio merge --config mergekit.yaml --out merged
    """
    if config is not None:
        _only_config()
    click.echo(api.merge(config=config, **options))


def _only_config() -> None:
    """Refuse options that a configuration file already answers."""
    context = click.get_current_context()
    for name in (
        "base",
        "adapter",
        "model",
        "method",
        "ratio",
        "profile",
        "density",
        "gamma",
        "epsilon",
        "adapter_base",
    ):
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise RequestError(f"--config says what is merged and how: leave out --{name}")


@click.command("ablate", short_help="Score many merge ratios and choose one.")
@click.option(
    "--base", required=True, help="The base: a directory, a Hub id, or demo.", shell_complete=completion.MODEL
)
@click.option("--adapter", help="The adapter: a directory or a Hub id.", shell_complete=completion.DIRECTORY)
@click.option(
    "--model",
    multiple=True,
    help="An adapted model: a directory or a Hub id (repeatable).",
    shell_complete=completion.DIRECTORY,
)
@click.option("--methods", default="slerp", help=f"Comma-separated, of {SINGLE}.", shell_complete=completion.METHODS)
@click.option("--ratios", default="0:1:0.25", help="START:END:STEP or a comma-separated list.")
@click.option("--tasks", required=True, help="Comma-separated tasks or sets.", shell_complete=completion.TASKS)
@click.option(
    "--choose",
    type=click.Choice(["max-domain", "max-general"]),
    default="max-domain",
    help="The group whose gain decides, on validation items.",
)
@click.option("--retain", default="general>=-1.0", help="GROUP>=POINTS that a ratio must keep; empty for none.")
@click.option(
    "--screen",
    type=click.Choice(["bits_per_byte"]),
    help="Score all ratios on the tasks of this kind first, and only the best on all tasks.",
)
@click.option("--top", type=int, default=3, help="How many pass the screen, beside the base and the adapted model.")
@_method_options
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    help="What the choice would be written in; auto: as the base is stored.",
)
@click.option("--stochastic-rounding", is_flag=True, help="Round to bfloat16 so that small changes survive on average.")
@click.option("--nf4", is_flag=True, help="The adapter was trained on the base in 4 bits; lora_scale scores it there.")
@click.option(
    "--adapter-base",
    type=click.Choice(["auto", "bf16", "nf4-dequant"]),
    default="auto",
    help="What the adapter is added to: the stored weights, or what training in 4 bits saw of them. "
    "auto: bf16, and with --nf4 what is better on the held-out text of --corpus.",
)
@click.option("--shots", type=Shots(), default=0, help="Examples before each question, or paper (as for eval).")
@click.option("--limit", type=int, help="Items per task.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", default=17, help="Of what is random, intervals included."
)
@click.option("--test/--no-test", default=True, help="Report base, adapted model and choice on test items.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the results go.")
@data_options
def ablate_command(out: Path, test: bool, **options: Any) -> None:
    """Score many merge ratios with the models loaded once and none written; choose one on validation items.

    The choice is then reported on test items. The figures are in OUT/ablation.csv, the picture in OUT/pareto.svg.

    \b
    frbio ablate --base demo --model runs/demo/train --ratios 0:1:0.1 \\
                 --tasks demo-medical,demo-general --out ratios
    """
    choice = api.ablate(out=out, test=test, **options)
    groups = sorted(choice["candidates"][0]["gains"])
    wanted = (choice["method"], choice["ratio"])
    print_table(
        ["method", "ratio", *groups, ""],
        [
            [c["method"], f"{c['ratio']:g}", *(f"{c['gains'][g]:+.1f}" for g in groups), _marks(c, wanted)]
            for c in choice["candidates"]
        ],
        numbers=range(1, 2 + len(groups)),
    )
    print_text(choice["why"])
    click.echo()
    if test:
        _test_table(out / "test")


def _marks(candidate: dict[str, Any], wanted: tuple[str, float]) -> str:
    chosen = (candidate["method"], candidate["ratio"]) == wanted
    return ", ".join(["chosen"] * chosen + ["Pareto front"] * candidate["front"])


def _test_table(directory: Path) -> None:
    """Base, adapted model and choice side by side, on test items."""
    names = ("base", "adapted", "chosen")
    found = [json.loads((directory / n / "results.json").read_text(encoding="utf-8"))["rows"] for n in names]
    print_table(
        ["test items", "metric", *names],
        [
            [rows[0]["task"], rows[0]["metric"], *(f"{r['value']:.3f}\n{interval(r['low'], r['high'])}" for r in rows)]
            for rows in zip(*found, strict=True)
        ],
    )

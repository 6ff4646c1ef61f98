"""The command line: verbs only, no logic. `frbio VERB --help` shows an example and every default."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import click

from frbio_lite.errors import RequestError
from frbio_lite.recipe import Recipe, load_recipe, recipe_text, shipped_recipes

# OpenMP's threads spin while they wait for each other. Shorter spinning costs 15 % on an idle machine and doubles the speed
# of small operations on a busy one (benchmarks/end_to_end). Read when torch loads, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

FAILED, WRONG = 1, 2
F = TypeVar("F", bound=Callable[..., Any])


class _Verbs(click.Group):
    """Turns exceptions into one line and an exit status; keeps the verbs in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(WRONG)
        except click.ClickException as error:
            verb = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "frbio"
            _stop(f"{error.format_message()} ({verb} --help shows what is possible)", WRONG)
        except click.Abort:
            _stop("interrupted", 130)
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            _stop("interrupted; the same command continues from here", 130)
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            if isinstance(error, RequestError):
                _stop(str(error), WRONG)
            if (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}) or "No space left" in str(
                error
            ):
                _stop(
                    "no space left on disk: free some or choose another --out; the same command continues from here",
                    WRONG,
                )
            if isinstance(error, PermissionError):
                _stop(f"{error.filename}: permission denied", WRONG)
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            _stop(f"{type(error).__name__}: {first} (frbio --debug shows where)", FAILED)


def _stop(message: str, status: int) -> NoReturn:
    click.echo(f"frbio: {message}", err=True)
    sys.exit(status)


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
)
@click.version_option(package_name="frbio-lite", prog_name="frbio")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Adapt a small open LLM to French medicine, merge it back into its base, and prove what changed.

    \b
    Start with:  frbio run demo        (no GPU, no network, a few minutes)
    """


def _recipe_options(command: F) -> F:
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one value of the recipe, e.g. train.tokens=1_000_000 (repeatable).",
    )(command)
    return click.argument("recipe")(command)


def _data_options(command: F) -> F:
    command = click.option(
        "--data",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Local copies of the benchmarks: DIR/TASK/test.jsonl, validation.jsonl, shots.jsonl.",
    )(command)
    command = click.option(
        "--corpus",
        "corpus_directory",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="A run's corpus directory, for the tasks on held-out text.",
    )(command)
    return click.option("--offline", is_flag=True, help="Use local data only.")(command)


def _load(recipe: str, overrides: tuple[str, ...]) -> Recipe:
    return load_recipe(recipe, overrides)


def _run(recipe: str, overrides: tuple[str, ...], out: Path | None, **how: Any) -> Path:
    from frbio_lite.pipeline import run  # torch and transformers load only for the verbs that need them

    loaded = _load(recipe, overrides)
    return run(loaded, out or Path("runs") / loaded.name, **how)


@main.command("run")
@_recipe_options
@click.option("--out", type=click.Path(path_type=Path), help="The run's directory.  [default: runs/NAME]")
@click.option(
    "--until",
    type=click.Choice(["corpus", "packed", "train", "ablation", "merge", "eval", "report"]),
    default="report",
    help="Stop after this stage.",
)
@click.option("--fresh", is_flag=True, help="Make every stage anew.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Local copies of the benchmarks."
)
def run_command(
    recipe: str, overrides: tuple[str, ...], out: Path | None, until: str, fresh: bool, data: Path | None
) -> None:
    """Run a whole recipe: corpus, packing, training, ablation, merge, evaluation, report.

    RECIPE is a shipped name or a file. The same command continues where it stopped.

    \b
    frbio run demo
    frbio run local-text --set corpus.sources.0.path=notes.txt --out runs/notes
    """
    click.echo(_run(recipe, overrides, out, until=until, fresh=fresh, data=data))


@main.command("corpus")
@_recipe_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's directory.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Local copies of the benchmarks."
)
def corpus_command(recipe: str, overrides: tuple[str, ...], out: Path, data: Path | None) -> None:
    """Read, clean, deduplicate and split the sources, then pack them into token blocks.

    \b
    frbio corpus demo --out runs/demo
    """
    click.echo(_run(recipe, overrides, out, until="packed", data=data))
    funnel = json.loads((out / "corpus" / "funnel.json").read_text(encoding="utf-8"))
    _table(
        ["step", "documents", "words", "bytes"],
        [[s["step"], f"{s['documents']:,}", f"{s['words']:,}", f"{s['bytes']:,}"] for s in funnel["steps"]],
    )


@main.command("train")
@_recipe_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's directory.")
def train_command(recipe: str, overrides: tuple[str, ...], out: Path) -> None:
    """Train on the packed corpus in --out (made first if missing); resumes from the newest checkpoint.

    \b
    frbio train demo --out runs/demo
    """
    click.echo(_run(recipe, overrides, out, until="train"))


def _pair_options(command: F) -> F:
    command = click.option("--model", "tuned", help="The adapted model, full weights: a directory or a Hub id.")(
        command
    )
    command = click.option("--adapter", help="The adapter: a directory or a Hub id.")(command)
    return click.option("--base", required=True, help="The base: a directory, a Hub id, or demo.")(command)


def _one_of(adapter: str | None, tuned: str | None) -> str:
    if (adapter is None) == (tuned is None):
        raise RequestError("give the adapted side once: --adapter DIR or --model DIR")
    return adapter or str(tuned)


@main.command("merge")
@_pair_options
@click.option("--method", type=click.Choice(["linear", "slerp"]), default="slerp", help="How to interpolate.")
@click.option(
    "--ratio", type=float, default=0.5, help="Share of the adapted model: 0 is the base, 1 the adapted model."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    help="auto: as the base is stored.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The merged model's directory.")
def merge_command(
    base: str, adapter: str | None, tuned: str | None, method: str, ratio: float, dtype: str, out: Path
) -> None:
    """Merge an adapter or an adapted model into its base and write the result.

    \b
    frbio merge --base demo --model runs/demo/train --ratio 0.5 --out merged
    """
    from frbio_lite.pipeline import merge_into

    click.echo(merge_into(base, _one_of(adapter, tuned), method, ratio, dtype, out))


@main.command("ablate")
@_pair_options
@click.option("--methods", default="slerp", help="Comma-separated: linear, slerp.")
@click.option("--ratios", default="0:1:0.25", help="START:END:STEP or a comma-separated list.")
@click.option("--tasks", required=True, help="Comma-separated tasks or sets.")
@click.option(
    "--maximise", type=click.Choice(["domain", "general"]), default="domain", help="The group whose gain decides."
)
@click.option("--retain", default="general>=-1.0", help="GROUP>=POINTS that a ratio must keep; empty for none.")
@click.option("--shots", type=int, default=0, help="Examples before each question.")
@click.option("--limit", type=int, help="Items per task.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the results go.")
@_data_options
def ablate_command(
    base: str,
    adapter: str | None,
    tuned: str | None,
    methods: str,
    ratios: str,
    tasks: str,
    maximise: str,
    retain: str,
    shots: int,
    limit: int | None,
    out: Path,
    data: Path | None,
    corpus_directory: Path | None,
    offline: bool,
) -> None:
    """Score many merge ratios with the models loaded once and none written; choose one on validation items.

    \b
    frbio ablate --base demo --model runs/demo/train --ratios 0:1:0.1 --tasks demo-medical,demo-general --out ratios
    """
    from frbio_lite.ablate import parse_ratios, parse_retain
    from frbio_lite.pipeline import ablate_ratios

    chosen = _section(
        "Merge",
        methods=_names(methods),
        ratios=parse_ratios(ratios),
        choose={"maximise": maximise, "retain": parse_retain(retain)},
    )
    scoring = _section("Eval", tasks=_names(tasks), shots=shots, limit=limit)
    ablate_ratios(
        base,
        _one_of(adapter, tuned),
        chosen,
        scoring,
        out,
        corpus_directory=corpus_directory,
        data=data,
        offline=offline,
    )
    choice = json.loads((out / "choice.json").read_text(encoding="utf-8"))
    _table(
        ["method", "ratio", *sorted(choice["candidates"][0]["gains"])],
        [
            [c["method"], f"{c['ratio']:g}", *(f"{c['gains'][g]:+.1f}" for g in sorted(c["gains"]))]
            for c in choice["candidates"]
        ],
    )
    click.echo(choice["why"])


@main.command("eval")
@click.option("--model", "name", required=True, help="A directory, a Hub id, or demo.")
@click.option("--adapter", help="A live adapter on the model.")
@click.option("--tasks", required=True, help="Comma-separated tasks or sets.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", help="The items to score.")
@click.option("--shots", type=int, default=0, help="Examples before each question, never from the test split.")
@click.option("--limit", type=int, help="Items per task.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the results go.")
@_data_options
def eval_command(
    name: str,
    adapter: str | None,
    tasks: str,
    split: Literal["validation", "test"],
    shots: int,
    limit: int | None,
    out: Path,
    data: Path | None,
    corpus_directory: Path | None,
    offline: bool,
) -> None:
    """Score a model on benchmarks; a second call continues where it stopped.

    \b
    frbio eval --model demo --tasks demo-medical,demo-general --out scores
    """
    from frbio_lite.pipeline import evaluate_model

    settings = _section("Eval", tasks=_names(tasks), shots=shots, limit=limit)
    evaluate_model(
        name, adapter, settings, out, split=split, corpus_directory=corpus_directory, data=data, offline=offline
    )
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    _table(
        ["task", "metric", "value", "95 % interval", "items"],
        [[r["task"], r["metric"], f"{r['value']:.3f}", _interval(r["low"], r["high"]), str(r["items"])] for r in rows],
    )


@main.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page to write.")
def report_command(runs: tuple[Path, ...], out: Path) -> None:
    """Write one self-contained page about one or several runs.

    \b
    frbio report runs/demo --out report.html
    """
    from frbio_lite.report import write_report

    write_report(runs, out)
    click.echo(out)


@main.group("recipes")
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
    _table(["recipe", "base", "method", "sequence"], rows)


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
    from frbio_lite.evaluate import load_tasks

    recipe = _load(file, overrides)
    contaminating = recipe.corpus.decontaminate.tasks if recipe.corpus.decontaminate else []
    load_tasks([*recipe.eval.tasks, *contaminating])
    click.echo(f"{recipe.name}: valid")


@main.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def doctor_command(as_json: bool) -> None:
    """Say what this machine can run, and why not.

    \b
    frbio doctor --json
    """
    from frbio_lite.device import as_dict, examine

    checks = examine(Path("runs"))
    if as_json:
        click.echo(json.dumps(as_dict(checks), ensure_ascii=False))
        return
    _table(["", "", ""], [[c.name, "yes" if c.ok else "no", c.detail] for c in checks])


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _section(kind: str, **values: Any) -> Any:
    """A recipe section from command-line values, with the recipe's own checks."""
    from pydantic import ValidationError

    from frbio_lite import recipe

    try:
        return getattr(recipe, kind)(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(
            f"--{'.'.join(str(p) for p in first['loc'][:1])}: {first['msg']}, not {first['input']!r}"
        ) from error


def _interval(low: float | None, high: float | None) -> str:
    return "too few" if low is None or high is None else f"{low:.3f} – {high:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=any(head), pad_edge=False)
    for i, title in enumerate(head):
        table.add_column(title, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


if __name__ == "__main__":
    main()

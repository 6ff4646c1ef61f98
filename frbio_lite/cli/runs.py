"""The verbs on a whole run: run, corpus, train, report, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from frbio_lite import api
from frbio_lite.cli.common import print_table, print_text, recipe_options
from frbio_lite.recipe import load_recipe
from frbio_lite.tracking import TOOLS


def _run(recipe: str, overrides: tuple[str, ...], out: Path | None, **how: Any) -> Path:
    return api.run(load_recipe(recipe, overrides), out=out, **how)


track_option = click.option(
    "--track",
    type=click.Choice(TOOLS),
    help="Give the training's log to this tool as well; train/log.jsonl is written in any case.",
)

lang_option = click.option("--lang", type=click.Choice(["en", "fr"]), default="en", help="The report's language.")


@click.command("run", short_help="Run a whole recipe, or go on with it.")
@recipe_options
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
@track_option
@lang_option
def run_command(recipe: str, overrides: tuple[str, ...], out: Path | None, **how: Any) -> None:
    """Run a whole recipe: corpus, packing, training, ablation, merge, evaluation, report.

    RECIPE is a shipped name or a file. The same command continues where it stopped.

    \b
    frbio run demo
    frbio run local-text --set corpus.sources.0.path=notes.txt --out runs/notes
    frbio run demo --track tensorboard
    """
    click.echo(_run(recipe, overrides, out, **how))


@click.command("corpus", short_help="Read, clean and pack the sources.")
@recipe_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's directory.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Local copies of the benchmarks."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes; the result is the same.  [default: all cores]",
)
@click.option("--strict", is_flag=True, help="Stop at what cannot be read instead of counting it.")
@click.option("--samples", is_flag=True, help="Also write OUT/samples.html: what each rule changed, before and after.")
def corpus_command(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    data: Path | None,
    workers: int | None,
    strict: bool,
    samples: bool,
) -> None:
    """Read, clean, deduplicate and split the sources, then pack them into token blocks; print what each step left.

    \b
    frbio corpus demo --out runs/demo
    frbio corpus mine.yaml --out runs/mine --samples
    """
    click.echo(_run(recipe, overrides, out, until="packed", data=data, workers=workers, strict=strict))
    funnel = json.loads((out / "corpus" / "funnel.json").read_text(encoding="utf-8"))
    from frbio_lite.corpus.funnel import tables

    for head, rows in tables(funnel):
        print_table(head, rows)
    if samples:
        from frbio_lite.corpus.samples import write_page

        write_page(out / "corpus", out / "samples.html")
        click.echo(out / "samples.html")


@click.command("train", short_help="Train on the packed corpus.")
@recipe_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's directory.")
@track_option
def train_command(recipe: str, overrides: tuple[str, ...], out: Path, track: str | None) -> None:
    """Train on the packed corpus in --out (made first if missing); resumes from the newest checkpoint.

    \b
    frbio train demo --out runs/demo
    """
    click.echo(_run(recipe, overrides, out, until="train", track=track))


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page to write.")
@lang_option
def report_command(runs: tuple[Path, ...], out: Path, lang: str) -> None:
    """Write one self-contained page about one or several runs.

    \b
    frbio report runs/demo --out report.html
    frbio report runs/one runs/two --out rapport.html --lang fr
    """
    from frbio_lite.report import write_report

    write_report(runs, out, lang)
    click.echo(out)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def doctor_command(as_json: bool) -> None:
    """Say what this machine can run, and why not.

    \b
    frbio doctor
    """
    from frbio_lite.device import as_dict, examine, verdict

    checks = examine(Path("runs"))
    if as_json:
        click.echo(json.dumps(as_dict(checks), ensure_ascii=False))
        return
    print_table(["what", "usable", "detail"], [[c.name, "yes" if c.ok else "no", c.detail] for c in checks])
    print_text(verdict(checks))

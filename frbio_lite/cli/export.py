"""The verb that hands a merged model to what serves it: export."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from frbio_lite.errors import RequestError
from frbio_lite.progress import fit

if TYPE_CHECKING:
    from frbio_lite.export.push import Upload
    from frbio_lite.export.source import Model


@click.command("export", short_help="Hand a merged model to what serves it.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(["ollama", "gguf"]), help="A Modelfile for Ollama, or one GGUF file."
)
@click.option(
    "--type",
    "type_",
    type=click.Choice(["f16", "bf16", "f32", "q8_0"]),
    help="How a GGUF file holds the weights.  [default: 16 bits, as the model is stored]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where it goes.  [default: MODEL-FORMAT beside the model]")
@click.option("--push-to-hub", "repository", metavar="OWNER/NAME", help="Upload the model to this repository.")
@click.option("--private/--public", default=True, help="Who may see the repository.")
@click.option("--yes", is_flag=True, help="Upload without asking.")
def export_command(
    model: Path,
    format_: Literal["ollama", "gguf"] | None,
    type_: Literal["f16", "bf16", "f32", "q8_0"] | None,
    out: Path | None,
    repository: str | None,
    private: bool,
    yes: bool,
) -> None:
    """Hand a merged model to what serves it: Ollama, llama.cpp, the Hugging Face Hub.

    MODEL is a merged model's directory, or a run, whose merged model is taken.

    \b
    frbio export runs/demo --format ollama
    frbio export merged --format gguf --type q8_0 --out served
    frbio export runs/demo --push-to-hub my-team/my-model
    """
    if (format_ is None) == (repository is None):
        raise RequestError("say what for: --format ollama, --format gguf, or --push-to-hub OWNER/NAME (one of them)")
    if repository is not None and (out is not None or type_ is not None):
        raise RequestError("--push-to-hub uploads the model as it stands: leave out --out and --type")
    from frbio_lite.export.source import open_model

    opened = open_model(model)
    if repository is not None:
        _push(opened, repository, private, yes)
        return
    from frbio_lite.export.gguf import write_gguf
    from frbio_lite.export.source import default_place

    where = out or default_place(opened, str(format_))
    if format_ == "gguf":
        click.echo(write_gguf(opened, where, type_))
    else:
        _ollama(opened, where, type_)


def _ollama(model: Model, where: Path, type_: Literal["f16", "bf16", "f32", "q8_0"] | None) -> None:
    """A Modelfile; with a GGUF file where one is asked for, or where Ollama needs it and it can be made."""
    from frbio_lite.export.gguf import HOW_TO_GET, find_converter, write_gguf
    from frbio_lite.export.ollama import check_modelfile, obstacle, write_modelfile

    check_modelfile(where)
    gguf = None
    why = obstacle(model)
    if type_ is not None or (why and find_converter() is not None):
        gguf = write_gguf(model, where, type_)
    elif why:
        notice = (
            f"{why}: `ollama create` will refuse this Modelfile. With llama.cpp's converter this command makes a GGUF file "
            f"for it: {HOW_TO_GET}."
        )
        click.echo(fit(notice, sys.stderr), err=True)
    written = write_modelfile(model, where, gguf)
    click.echo(f"ollama create {model.name} -f {shlex.quote(str(written))}")


def _push(model: Model, repository: str, private: bool, yes: bool) -> None:
    from frbio_lite.export.push import plan_upload, push

    upload = plan_upload(model, repository, private=private)
    _show(upload)
    if not yes:
        if not somebody_is_here():
            raise RequestError("nobody is here to say yes to this upload: pass --yes to upload without asking")
        click.confirm("Upload this?", abort=True, err=True)
    click.echo(push(upload))


def somebody_is_here() -> bool:
    return sys.stdin.isatty()


def _show(upload: Upload) -> None:
    from frbio_lite.cli.common import print_table

    rows = [[path.name, _size(path.stat().st_size)] for path in upload.files]
    print_table(["file", "size"], [*rows, ["", _size(upload.bytes)]])
    state = "which exists" if upload.exists else "to be made"
    click.echo(
        f"to {upload.repository} ({'private' if upload.private else 'public'}, {state}), license: {upload.license}"
    )
    for warning in upload.warnings:
        click.echo(f"note: {warning}", err=True)


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"

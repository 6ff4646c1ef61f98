"""The command line: verbs only, no logic. `frbio VERB --help` shows an example and every default."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from frbio_lite.cli.evaluation import compare_command, eval_command, tasks_group
from frbio_lite.cli.export import export_command
from frbio_lite.cli.merging import ablate_command, merge_command
from frbio_lite.cli.plan import plan_command
from frbio_lite.cli.recipes import recipes_group
from frbio_lite.cli.runs import corpus_command, doctor_command, report_command, run_command, train_command
from frbio_lite.errors import RequestError
from frbio_lite.progress import fit

# OpenMP's threads spin while they wait for each other. Shorter spinning costs 15 % on an idle machine and doubles the speed
# of small operations on a busy one (benchmarks/end_to_end). Read when torch loads, which no import above does.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

FAILED, WRONG = 1, 2


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
        except BrokenPipeError:  # what reads our output, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(FAILED)
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
    click.echo(fit(f"frbio: {message}", sys.stderr), err=True)
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


for _verb in (
    plan_command,
    run_command,
    corpus_command,
    train_command,
    merge_command,
    ablate_command,
    eval_command,
    compare_command,
    tasks_group,
    report_command,
    export_command,
    recipes_group,
    doctor_command,
):
    main.add_command(_verb)

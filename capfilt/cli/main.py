"""The program `capfilt`: its commands in the order of the work, and what becomes of an error.

Nothing heavy is imported here or at the top of a command's file, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from capfilt import __version__
from capfilt.cli.answers import answers
from capfilt.cli.bench import bench
from capfilt.cli.bootstrap import bootstrap
from capfilt.cli.browse import browse
from capfilt.cli.datasets import datasets
from capfilt.cli.evaluate import evaluate
from capfilt.cli.export import export
from capfilt.cli.gain import gain
from capfilt.cli.inspect import inspect
from capfilt.cli.judge import judge
from capfilt.cli.label import recaption, score
from capfilt.cli.labels import labels
from capfilt.cli.models import models
from capfilt.cli.output import TYPED, print_error, typed_command
from capfilt.cli.pipelines import pipelines
from capfilt.cli.pretrain import pretrain
from capfilt.cli.report import report
from capfilt.cli.settings import settings
from capfilt.cli.sql import sql
from capfilt.cli.train import train
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.shell import shell_line

EXIT_FAILED = 1
"""The input was right and the run failed."""
EXIT_WRONG_INPUT = 2
"""What was typed, or what it names, is wrong."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells have it."""


class Commands(TyperGroup):
    """A group of commands that turns the errors a user can cause into two lines and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember what was typed, for the record of the run and for the way on after Ctrl-C."""
        ctx.meta[TYPED] = ["capfilt", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; any exception but these two is a defect of ours and shows its traceback."""
        try:
            return super().invoke(ctx)
        except CapfiltError as error:
            print_error(error)
            failed = isinstance(error, RunFailedError)
            raise typer.Exit(EXIT_FAILED if failed else EXIT_WRONG_INPUT) from error
        except KeyboardInterrupt as stop:
            again = shell_line(typed_command(ctx))
            print(f"\ninterrupted; the same command goes on where it stopped:\n{again}", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from stop


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"capfilt {__version__}")
        raise typer.Exit


@app.callback()
def capfilt(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Bootstrap a noisy image-text dataset: caption every picture anew, and filter old and new texts.

    Example: capfilt bootstrap 'web/{00000..00009}.tar' --clean clean --out runs/first --pipeline small
    """


for command in (
    bootstrap,
    inspect,
    report,
    browse,
    judge,
    export,
    sql,
    train,
    pretrain,
    recaption,
    score,
    bench,
    pipelines,
    datasets,
    settings,
):
    app.command()(command)
evaluate.command()(answers)
evaluate.command()(gain)
app.add_typer(evaluate, name="evaluate")
app.add_typer(models, name="models")
app.add_typer(labels, name="labels")


def main() -> None:
    """Run the program."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character is given its escape rather than an error.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    app(prog_name="capfilt")

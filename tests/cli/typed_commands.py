"""Type a command in a test."""

from __future__ import annotations

from collections.abc import Callable

from typer.testing import CliRunner, Result

from capfilt.cli.main import app

Capfilt = Callable[..., Result]
"""`capfilt("inspect", run)`; what it gives has exit_code, stdout and stderr."""


def typed(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="capfilt")

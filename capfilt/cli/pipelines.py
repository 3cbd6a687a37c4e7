"""Find a pipeline, by name among those that are shipped or by the path of a Python file.

The library never imports pipelines: they are choices, and lie beside the package: as `pipelines` in a
checkout and as `capfilt_pipelines` where the wheel is installed. Either is loaded as `capfilt_pipelines`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import capfilt
from capfilt.cli.options import JsonOption
from capfilt.cli.output import next_step, print_json, print_next
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capfilt.settings import Bootstrap
    from capfilt.stages.context import Stage

PACKAGE = "capfilt_pipelines"
DEFAULT = "blip_base"


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that was loaded."""

    name: str
    """As it was typed: a name, or a path."""
    module: ModuleType

    def choices(self) -> Bootstrap:
        """Return the pipeline's own settings."""
        choices: Bootstrap = self.module.Choices()
        return choices.model_copy(update={"pipeline": self.name})

    def stages(self, settings: Bootstrap) -> list[Stage]:
        """Return the stages, in order; a pipeline refuses choices that it cannot do with a CapfiltError."""
        stages = cast("Callable[[Any], list[Stage]]", self.module.stages)
        return stages(settings)


def load_pipeline(name: str) -> Pipeline:
    """Load a pipeline: a PATH (it ends with .py or holds a separator) is run as Python."""
    is_path = name.endswith(".py") or "/" in name
    pipeline = Pipeline(name, _module_at(Path(name)) if is_path else _shipped(name))
    _check(pipeline)
    return pipeline


def shipped_pipelines() -> dict[str, str]:
    """Return the names of the pipelines that are shipped, each with the first line of its docstring."""
    files = sorted(path for path in _folder().glob("*.py") if not path.name.startswith("_"))
    return {path.stem: _first_line(path) for path in files}


def pipelines(json: JsonOption = False) -> None:
    """List the pipelines that are shipped.

    Example: capfilt pipelines
    """
    found = shipped_pipelines()
    if json:
        print_json([{"name": name, "about": about} for name, about in found.items()])
        return
    width = max(map(len, found))
    for name, about in found.items():
        print(f"{name:{width}}  {about}")
    print_next(next_step("settings", "--pipeline", DEFAULT))


def _folder() -> Path:
    beside = Path(capfilt.__file__).resolve().parent.parent
    for folder in (beside / PACKAGE, beside / "pipelines"):
        if folder.is_dir():
            return folder
    raise CapfiltError(
        f"no pipelines lie beside {Path(capfilt.__file__).parent}",
        fix="install capfilt again, or give --pipeline the path of a Python file",
    )


def _shipped(name: str) -> ModuleType:
    known = shipped_pipelines()
    if name not in known:
        raise CapfiltError(
            f"there is no pipeline {name}",
            fix=f"choose one of {', '.join(known)}, or give the path of a Python file",
        )
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(_folder())]
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")


def _module_at(path: Path) -> ModuleType:
    if not path.is_file():
        raise CapfiltError(
            f"there is no pipeline file {path}",
            fix="give the path of a Python file, or a name that `capfilt pipelines` lists",
        )
    name = f"capfilt_pipeline_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CapfiltError(f"{path} is no Python file", fix="give a file whose name ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look up a class's module here
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise CapfiltError(f"{path} is not Python: {error}", fix="mend the file") from error
    return module


def _check(pipeline: Pipeline) -> None:
    from capfilt.settings import Bootstrap

    choices = getattr(pipeline.module, "Choices", None)
    is_settings = isinstance(choices, type) and issubclass(choices, Bootstrap)
    if not is_settings or not callable(getattr(pipeline.module, "stages", None)):
        raise CapfiltError(
            f"{pipeline.name} is no pipeline: it lacks a settings class `Choices` or a function `stages`",
            fix="write `class Choices(Bootstrap)` and `def stages(choices)`, as the shipped pipelines do",
        )


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]

"""Imports go one way, and nothing heavy is loaded before it is needed.

The rules stand here once, as data; the checker reads the code with `ast`, so that an import inside a function
or under TYPE_CHECKING counts like any other.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GROUND = frozenset(
    {
        "__init__",
        "canonical",
        "draws",
        "errors",
        "files",
        "layers",
        "records",
        "settings",
        "shell",
        "versions",
    }
)

FLOORS: tuple[frozenset[str], ...] = (
    GROUND,
    frozenset({"data"}),
    frozenset({"models"}),
    frozenset({"training", "evaluation"}),
    frozenset({"stages"}),
    frozenset({"browser", "reports", "engines"}),
    frozenset({"cli", "__main__"}),
)
"""Rooms from the ground up; one may import from its own floor and from those below it."""

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

PROVENANCE_IMPORTS = frozenset({"records", "settings", "layers", "errors", "files", "canonical", "shell"})
PROVENANCE_FROM = FLOOR_OF["training"]
"""`provenance` stands beside the floors: it knows a few nouns of the ground; training and above know it."""

APART = frozenset({"training", "evaluation"})
"""Neighbours that do not import each other; a stage calls both."""

OUTSIDE = frozenset({"pipelines", "capfilt_pipelines", "examples", "tests", "benchmarks"})
"""Choices and uses of the library, which it finds by name when asked and never imports."""

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "duckdb",
    "pyarrow",
    "PIL",
    "matplotlib",
    "numpy",
    "ray",
    "starlette",
    "uvicorn",
    "jinja2",
    "altair",
)

MODEL_LIBRARIES = frozenset({"torch", "torchvision", "timm", "transformers", "ray"})
LIGHT_ROOMS = GROUND | {"cli", "__main__", "provenance", "data", "reports", "browser", "engines"}
"""Rooms that import a library of models inside a function or not at all."""


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    file: str
    line: int
    room: str
    """Room of the importing file."""
    module: str
    """Imported module, as a full dotted name."""
    at_import_time: bool
    """Whether it is loaded as soon as the file is: neither in a function nor under TYPE_CHECKING."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.room} imports {self.module}"

    @property
    def target(self) -> str | None:
        """Room of the imported module; None when it is not of this package."""
        package, *names = self.module.split(".")
        if package != "capfilt":
            return None
        return names[0] if names else "__init__"


def imports_of(package: Path) -> Iterator[Import]:
    """Yield every import below the package's folder."""
    rooms = {path.stem for path in package.iterdir()}
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package.parent)
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        late = {id(node) for part in ast.walk(tree) if _is_late(part) for node in ast.walk(part)}
        for node in ast.walk(tree):
            for module in _modules(node, name.with_suffix("").parts, rooms):
                yield Import(
                    name.as_posix(), node.lineno, name.with_suffix("").parts[1], module, id(node) not in late
                )


def _modules(node: ast.AST, where: tuple[str, ...], rooms: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = (
        ".".join(filter(None, (*where[: len(where) - node.level], node.module)))
        if node.level
        else node.module
    )
    if base == "capfilt":  # `from capfilt import data` names a room, `from capfilt import __version__` none
        return [f"capfilt.{alias.name}" if alias.name in rooms else "capfilt" for alias in node.names]
    return [base or ""]


def _is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def broken_rule(found: Import) -> str | None:
    """Return the rule that an import breaks, in words; None for an import that is right."""
    if found.module.split(".")[0] in OUTSIDE:
        return "the library finds pipelines by name and never imports what is built on it"
    room, target = found.room, found.target
    if target is None or room == target:
        return None
    for name in (room, target):
        if name != "provenance" and name not in FLOOR_OF:
            return f"{name} has no floor yet: give it one in FLOORS, and in ARCHITECTURE.md"
    if room == "provenance":
        allowed = target in PROVENANCE_IMPORTS | {"__init__"}
        return None if allowed else f"provenance imports only {', '.join(sorted(PROVENANCE_IMPORTS))}"
    if target == "provenance":
        return (
            None if FLOOR_OF[room] >= PROVENANCE_FROM else "provenance is imported from training upwards only"
        )
    if {room, target} == APART:
        return "training and evaluation do not import each other: a stage calls both"
    if FLOOR_OF[target] > FLOOR_OF[room]:
        return f"imports go down, and {target} lies above {room}"
    return None


def violations(package: Path) -> list[str]:
    """Return one line, with file, line and rule, for every import that points the wrong way."""
    return [f"{found}: {rule}" for found in imports_of(package) if (rule := broken_rule(found))]


def eager_model_libraries(package: Path) -> list[str]:
    """Return one line for every import of a model library that a light room makes when it is loaded."""
    return [
        f"{found}: import it inside the function that needs it"
        for found in imports_of(package)
        if found.at_import_time
        and found.room in LIGHT_ROOMS
        and found.module.split(".")[0] in MODEL_LIBRARIES
    ]


def test_no_import_points_back(repository: Path) -> None:
    found = violations(repository / "capfilt")
    assert not found, "\n" + "\n".join(found)


def test_every_room_of_the_package_has_a_floor(repository: Path) -> None:
    parts = {
        path.stem for path in (repository / "capfilt").iterdir() if path.is_dir() or path.suffix == ".py"
    }
    assert parts - {"__pycache__", "provenance"} - set(FLOOR_OF) == set()


def test_light_rooms_load_no_model_library(repository: Path) -> None:
    found = eager_model_libraries(repository / "capfilt")
    assert not found, "\n" + "\n".join(found)


def test_help_answers_without_any_heavy_library() -> None:
    program = (
        "import json, runpy, sys\n"
        "sys.argv = ['capfilt', '--help']\n"
        "try:\n"
        "    runpy.run_module('capfilt', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "print('\\n' + json.dumps([code, sorted(sys.modules)]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    *shown, last = ended.stdout.splitlines()
    code, loaded = json.loads(last)
    assert not code
    assert any("bootstrap" in line for line in shown)
    assert "capfilt.cli.main" in loaded
    assert [name for name in HEAVY if name in loaded] == []


PLANTED = {
    "from below to above": ("data/sources.py", "from capfilt.models import med", "models lies above data"),
    "inside a function": (
        "models/med.py",
        "def f():\n    import capfilt.stages.score",
        "stages lies above models",
    ),
    "for types alone": (
        "settings/run.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from capfilt.data.images import decode",
        "data lies above settings",
    ),
    "a room by its name": ("stages/score.py", "from capfilt import cli", "cli lies above stages"),
    "relative": ("data/sources.py", "from ..training import loop", "training lies above data"),
    "relative, within a deep room": (
        "models/backends/clip.py",
        "from ...cli.main import app",
        "cli lies above models",
    ),
    "neighbours kept apart": (
        "training/loop.py",
        "import capfilt.evaluation.roc",
        "do not import each other",
    ),
    "neighbours, the other way": (
        "evaluation/roc.py",
        "from capfilt.training import loop",
        "do not import each other",
    ),
    "provenance reaching out": (
        "provenance/commit.py",
        "from capfilt.data import sources",
        "provenance imports only",
    ),
    "provenance reaching for another noun": (
        "provenance/commit.py",
        "from capfilt.draws import uniforms",
        "provenance imports only",
    ),
    "provenance known too low": (
        "models/med.py",
        "from capfilt.provenance.schema import PAIRS",
        "from training upwards",
    ),
    "a pipeline": ("cli/main.py", "from pipelines import small", "finds pipelines by name"),
    "a shipped pipeline": ("stages/train.py", "import capfilt_pipelines.small", "finds pipelines by name"),
    "a room nobody knows": (
        "cellar/cask.py",
        "from capfilt.errors import CapfiltError",
        "cellar has no floor",
    ),
}


@pytest.mark.parametrize(("path", "code", "rule"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_wrong_import_is_named_with_file_line_and_rule(
    tmp_path: Path, path: str, code: str, rule: str
) -> None:
    package = planted(tmp_path, path, f'"""A module."""\n{code}\n')
    (found,) = violations(package)
    line = 1 + len(code.splitlines())
    assert found.startswith(f"capfilt/{path}:{line}: ")
    assert rule in found


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("cli/main.py", "import capfilt.engines.local, capfilt.provenance.catalog, capfilt.data.sources"),
        ("__main__.py", "from capfilt.cli.main import main"),
        ("browser/pages.py", "from capfilt.reports import summary"),
        (
            "training/loop.py",
            "from capfilt.provenance.commit import commit\nfrom capfilt.models.med import Med",
        ),
        ("provenance/commit.py", "from capfilt import __version__\nfrom capfilt.files import whole_file"),
        ("stages/train.py", "from capfilt import training, evaluation"),
        ("models/med.py", "from . import text\nfrom .backends.clip import Clip"),
        ("data/sources.py", "import data, models.training"),
    ],
)
def test_a_right_import_is_left_alone(tmp_path: Path, path: str, code: str) -> None:
    assert violations(planted(tmp_path, path, code)) == []


def test_a_model_library_counts_only_where_loading_the_file_loads_it(tmp_path: Path) -> None:
    eager = planted(
        tmp_path / "eager", "data/images.py", "try:\n    import torch.nn\nexcept ImportError:\n    raise"
    )
    late = planted(
        tmp_path / "late",
        "data/images.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import timm",
    )
    allowed = planted(tmp_path / "allowed", "models/med.py", "import torch")
    assert [line.split(": ")[0] for line in eager_model_libraries(eager)] == ["capfilt/data/images.py:2"]
    assert eager_model_libraries(late) == []
    assert eager_model_libraries(allowed) == []


def planted(folder: Path, path: str, code: str) -> Path:
    """Make a package with every room and one module of the given code; return its folder."""
    package = folder / "capfilt"
    for room in {*FLOOR_OF, "provenance"} - GROUND - {"__main__"}:
        (package / room).mkdir(parents=True)
    for noun in GROUND:
        (package / f"{noun}.py").touch()
    (package / path).parent.mkdir(parents=True, exist_ok=True)
    (package / path).write_text(code)
    return package

"""A user's own file as a captioner or a filter: a .py that defines `captioner`, `filter`, or both.

    def captioner(device: str, precision: str) -> Captioner     of capfilt.models.protocols; see there
    def filter(device: str, precision: str) -> Filter           what each has to answer
    VERSION = 2                     optional: changed when something changes that the file only refers to
    SCORES = ("itm",)               optional: what the filter gives, itc where nothing is said

The file's digest stands for its weights, and a run keeps a copy: it is known what wrote a caption. What a
file says of itself is read and not run; it is run where models are loaded, in a worker.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import math
import sys
import traceback
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Any, get_args

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.models.bundle_files import check_files
from capfilt.models.cards import Card, Conventions, Kind, Objective
from capfilt.records import SCORES, Scores
from capfilt.settings import Foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import SettledDecoding

SUFFIX = ".py"
CONVENTIONS = Conventions(min_tokens=0, max_tokens=60)
"""How a captioner of one's own is used while nothing is chosen; it may ignore all of it."""
_ROUNDING = 0.01
"""How far a score may be out of its range: a cosine in bf16 comes to 1.008."""
_MEND = "mend the file and give it again; examples/own_filter.py is one to follow"


def describe(file: Path, role: Kind, options: Mapping[str, Any]) -> Card:
    """Return the card of a file as a captioner or a filter; nothing in it is run.

    Raises CapfiltError where the file is no Python, or does not define what its role needs.
    """
    try:
        source = file.read_bytes()
    except OSError as error:
        raise CapfiltError(f"{file} cannot be read: {error.strerror}", fix="give a readable file") from error
    defined = _defined(file, source)
    if role not in defined:
        raise CapfiltError(
            f"{file} defines no function {role}",
            fix=f"define {role}(device, precision) at its top level, as examples/own_filter.py does",
        )
    sha256 = hashlib.sha256(source).hexdigest()
    version = defined.get("VERSION")
    return Card(
        kind=role,
        objectives=("lm",) if role == "captioner" else _scores(file, defined.get("SCORES", ("itc",))),
        weights=sha256 if version is None else digest_of({"file": sha256, "version": version}),
        files={file.name: sha256},
        model=Foreign(backend="python", options=dict(options)),
        vocabulary=0,
        conventions=CONVENTIONS if role == "captioner" else Conventions(),
    )


def roles(file: Path) -> tuple[Kind, ...]:
    """Return which of the two functions a file defines; nothing in it is run."""
    defined = _defined(file, file.read_bytes())
    kinds: tuple[Kind, ...] = ("captioner", "filter")
    return tuple(kind for kind in kinds if kind in defined)


def captioner(bundle: Path, card: Card, device: str, precision: str) -> OwnCaptioner:
    """Return the captioner that a bundle's file makes; CapfiltError, with file and line, where it fails."""
    own = _Own.load(bundle, card, device, precision)
    return OwnCaptioner(own, card.digest)


def filter(bundle: Path, card: Card, device: str, precision: str) -> OwnFilter:
    """Return the filter that a bundle's file makes; CapfiltError, with file and line, where it fails."""
    own = _Own.load(bundle, card, device, precision)
    return OwnFilter(own, card.digest, card.objectives)


class OwnCaptioner:
    """A captioner of a user's file, whose answers are looked at; see `protocols.Captioner`."""

    def __init__(self, own: _Own, digest: str) -> None:
        self.digest = digest
        self._own = own

    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return captions by picture and candidate; CapfiltError where the file fails, or gives others."""
        given: list[list[str]] = self._own.ask(
            lambda made: made.caption(batch, decoding, seed=seed, candidates=candidates)
        )
        wanted = [candidates] * len(batch)
        self._own.check(_shape(given) == wanted, f"{candidates} captions for each of {len(batch)} pictures")
        are_texts = all(isinstance(text, str) for mine in given for text in mine)
        self._own.check(are_texts, "captions that are str")
        return given


class OwnFilter:
    """A filter of a user's file, whose answers are looked at; see `protocols.Filter`."""

    def __init__(self, own: _Own, digest: str, objectives: Sequence[Objective]) -> None:
        self.digest = digest
        self._own = own
        self._objectives = objectives

    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Return scores by picture and text; CapfiltError where the file fails, or gives others."""
        given: list[list[Scores]] = self._own.ask(lambda made: made.score(batch, texts))
        wanted = [len(mine) for mine in texts]
        self._own.check(_shape(given) == wanted, "Scores for each text of each picture")
        for score in (score for mine in given for score in mine):
            self._own.check(isinstance(score, Scores), "Scores of capfilt.records")
            for name, scale in SCORES.items():
                value, is_promised = getattr(score, name), name in self._objectives
                self._own.check(
                    value is None or is_promised, f"scores without {name}, which is not among its SCORES"
                )
                is_one = isinstance(value, (int, float)) and math.isfinite(value)
                low, high = scale.low - _ROUNDING, scale.high + _ROUNDING
                self._own.check(
                    not is_promised or (is_one and low <= value <= high),
                    f"{scale.kind}, a number from {scale.low} to {scale.high}, as {name}, which is among its "
                    "SCORES",
                )
        return given


@dataclass(frozen=True)
class _Own:
    """A file that was run, and the model it made."""

    file: Path
    made: Any = None

    @classmethod
    def load(cls, bundle: Path, card: Card, device: str, precision: str) -> _Own:
        """Run the bundle's file and have it make its model."""
        check_files(bundle, card.files)
        [name] = card.files
        own = cls(bundle / name)
        module = own._guarded(lambda: _run(own.file, card.weights))
        make = getattr(module, card.kind)
        return replace(own, made=own._guarded(lambda: make(device, precision, **card.foreign.options)))

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Return the model's answer."""
        return self._guarded(lambda: question(self.made))

    def check(self, is_right: bool, wanted: str) -> None:
        """Raise CapfiltError where an answer is not what was asked for."""
        if not is_right:
            raise CapfiltError(f"{self.file} did not give {wanted}", fix=_MEND)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except CapfiltError:
            raise
        except Exception as error:
            raise CapfiltError(
                f"{self.file}{_line(self.file, error)}: {type(error).__name__}: {error}", fix=_MEND
            ) from error


class _Loader(SourceFileLoader):
    """Leaves no compiled file behind: a bundle holds what its card names."""

    def set_data(self, *_: Any, **__: Any) -> None:
        """Write nothing."""


def _run(file: Path, digest: str) -> ModuleType:
    name = f"capfilt_own_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up there
    spec.loader.exec_module(module)
    return module


def _line(file: Path, error: Exception) -> str:
    """Return the last line of the file that an error came through, in words; empty where it came by none."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f", line {error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    return f", line {lines[-1]}" if lines else ""


def _defined(file: Path, source: bytes) -> dict[str, Any]:
    """Return the names that a file binds at its top level, with their values where these are literals."""
    try:
        tree = ast.parse(source, filename=str(file))
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise CapfiltError(f"{file}{where} is not Python: {error}", fix=_MEND) from error
    found: dict[str, Any] = {}
    for node in _top_level(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = None
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name: None for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = _literal(file, node)
            found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a file is loaded, those under a condition too."""
    for node in body:
        yield node
        for name in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from _top_level(getattr(node, name, ()))


def _literal(file: Path, node: ast.Assign | ast.AnnAssign) -> Any:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    if not {"VERSION", "SCORES"} & set(names) or node.value is None:
        return None
    try:
        value = ast.literal_eval(node.value)
    except ValueError as error:
        raise CapfiltError(
            f"{file}, line {node.lineno}: {names[0]} is computed, and is read without running the file",
            fix=f"write a number or a text there, such as {names[0]} = 1",
        ) from error
    return list(value) if isinstance(value, tuple) else value


def _scores(file: Path, given: Any) -> tuple[Objective, ...]:
    known = [name for name in get_args(Objective) if name != "lm"]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not names or not set(names) <= set(known):
        raise CapfiltError(
            f"{file}: SCORES is {given!r}",
            fix=f"name what the filter gives: {' or '.join(known)}, or both",
        )
    return tuple(name for name in known if name in names)


def _shape(given: Any) -> list[int] | None:
    """Return how many answers each picture has; None for what is no list of lists."""
    if not isinstance(given, list) or not all(isinstance(mine, list) for mine in given):
        return None
    return [len(mine) for mine in given]

"""Which data sets there are: a table that ships with capfilt, and a user's own rows over it.

The table is data, so that a data set is added in one place. A row of a user's with a known name changes the
fields that it gives, such as where the files lie, and leaves the others.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from capfilt.data.instructions.templates import Template
from capfilt.errors import CapfiltError
from capfilt.layers import Settings

Metric = Literal["cider", "vqa_accuracy", "ivqa_accuracy", "exact", "ranked", "auroc", "mrr"]
"""How a task is measured; see capfilt.evaluation.answers."""

NEEDS_READER = "needs reader"
"""What is shown where a data set names none."""


S = TypeVar("S", bound=Settings)


class Category(Settings):
    """A kind of task, and how it is put into words."""

    name: str
    title: str
    """As the paper calls it."""
    answers: Literal["short", "free"] = "short"
    """Whether its answers are a word or a line, or as long as they need be."""
    templates: tuple[str, ...] = Field(min_length=1)
    """See capfilt.data.instructions.templates."""

    def parsed(self) -> tuple[Template, ...]:
        """Return the templates, ready to be filled in."""
        return tuple(Template(text) for text in self.templates)


class Dataset(Settings):
    """A data set: a row of the registry."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    category: str
    held: Literal["in", "out"] = "in"
    """Whether it is trained on, or kept to measure what was learnt."""
    reader: str | None = None
    """The format of its files; None: none is written yet."""
    learns: Literal["answer", "question"] = "answer"
    """What is learnt: the answer to the question, or the question that has this answer."""
    metric: Metric | None = None
    """How answers are measured; None: free text, not measured."""
    size: int | None = Field(None, ge=1)
    """Examples, by the square root of which it is sampled; None: those that are read."""
    correction: float = Field(1.0, gt=0)
    """Factor on the weight that the size gives, set by hand."""
    split: str | None = None
    """Which rows are meant where one file has several splits: train, val or test; None: all."""
    source: str = ""
    """Where it is published."""
    annotations: tuple[Path, ...] = ()
    """Its files on this machine, in the order that the reader asks for."""
    images: Path | None = None
    """Folder of its pictures on this machine."""


@dataclass(frozen=True, slots=True)
class Registry:
    """All data sets and categories, by name, in the order of the table."""

    datasets: dict[str, Dataset]
    categories: dict[str, Category]

    def held(self, held: Literal["in", "out"]) -> list[Dataset]:
        """Return the data sets that are held in, or out."""
        return [dataset for dataset in self.datasets.values() if dataset.held == held]

    def wholly_held_out(self) -> list[Category]:
        """Return the categories of which no data set is trained on, though there are some."""
        held_in = {dataset.category for dataset in self.held("in")}
        held_out = {dataset.category for dataset in self.held("out")}
        return [
            category for name, category in self.categories.items() if name in held_out and name not in held_in
        ]

    def dataset(self, name: str) -> Dataset:
        """Return a data set by its name; a name that is not there is a CapfiltError."""
        if name not in self.datasets:
            raise CapfiltError(
                f"there is no data set {name}",
                fix="`capfilt datasets` lists them; add a row of your own with --registry FILE",
            )
        return self.datasets[name]


def read_registry(own: Path | None = None) -> Registry:
    """Read the table that ships with capfilt and, over it, the TOML file `own`.

    The file holds `[[dataset]]` rows and `[category.NAME]` groups, as registry.toml and categories.toml do.
    Paths in it are relative to its folder.

    Raises CapfiltError for a file that is missing, is no TOML, or says what cannot be.
    """
    datasets: dict[str, dict[str, Any]] = {}
    categories: dict[str, dict[str, Any]] = {}
    shipped = resources.files(__package__)
    for name in ("categories.toml", "registry.toml"):
        _merge(name, tomllib.loads((shipped / name).read_text("utf-8")), datasets, categories)
    if own is not None:
        _merge(str(own), _toml(own), datasets, categories, folder=own.parent)
    registry = Registry(
        {name: _validated(Dataset, "data set", name, row) for name, row in datasets.items()},
        {name: _validated(Category, "category", name, row) for name, row in categories.items()},
    )
    _check(registry)
    return registry


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CapfiltError(
            f"registry {path} cannot be read: {error}", fix="give a TOML file with [[dataset]] rows"
        ) from error


def _merge(
    where: str,
    given: dict[str, Any],
    datasets: dict[str, dict[str, Any]],
    categories: dict[str, dict[str, Any]],
    folder: Path | None = None,
) -> None:
    """Put the rows of one file over those that are there."""
    unknown = sorted(set(given) - {"dataset", "category"})
    rows, groups = given.get("dataset", []), given.get("category", {})
    are_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    are_groups = isinstance(groups, dict) and all(isinstance(group, dict) for group in groups.values())
    if unknown or not are_rows or not are_groups:
        what = f"{unknown[0]} is neither" if unknown else "it does not hold"
        raise CapfiltError(
            f"registry {where}: {what} [[dataset]] rows nor [category.NAME] groups"
            if unknown
            else f"registry {where}: {what} [[dataset]] rows and [category.NAME] groups",
            fix='write a row as [[dataset]], then name = "mine", category = "image_captioning"',
        )
    seen: set[str] = set()
    for row in rows:
        name = row.get("name")
        if not isinstance(name, str) or name in seen:
            raise CapfiltError(
                f"registry {where}: " + (f"{name} has two rows" if name in seen else "a row has no name"),
                fix='give every [[dataset]] row a name = "..." of its own',
            )
        seen.add(name)
        datasets[name] = {**datasets.get(name, {}), **_placed(row, folder)}
    for name, group in groups.items():
        categories[name] = {**categories.get(name, {"title": name}), **group, "name": name}


def _placed(row: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return a row whose paths do not depend on where the command is typed."""
    if folder is None:
        return row
    placed = dict(row)
    if isinstance(row.get("images"), str):
        placed["images"] = folder / row["images"]
    if isinstance(row.get("annotations"), list):
        placed["annotations"] = [
            folder / path if isinstance(path, str) else path for path in row["annotations"]
        ]
    return placed


def _validated(kind: type[S], what: str, name: str, row: dict[str, Any]) -> S:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CapfiltError(
            f"{what} {name}: {field}: {first['msg']}",
            fix=f"mend {field} in its row; registry.toml in capfilt shows how rows look",
        ) from error


def _check(registry: Registry) -> None:
    """Refuse rows that name what is not there, and templates that cannot be read."""
    from capfilt.data.instructions.formats import FORMATS

    for dataset in registry.datasets.values():
        for what, value, known in (
            ("category", dataset.category, registry.categories),
            ("reader", dataset.reader, FORMATS),
        ):
            if value is not None and value not in known:
                raise CapfiltError(
                    f"data set {dataset.name}: there is no {what} {value}",
                    fix=f"name one of {', '.join(known)}",
                )
    for category in registry.categories.values():
        category.parsed()

"""Models that are given, whatever their origin, as bundles of the run, before a stage needs them.

A run copies what it is given, so that it says and holds everything its rows depend on: a hub's branch moves,
and a folder outside is anybody's to change. What was taken is not looked for again: the same words mean the
same model, though the hub has moved on or cannot be reached.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.files import write_whole
from capfilt.layers import validated
from capfilt.models.backends.server import is_address
from capfilt.models.bundle_files import copy_bundle
from capfilt.models.cards import CARD_FILE, Card, identity, read_card
from capfilt.models.foreign_bundle import described_by
from capfilt.provenance.differences import differences
from capfilt.provenance.rundir import read_json
from capfilt.settings import Foreign
from capfilt.settings.run import as_typed
from capfilt.stages.worker import in_a_worker

if TYPE_CHECKING:
    from capfilt.models.checkpoints.foreign import Role
    from capfilt.settings import Bootstrap, Server
    from capfilt.stages.context import Engine, Tell

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In this order, as they are read."""
_TOKENIZERS = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class Given:
    """A model that is given, and what it comes to."""

    role: Role
    source: str
    """As it was typed."""
    found: str
    """Where it was found: an absolute path, or a hub id with its commit."""
    revision: str | None
    """Commit of the hub."""
    content: str
    """Digest of the files it came as."""
    size_px: int | None
    """Side that was asked for."""
    vocabulary: str
    """Where its vocabulary came from, as it was typed; empty where it holds its own."""
    weights: str
    """Digest of the bundle's weights."""
    identity: str
    """Digest of all that the bundle's numbers depend on."""
    options: dict[str, Any] = field(default_factory=dict)
    """What a model that other software runs was asked to be made with; of a server, all that its captions
    depend on."""
    scores: list[str] = field(default_factory=list)
    """What a filter measures."""
    card: dict[str, Any] = field(default_factory=dict)
    """Of a model to start from: what its bundle says of itself, as plain values (`start_card`)."""

    @property
    def start_card(self) -> Card | None:
        """The card of a model to start from; None of any other, and where no record holds it."""
        return validated(Card, self.card) if self.card else None


@dataclass(frozen=True)
class Wanted:
    """A model as it was asked for."""

    role: Role
    source: str
    size_px: int | None
    vocabulary: str
    server: Server
    """How it is asked where it is an address."""
    options: dict[str, Any] = field(default_factory=dict)
    """What it is made with where other software runs it."""
    scores: tuple[str, ...] = ()
    """What the policy that was asked for reads of a filter."""


def wanted(role: Role, source: Path | str, settings: Bootstrap) -> Wanted:
    """Return a model as the settings ask for it."""
    bundles = settings.bundles
    return Wanted(
        role,
        str(as_typed(source)),
        bundles.size_px,
        bundles.vocabulary,
        settings.server,
        options={"captioner": bundles.captioner_options, "filter": bundles.filter_options}.get(role, {}),
        scores=settings.judge.own_scores if role == "filter" else (),
    )


def find_given(asked: Wanted, recorded: Given | None, engine: Engine) -> Given:
    """Return what a model comes to; one that was taken before is the one that is recorded.

    A bundle of ours says it on its card; anything else is read whole, in a worker, and refused with
    CapfiltError if it is not what its role needs, or does not measure what the policy reads. A server is
    asked every time, and refused where its captions would be others than those that are recorded. Nothing
    is written.
    """
    is_known = recorded is not None and is_recorded(asked, recorded)
    given = recorded if recorded is not None and is_known else _found(asked, engine)
    if recorded is not None and is_address(asked.source):
        _check_asked_alike(given, recorded)
    _check_measures(given, asked)
    return given


def _check_asked_alike(given: Given, recorded: Given) -> None:
    """Refuse to ask a server in another way than a run began with; where it stands may change."""
    if not recorded.options or not is_address(recorded.source) or given.identity == recorded.identity:
        return
    names = {"told": "told by the server"}
    old, new = (
        {names.get(name, f"server.{name}"): value for name, value in one.options.items()}
        for one in (recorded, given)
    )
    raise CapfiltError(
        f"{given.source} is the {given.role} of captions that were asked for otherwise "
        "(recorded -> given):\n"
        + "\n".join(f"    {line}" for line in differences(old, new) or ["by another version of capfilt"]),
        fix="give the recorded values again to go on with this run, or another --out to start a new one",
    )


def _check_measures(given: Given, asked: Wanted) -> None:
    """Refuse a policy that reads what the filter does not measure, before hours of work that it would end."""
    missing = [score for score in asked.scores if score not in given.scores]
    if given.role != "filter" or not given.scores or not missing:
        return
    told = " and ".join(score.upper() for score in given.scores)
    raise CapfiltError(
        f"the policy reads {missing[0].upper()}, and the filter {asked.source} measures {told} alone",
        fix=f"judge by {told}, e.g. --{given.scores[0]} T, or give a filter that has {missing[0].upper()}",
    )


def _found(asked: Wanted, engine: Engine) -> Given:
    """Return what a model comes to that is looked at anew."""
    path = Path(asked.source).absolute()
    if (path / CARD_FILE).exists():
        from capfilt.models.checkpoints.importing import check_role

        _check_heads(read_card(path), asked)
        check_role(read_card(path), asked.role, asked.source)
    if _is_taken_as_it_is(path, asked.size_px) and not asked.options:
        return _given(asked, read_card(path), path, str(path), None)
    there = replace(asked, source=_absolute(asked.source), vocabulary=_absolute(asked.vocabulary))
    given = in_a_worker(engine, _look, there)
    return replace(
        given, source=asked.source, vocabulary=asked.vocabulary if given.vocabulary else given.vocabulary
    )


def _check_heads(card: Card, asked: Wanted) -> None:
    """Refuse to use a model some of whose heads nothing has trained yet."""
    fresh = card.origin.fresh if card.origin is not None else ()
    if fresh and asked.role != "init":
        raise CapfiltError(
            f"{asked.source} was made to start a training from: nothing has trained its {', '.join(fresh)}",
            fix=f"give it as --init, or a {asked.role} with all its heads",
        )


def take_given(given: Given, bundle: Path, engine: Engine, server: Server) -> None:
    """Write a model that was found as a bundle, unless it is there.

    How a server is asked may change from start to start, and is written anew.
    """
    if (bundle / CARD_FILE).exists() and not is_address(given.found):
        pass
    elif _is_taken_as_it_is(Path(given.found), given.size_px):
        copy_bundle(Path(given.found), bundle)
    else:
        there = replace(given, vocabulary=_absolute(given.vocabulary))
        in_a_worker(engine, _take, (there, bundle.absolute(), server))
    has_card = (bundle / CARD_FILE).exists()
    if not has_card or identity(read_card(bundle)) != given.identity:
        raise CapfiltError(
            f"{given.source} changed while it was read",
            fix=(f"remove {bundle} and " if has_card else "") + "give the same command again",
        )


def given_bundle(asked: Wanted, folder: Path, engine: Engine) -> Path:
    """Return the bundle of a model for a command that keeps none: as it lies there, or made in `folder`.

    Raises CapfiltError as `find_given` does.
    """
    given = find_given(replace(asked, scores=()), None, engine)
    found = Path(given.found)
    if _is_taken_as_it_is(found, given.size_px):
        return found
    take_given(given, folder, engine, asked.server)
    return folder


def read_given(file: Path) -> Given | None:
    """Return a record of a model that was taken; None where there is none."""
    if not file.exists():
        return None
    return Given(**read_json(file, mend="remove the file: the model is then looked for anew"))


def write_given(file: Path, given: Given) -> None:
    """Record a model that is about to be taken; what is recorded stays."""
    if not file.exists():
        write_whole(file, canonical_json(asdict(given)))


def described(card: Card, source: str) -> str:
    """Return what was made of a model that is given, in words."""
    origin = card.origin
    if isinstance(card.model, Foreign):
        return f"{source}: {card.kind}, run by {card.model.backend}"
    if origin is None:
        return f"{source}: a {card.kind} of capfilt"
    kind = "a .pth" if origin.kind == "pth" else "a transformers checkpoint"
    words = f"{source}: {card.kind} out of {kind}"
    words += f", commit {origin.revision[:12]}" if origin.revision else ""
    if card.resized_from_px is not None:
        words += f", position embeddings interpolated from {card.resized_from_px} px"
    if origin.left_out:
        words += f"; not read: {', '.join(origin.left_out)}"
    return words


def is_recorded(asked: Wanted, recorded: Given) -> bool:
    """Return whether a model that is asked for is the one that was taken, as far as can be seen quickly."""
    if is_address(asked.source) or (asked.role, asked.size_px) != (recorded.role, recorded.size_px):
        return False
    if asked.options != recorded.options:
        return False
    if recorded.vocabulary not in ("", asked.vocabulary):
        return False
    path = Path(asked.source)
    if path.exists():
        return content_digest(path) == recorded.content
    name, _, revision = asked.source.partition("@")
    is_pinned = bool(revision) and recorded.found == f"{name}@{recorded.revision}"
    return asked.source == recorded.source or (is_pinned and revision == recorded.revision)


def content_digest(path: Path) -> str:
    """Return the digest of a checkpoint's files: of those that would be read, by name."""
    if path.is_file():
        return _sha256(path)
    if (path / CARD_FILE).exists():
        return _sha256(path / CARD_FILE)
    names = described_by(path)
    for name in _WEIGHTS:
        if (path / name).is_file():
            names.append(name)
            break
        index = path / f"{name}.index.json"
        if index.is_file():
            places = read_json(index, mend="copy the folder again, whole").get("weight_map", {})
            names += [index.name, *sorted(set(places.values()))]
            break
    return digest_of({name: _sha256(path / name) for name in names if (path / name).is_file()})


def _look(asked: Wanted, _device: str, _tell: Tell) -> Given:
    """Read a model whole and say what it comes to; done by a worker."""
    from capfilt.models.checkpoints.importing import read_model

    ready = read_model(
        asked.source,
        Path(),
        role=asked.role,
        vocabulary=asked.vocabulary,
        size_px=asked.size_px,
        server=asked.server,
        options=asked.options,
    )
    found = ready.found
    where = str(found.path) if found.revision is None else f"{found.source}@{found.revision}"
    where = found.source if is_address(found.source) else where
    return _given(asked, ready.card, found.path, where, found.revision)


def _take(job: tuple[Given, Path, Server], _device: str, _tell: Tell) -> None:
    """Write a model that was found as a bundle; done by a worker."""
    from capfilt.models.checkpoints.importing import find_model, read_model

    given, to, server = job
    path = find_model(given.found).path
    if _is_taken_as_it_is(path, given.size_px):
        copy_bundle(path, to)
        return
    ready = read_model(
        given.found,
        to,
        role=given.role,
        vocabulary=given.vocabulary,
        size_px=given.size_px,
        server=server,
        options={} if is_address(given.found) else given.options,
    )
    if identity(ready.card) == given.identity:
        ready.write()


def _given(asked: Wanted, card: Card, path: Path, where: str, revision: str | None) -> Given:
    holds_vocabulary = path.is_dir() and any((path / name).is_file() for name in _TOKENIZERS)
    is_own = (path / CARD_FILE).exists()
    return Given(
        role=asked.role,
        source=asked.source,
        found=where,
        revision=revision,
        content=content_digest(path),
        size_px=asked.size_px,
        vocabulary="" if is_own or holds_vocabulary else asked.vocabulary,
        weights=card.weights,
        identity=identity(card),
        options=card.foreign.options if is_address(where) else asked.options,
        scores=list(card.scores) if asked.role == "filter" else [],
        card=card.model_dump(mode="json") if asked.role == "init" else {},
    )


def _is_taken_as_it_is(path: Path, size_px: int | None) -> bool:
    """Return whether this is a bundle of ours, to be used for pictures of its own side."""
    if not (path / CARD_FILE).exists():
        return False
    model = read_card(path).model
    return size_px is None or (not isinstance(model, Foreign) and size_px == model.images.size_px)


def _absolute(given: str) -> str:
    """Return a path that exists as an absolute one: a worker may have been started elsewhere."""
    return str(Path(given).absolute()) if given and Path(given).exists() else given


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

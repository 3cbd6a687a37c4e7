"""What models from nothing start from, found before anything is written and remembered while it is needed.

A run's rows depend on an image encoder and a language model that others trained as they do on its settings,
so that their digests are facts of the run. What is trained holds them, and then nobody asks for them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.files import write_whole
from capfilt.provenance.rundir import read_json
from capfilt.settings import Blip2
from capfilt.stages.worker import in_a_worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from capfilt.models.cards import Kind
    from capfilt.models.qformer_parts import Parts
    from capfilt.settings import Bundles, Model
    from capfilt.stages.context import Engine, Tell


@dataclass(frozen=True)
class FoundParts:
    """Parts that were found, each by its name in `Bundles`."""

    facts: dict[str, str] = field(default_factory=dict)
    """What the weights depend on: digests, or a hub id with its commit."""
    typed: dict[str, str] = field(default_factory=dict)
    """As they were given."""
    taken: dict[str, Any] = field(default_factory=dict)
    """Those of a Q-Former as plain values (`Parts.record`)."""

    @property
    def of_a_qformer(self) -> Parts | None:
        """What a Q-Former is put between; None where nothing is."""
        from capfilt.models.qformer_parts import recorded_parts

        return recorded_parts(self.taken) if self.taken else None

    def only(self, names: Collection[str]) -> dict[str, str]:
        """Return the facts of some; a BERT's vocabulary goes with it."""
        return {
            name: one
            for name, one in self.facts.items()
            if name in names or (name == "vocabulary" and "text" in names)
        }


def takers(kinds: Iterable[str], *, from_nothing: bool) -> dict[str, set[str]]:
    """Return which of the models to train take each part.

    The joint model is the one from nothing where there is one, and `next` is the one between two rounds.
    """
    kinds = set(kinds)
    first = ({"joint"} if "joint" in kinds else kinds - {"next"}) if from_nothing else set()
    first |= kinds & {"next"}
    found = {"vision": first, "text": first, "language": kinds & {"captioner"}}
    return {name: who for name, who in found.items() if who}


@dataclass(frozen=True)
class _Search:
    bundles: Bundles
    model: Model | Blip2
    names: tuple[str, ...]
    """Parts that some model takes."""
    needed: tuple[str, ...]
    """Those whose model is still to be trained."""
    known: FoundParts | None
    has_start: bool


def find_run_parts(
    bundles: Bundles,
    model: Model | Blip2,
    kinds: Iterable[Kind | str],
    *,
    untrained: Collection[str],
    record: Path,
    engine: Engine,
) -> FoundParts:
    """Find what the models of these kinds are begun with; nothing is written.

    A part that was found before under the same words is asked for again only while a model that takes it is
    untrained, and one from the hub stays the commit that it was. Raises CapfiltError for what is not there
    and for a language model that no captioner can be built around.
    """
    taking = takers(kinds, from_nothing=bundles.init is None)
    names = tuple(name for name in taking if getattr(bundles, name) is not None)
    if not names:
        return FoundParts()
    needed = tuple(name for name in names if taking[name] & set(untrained))
    known = None
    if record.exists():
        known = FoundParts(**read_json(record, mend="remove the file: the parts are then looked for anew"))
    search = _Search(bundles, model, names, needed, known, bundles.init is not None)
    return in_a_worker(engine, _find, search)


def write_parts(record: Path, found: FoundParts) -> None:
    """Record parts that models are about to be trained with; what was recorded of others stays."""
    if not found.typed:
        return
    whole = {"facts": found.facts, "typed": found.typed, "taken": found.taken}
    if record.exists():
        before = read_json(record, mend="remove the file: the parts are then looked for anew")
        whole = {name: {**before[name], **own} for name, own in whole.items()}
    write_whole(record, canonical_json(whole))


def _find(search: _Search, _device: str, _tell: Tell) -> FoundParts:
    """Find the parts; done by a worker, which has torch at hand."""
    if isinstance(search.model, Blip2):
        return _of_a_qformer(search, search.model)
    from capfilt.models.initial import find_start

    given = {name: str(getattr(search.bundles, name)) for name in search.names}
    known = search.known
    if known is not None and not search.needed and all(known.typed.get(n) == given[n] for n in given):
        return FoundParts(known.only(search.names), given)
    start = find_start(search.bundles, search.model)
    found = FoundParts(start.facts() if start is not None else {})
    return FoundParts(found.only(search.names), given)


def _of_a_qformer(search: _Search, model: Blip2) -> FoundParts:
    from capfilt.models.qformer_parts import Parts, check_language, find_part, recorded_parts, typed

    known = recorded_parts(search.known.taken) if search.known is not None else Parts(None, None)
    parts = {}
    for name in search.names:
        before = getattr(known, name)
        is_known = before is not None and before.typed == typed(name, search.bundles, model)
        if is_known and (name not in search.needed or before.revision is not None):
            parts[name] = before
        else:
            parts[name] = find_part(name, search.bundles, model)
    found = Parts(parts.get("vision"), parts.get("language"), parts.get("text"))
    if found.language is not None and "language" in search.needed:
        check_language(found.located().language or found.language, model, with_places=not search.has_start)
    return FoundParts(found.facts(), {name: one.typed for name, one in parts.items()}, found.record())

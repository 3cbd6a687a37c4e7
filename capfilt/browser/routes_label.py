"""Labelling: pairs of a drawn sample one after another, and what the labels say of the policy.

Who labels sees neither the scores nor the verdict nor where a text comes from: they would be believed. The
place in the sample stands in the address, so that a link leads to the same pair again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.browser.pages import address
from capfilt.browser.proposal import Proposal
from capfilt.browser.site import fields_of, site_of, user_name, wants_part, whole_number
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response

    from capfilt.browser.site import Site
    from capfilt.provenance.labels import Label, Measured, Proposed

SIZE, MOST_SIZE = 200, 10_000
"""Pairs of a drawn sample."""
_MOST_SEED = 2**31 - 1
_PRECISIONS = (0.8, 0.9, 0.95, 0.98, 0.99)
"""Wanted precisions that are offered."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Who labels which sample."""

    who: str
    size: int
    seed: int

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Asking:
        """Return what a query or a form says."""
        return cls(
            query.get("who", "").strip(),
            whole_number(query.get("size", ""), low=1, high=MOST_SIZE, otherwise=SIZE),
            whole_number(query.get("seed", ""), low=0, high=_MOST_SEED, otherwise=0),
        )

    def at(self, place: int | None) -> str:
        """Return the address of the pair at a place, from 1; without one that of the next to label."""
        return address("/label", who=self.who, size=self.size, seed=self.seed, n=place)


def label_page(request: Request) -> Response:
    """Answer with the pair that is to be labelled; without a name, ask for it."""
    site, query = site_of(request), request.query_params
    asking = Asking.read(query)
    if not asking.who or not is_drawn(site):
        return site.page("label_start.html", "/label", who=asking.who or user_name(), asking=asking)
    values = _question(site, asking, query.get("n"))
    if wants_part(request):
        return _part(site, asking, values)
    return site.page("label.html", "/label", **values, precisions=_PRECISIONS)


async def draw_pairs(request: Request) -> Response:
    """Draw a sample, which the run remembers how it was divided for, and lead to its first pair."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response

    site = site_of(request)
    asking = Asking.read(dict(await fields_of(request)))
    if not asking.who:
        raise CapfiltError("a label says who gave it", fix="give your name, or any other that you will know")
    await run_in_threadpool(site.draw, asking.size, asking.seed)
    return Response(status_code=204, headers={"hx-redirect": asking.at(None)})


async def add_label(request: Request) -> Response:
    """Write what was said of a pair, and answer with the next one."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(_add_label, site_of(request), dict(await fields_of(request)))


async def undo_label(request: Request) -> Response:
    """Take back what the person said last, and answer with that pair."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(_undo_label, site_of(request), dict(await fields_of(request)))


def label_figures(request: Request) -> HTMLResponse:
    """Answer with precision, recall and the threshold for a wanted precision, by all labels."""
    from capfilt.provenance.labels import measured

    site = site_of(request)
    try:
        wanted = float(request.query_params.get("precision", "0.95"))
    except ValueError:
        wanted = 0.95
    found = measured(site.run)
    proposed, why = _proposed(site, found, wanted)
    return site.page(
        "label_figures.html",
        "/label",
        measured=found,
        wanted=wanted,
        precisions=_PRECISIONS,
        proposed=proposed,
        link=None if proposed is None else link_of(site, proposed),
        why=why,
    )


def is_drawn(site: Site) -> bool:
    """Return whether a sample of the run was drawn before, so that drawing one writes nothing."""
    from capfilt.provenance.strata import known_strata

    return known_strata(site.run) is not None


def link_of(site: Site, proposed: Proposed) -> str:
    """Return the address of the policy with a proposed threshold."""
    filters = site.view.facets().filters
    further = None if not filters or proposed.filter == filters[0] else proposed.filter
    rules: dict[str, Any] = {proposed.score: repr(proposed.threshold), "with_filter": further}
    return address("/", **dict(Proposal(**rules).query()))


# -- one pair


def _question(site: Site, asking: Asking, place: str | None) -> dict[str, Any]:
    """Return what a pair is asked with; the place is a number from 1."""
    draw = site.draw(asking.size, asking.seed)
    labels = _labels_of(site, asking, draw.name)
    done = {label.pair_id: label.verdict.value for label in labels}
    total = len(draw.pairs)
    first = next((at for at, pair in enumerate(draw.pairs, 1) if pair.pair_id not in done), total + 1)
    at = first if place is None else whole_number(place, low=1, high=total + 1, otherwise=first)
    pair = text = None
    if at <= total:
        from capfilt.provenance.labels import text_digest

        pair = draw.pairs[at - 1]
        history = site.view.history(pair.shard, pair.key)
        text = next((one.text for one in history.tellings if one.pair_id == pair.pair_id), None)
        if text is None:
            raise CapfiltError(
                f"pair {at} of the sample, {pair.pair_id}, is no longer in the run: its shard was done anew",
                fix="draw a sample with another seed",
            )
    return {
        "asking": asking,
        "pair": pair,
        "text": text,
        "digest": None if text is None else text_digest(text),
        "said": None if pair is None else done.get(pair.pair_id),
        "at": at,
        "total": total,
        "done": sum(pair.pair_id in done for pair in draw.pairs),
    }


def _part(site: Site, asking: Asking, values: Mapping[str, Any]) -> HTMLResponse:
    part = site.page("label_question.html", "/label", **values)
    part.headers["hx-replace-url"] = asking.at(values["at"])
    return part


def _add_label(site: Site, fields: Mapping[str, str]) -> HTMLResponse:
    from capfilt.provenance.labels import Label, Verdict, add_labels, read_labels

    asking = Asking.read(fields)
    draw = site.draw(asking.size, asking.seed)
    at = whole_number(fields.get("n", ""), low=0, high=len(draw.pairs), otherwise=0)
    if not at or draw.pairs[at - 1].pair_id != fields.get("pair_id"):
        raise CapfiltError("this pair is no longer at its place of the sample", fix="open the page again")
    verdict = fields.get("verdict", "")
    if verdict == Verdict.UNDONE:
        raise CapfiltError("a label is taken back by undo", fix="press z")
    pair = draw.pairs[at - 1]
    said = Label(
        pair_id=pair.pair_id,
        verdict=verdict,  # type: ignore[arg-type] # a label refuses what is none
        who=asking.who,
        when=_after_all_of(read_labels(site.run, every=True), asking.who, pair.pair_id),
        draw=draw.name,
        text_sha256=fields.get("text_sha256") or None,
    )
    add_labels(site.run, [said])
    site.view.refresh()
    return _told(_part(site, asking, _question(site, asking, str(at + 1))))


def _undo_label(site: Site, fields: Mapping[str, str]) -> HTMLResponse:
    from dataclasses import replace

    from capfilt.provenance.labels import Verdict, add_labels

    asking = Asking.read(fields)
    draw = site.draw(asking.size, asking.seed)
    places = {pair.pair_id: place for place, pair in enumerate(draw.pairs, 1)}
    labels = [label for label in _labels_of(site, asking, draw.name) if label.pair_id in places]
    if not labels:
        raise CapfiltError(
            f"{asking.who} said nothing yet that could be taken back", fix="label a pair first"
        )
    last = max(labels, key=lambda label: label.when)
    add_labels(site.run, [replace(last, verdict=Verdict.UNDONE, when=max(time.time(), last.when))])
    site.view.refresh()
    return _told(_part(site, asking, _question(site, asking, str(places[last.pair_id]))))


def _after_all_of(labels: Sequence[Label], who: str, pair_id: str) -> float:
    """Return now, or the time of what the person said of the pair before, by a clock that was ahead.

    What is said last counts, and of equal times what was added last.
    """
    before = [one.when for one in labels if (one.who, one.pair_id) == (who, pair_id)]
    return max((time.time(), *before))


def _told(part: HTMLResponse) -> HTMLResponse:
    """Have the figures on the page asked for again."""
    part.headers["hx-trigger"] = "labelled"
    return part


def _labels_of(site: Site, asking: Asking, draw: str) -> list[Label]:
    from capfilt.provenance.labels import read_labels

    return [label for label in read_labels(site.run) if label.who == asking.who and label.draw == draw]


def _proposed(site: Site, found: Measured, wanted: float) -> tuple[Proposed | None, str]:
    """Return the threshold for a wanted precision, or why there is none."""
    from capfilt.provenance.labels import threshold_for

    if not found.matches + found.mismatches:
        return None, "no pair is labelled yet"
    try:
        return threshold_for(site.run, wanted), ""
    except CapfiltError as error:
        return None, f"{error.what}; {error.fix}"

"""The first page: pictures with their texts, and the policy that is slid beside them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.browser.histograms import bars, by_reason, by_source
from capfilt.browser.queries import Wanted, proposal_of, threshold_of, threshold_text
from capfilt.browser.selection import RANDOM_ORDER, Selection
from capfilt.browser.site import fields_of, site_of, wants_part
from capfilt.provenance.policy import newest_policy
from capfilt.records import Reason

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import HTMLResponse

    from capfilt.browser.cards import Card, Facets, ScoreColumn
    from capfilt.browser.previews import Preview
    from capfilt.browser.proposal import Proposal
    from capfilt.browser.site import Site

PICTURES = 24
"""On a page."""
_SHARDS = 300
"""That are offered by name; any other can be typed."""


_PATIENCE_S = 0.3
"""How long a page waits for scores that are being loaded."""
_MOST_PER_IMAGE = 5
"""Texts a picture that are offered."""


@dataclass(frozen=True, slots=True)
class Slider:
    """The threshold of one column of scores."""

    column: ScoreColumn
    field: str
    """Name of its field in the form."""
    value: str
    """Its number; empty where there is no threshold."""
    low: float
    high: float
    step: float

    @property
    def is_probability(self) -> bool:
        """Whether the score is one."""
        return self.column.is_probability


def grid_page(request: Request) -> HTMLResponse:
    """Answer with the page, or with what of it follows from the form."""
    site = site_of(request)
    if not wants_part(request):
        site.view.refresh()
        _wait_a_little(site)
    facets, newest = site.view.facets(), newest_policy(site.run)
    in_force = None if newest is None else newest[1]
    wanted = Wanted.read(request.query_params.multi_items(), facets, in_force)
    may_wait = "hx-request" in request.headers
    values = _values(site, facets, wanted, may_wait=may_wait)
    if wants_part(request):
        part = site.page("grid_part.html", "/", **values)
        part.headers["hx-replace-url"] = wanted.address(offset=wanted.offset)
        return part
    shown = wanted.proposal if wanted.proposal.is_given else proposal_of(in_force)
    per_image = sorted({*range(1, _MOST_PER_IMAGE + 1), shown.per_image or 1})
    return site.page("grid.html", "/", **values, shown_proposal=shown, per_image_choices=per_image)


def _wait_a_little(site: Site) -> None:
    """Wait for what is loaded in a moment: a page that fills in at once only flickers."""
    until = time.monotonic() + _PATIENCE_S
    while not site.view.facets().is_complete and time.monotonic() < until:
        time.sleep(_PATIENCE_S / 20)


async def apply_policy(request: Request) -> HTMLResponse:
    """Write the policy of the form, and answer with what was written."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(_apply, site_of(request), await fields_of(request))


def _apply(site: Site, fields: list[tuple[str, str]]) -> HTMLResponse:
    newest = newest_policy(site.run)
    wanted = Wanted.read(fields, site.view.facets(), None if newest is None else newest[1])
    applied = site.view.apply(wanted.proposal)
    site.view.refresh()
    answer = site.page("applied.html", "/", applied=applied)
    answer.headers["hx-trigger"] = "applied"
    return answer


def _values(site: Site, facets: Facets, wanted: Wanted, *, may_wait: bool) -> dict[str, Any]:
    """Return what the page's templates read.

    While texts and scores are still being loaded there are no counts, unless one `may_wait`: pictures come
    first, and the page asks for the rest.
    """
    proposal = wanted.proposal if wanted.proposal.is_given else None
    values: dict[str, Any] = {"facets": facets, "wanted": wanted, "preview": None, "sliders": []}
    if facets.samples:
        grid = site.view.grid(wanted.selection, wanted.offset, PICTURES, proposal)
        following = wanted.offset + PICTURES
        values |= {
            "grid": grid,
            "previous": max(0, wanted.offset - PICTURES) if wanted.offset else None,
            "following": following if following < grid.total else None,
        }
        if may_wait or facets.is_complete:
            values |= _counted(site, facets, wanted)
    return {**values, **_choices(facets, wanted), "bars": bars, "card_id": card_id}


def _counted(site: Site, facets: Facets, wanted: Wanted) -> dict[str, Any]:
    """Return what follows from the verdicts of every text."""
    preview = site.view.preview(wanted.proposal)
    is_draft = wanted.proposal.is_given and facets.policy is not None
    return {
        "preview": preview,
        "counted": by_source(preview),
        "reasons": by_reason(preview),
        "sliders": _sliders(facets, preview, wanted.proposal),
        "in_force": site.in_force() if is_draft else None,
    }


def _choices(facets: Facets, wanted: Wanted) -> dict[str, Any]:
    """Return what the form and the cards are written with, apart from what is counted."""
    selection = wanted.selection
    rare = (selection.reason, selection.label, selection.shard, selection.substring, selection.ranges)
    return {
        "ranges": {one.column: one for one in selection.ranges},
        "words_of": {one.name: one.words for one in facets.columns},
        "verdict_reasons": [one.value for one in Reason],
        "more_is_open": any(rare) or selection.order == RANDOM_ORDER or not selection.descending,
        "cleared": Wanted(Selection(), wanted.proposal).address(),
        "shards": facets.shards[:_SHARDS],
    }


def _sliders(facets: Facets, preview: Preview, proposal: Proposal) -> list[Slider]:
    """Return a slider for each column that was measured, as long as its histogram."""
    found = []
    for column in facets.columns:
        ends = [(h.low, h.high, h.threshold) for h in preview.histograms if h.column == column.name]
        if not ends:
            continue
        low, high, threshold = ends[0]
        given = threshold_of(proposal, column.name)
        # A wish, such as auto:recall=0.85, is shown as the number that it became.
        is_number = given.replace(".", "", 1).lstrip("+-").isdecimal()
        value = given if is_number else "" if threshold is None else threshold_text(threshold)
        own = column.name in ("itm", "itc", "vqa")
        field = f"judge.{column.name}" if own else f"also.{column.name}"
        found.append(Slider(column, field, value, low, high, _step(high - low)))
    return found


def _step(span: float) -> float:
    """Return a step of which some hundreds make a span, and that people can read."""
    step = 0.1
    while span / step < 150:
        step /= 10
    return round(step * 5, 12) if span / step > 750 else step


def card_id(card: Card) -> str:
    """Return a name for a picture's card that can stand in markup, whatever its key."""
    return (
        "card-"
        + hashlib.sha256(f"{card.shard}\0{card.key}".encode("utf-8", "backslashreplace")).hexdigest()[:12]
    )

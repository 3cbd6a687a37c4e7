"""What every route of the page shares: the run, the view of it, and who looks."""

from __future__ import annotations

import getpass
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from capfilt.browser.pages import page
from capfilt.browser.proposal import Proposal
from capfilt.browser.static_files import version
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import HTMLResponse

    from capfilt.browser.previews import Preview
    from capfilt.browser.view import RunView
    from capfilt.provenance.labels import Draw
    from capfilt.provenance.rundir import RunDir

MOST_BYTES = 64_000
"""Of what is sent to the page: a label, or a policy."""
_DRAWS = 8
"""Drawn samples that are remembered."""


@dataclass(frozen=True, slots=True)
class Site:
    """A run that is looked at."""

    run: RunDir
    view: RunView
    draw: Callable[[int, int], Draw] = field(repr=False)
    """Draw a sample of so many pairs with a seed; the same one is remembered."""
    _in_force: Callable[..., Preview] = field(repr=False)

    @classmethod
    def of(cls, run: RunDir, view: RunView) -> Site:
        """Return what routes share for this run."""

        @lru_cache(_DRAWS)
        def draw(size: int, seed: int) -> Draw:
            from capfilt.provenance.labels import draw_sample

            return draw_sample(run, size, seed)

        @lru_cache(1)
        def in_force(*_what_it_follows_from: object) -> Preview:
            return view.preview(Proposal())

        return cls(run, view, draw, in_force)

    def page(self, name: str, here: str, **values: Any) -> HTMLResponse:
        """Return a template, filled; `here` is the view it belongs to."""
        return page(name, {"run_name": self.run_name, "here": here, "version": version(), **values})

    def in_force(self) -> Preview:
        """Return what the policy in force keeps, counted anew when the view knows more than before."""
        facets = self.view.facets()
        return self._in_force(facets.policy, facets.texts, tuple(facets.labels.items()))

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return self.run.path.resolve().name


def site_of(request: Request) -> Site:
    """Return what the application of a request looks at."""
    site: Site = request.app.state.site
    return site


def wants_part(request: Request) -> bool:
    """Return whether a part of a page is asked for, by htmx, and not the page."""
    return request.headers.get("hx-request-type") == "partial"


async def fields_of(request: Request) -> list[tuple[str, str]]:
    """Return the fields of a form that was sent; CapfiltError where it is none, or a large one."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise CapfiltError("more was sent than a form holds", fix="open the page again")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    try:
        if kind != "application/x-www-form-urlencoded":
            raise ValueError
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise CapfiltError("what was sent is no form", fix="open the page again") from None


def whole_number(text: str, *, low: int, high: int, otherwise: int) -> int:
    """Return the number of a query's parameter, brought into its range; a link may be old or mistyped."""
    try:
        return min(high, max(low, int(text)))
    except ValueError:
        return otherwise


def user_name() -> str:
    """Return the name of the user who runs the page; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # what Python raises for a user id without a name
        return ""

"""The page's application: its routes, what guards them, and what becomes of an error."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from capfilt.browser import routes_grid, routes_label, routes_live, routes_picture
from capfilt.browser.guard import Guard
from capfilt.browser.problems import of_http, of_ours, of_user
from capfilt.browser.site import Site
from capfilt.browser.static_files import static_file
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette

    from capfilt.provenance.rundir import RunDir


def create_app(run: RunDir, token: str) -> Starlette:
    """Return the page of a run; whoever writes must bring the token.

    The run is opened here and closed when the application's lifespan ends. CapfiltError where its record is
    damaged.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from capfilt.browser.view import RunView

    view = RunView.open(run)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        view.close()

    app = Starlette(
        routes=[
            Route("/", routes_grid.grid_page),
            Route("/apply", routes_grid.apply_policy, methods=["POST"]),
            Route("/picture", routes_picture.picture_page),
            Route("/thumbnail", routes_picture.thumbnail_file),
            Route("/label", routes_label.label_page),
            Route("/label/figures", routes_label.label_figures),
            Route("/label/draw", routes_label.draw_pairs, methods=["POST"]),
            Route("/label/add", routes_label.add_label, methods=["POST"]),
            Route("/label/undo", routes_label.undo_label, methods=["POST"]),
            Route("/live", routes_live.live_page),
            Route("/static/{version}/{name}", static_file),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={CapfiltError: of_user, HTTPException: of_http, Exception: of_ours},
        lifespan=lifespan,
    )
    app.state.site = Site.of(run, view)
    return app

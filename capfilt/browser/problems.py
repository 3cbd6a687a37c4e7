"""What is shown where something is wrong: what it is, and how to mend it, as a page or within one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.browser.headers import HEADERS, PRIVATE
from capfilt.browser.pages import page
from capfilt.browser.static_files import version
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import HTMLResponse
    from starlette.types import ASGIApp, Receive, Scope, Send


def problem(status: int, what: str, fix: str) -> ASGIApp:
    """Return an application that answers every request with what is wrong."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import Request

        await problem_page(Request(scope), status, what, fix)(scope, receive, send)

    return answer


def problem_page(request: Request, status: int, what: str, fix: str, *, run_name: str = "") -> HTMLResponse:
    """Return what is wrong: a page of its own, or a notice where only a part of a page was asked for."""
    of_frame = {"run_name": run_name, "here": "", "version": version()}
    values = {"what": what, "fix": fix, "status": status, **of_frame}
    if "hx-request" not in request.headers:
        return page("problem.html", values, status=status)
    notice = page("notice.html", values, status=status)
    notice.headers["hx-retarget"] = "#notice"
    notice.headers["hx-reswap"] = "innerHTML"
    return notice


def of_user(request: Request, error: Exception) -> HTMLResponse:
    """Answer an error that the user can mend."""
    known = error if isinstance(error, CapfiltError) else CapfiltError(str(error), fix="go back")
    return problem_page(request, 400, known.what, known.fix, run_name=_run_name(request))


def of_http(request: Request, error: Exception) -> HTMLResponse:
    """Answer an address that nothing stands under, or a method that it does not have."""
    status = getattr(error, "status_code", 404)
    what = "nothing stands under this address" if status == 404 else "this address is not asked in this way"
    return problem_page(request, status, what, "go to the first page", run_name=_run_name(request))


def of_ours(request: Request, error: Exception) -> HTMLResponse:
    """Answer a defect of ours; its traceback stands in the terminal."""
    what = f"the page failed: {type(error).__name__}"
    fix = "its traceback stands in the terminal where `capfilt browse` runs"
    answer = problem_page(request, 500, what, fix, run_name=_run_name(request))
    # Starlette answers defects outside of the guard.
    answer.headers.update(HEADERS | PRIVATE)
    return answer


def _run_name(request: Request) -> str:
    """Return what the page shows; whoever was refused by the guard is not told."""
    name: str = request.app.state.site.run_name
    return name

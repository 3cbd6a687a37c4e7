"""How a page is written: Jinja2 with every value escaped, and a stranger's text shown for what it is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment
    from markupsafe import Markup
    from starlette.responses import HTMLResponse

    from capfilt.browser.previews import Share
    from capfilt.provenance.labels import Estimate

LONGEST_IN_CARD = 280
"""Characters of a text in a grid, where many stand together."""
LONGEST = 5000
"""Characters of a text where it stands alone."""

_TEMPLATES = Path(__file__).parent / "templates"

REASONS = {
    "kept": "kept",
    "empty_caption": "no words",
    "unscored": "not scored",
    "below_threshold": "below threshold",
    "below_fraction": "not in the best share",
    "not_best_of_image": "not its picture's best",
    "repeated_text": "the same text again",
    "web_text_kept": "the web text is kept",
    "missing_image": "no picture",
    "empty_image": "an empty picture",
    "unreadable_image": "an unreadable picture",
    "too_many_pixels": "too many pixels",
    "repeated_key": "a repeated key",
    "damaged_shard": "a damaged shard",
    "missing_text": "no web text",
    "empty_text": "an empty web text",
    "text_not_utf8": "a web text that is not UTF-8",
    "text_too_long": "a web text that is too long",
}
"""What a reason of the record is called on a page."""


def page(name: str, values: Mapping[str, Any], *, status: int = 200) -> HTMLResponse:
    """Return a template, filled, as an answer that nobody keeps."""
    from starlette.responses import HTMLResponse

    text = _environment().get_template(name).render(values)
    # Nothing that a stranger wrote gets here without `shown`; should a lone surrogate, it is still no error.
    return HTMLResponse(text.encode("utf-8", "backslashreplace"), status_code=status)


def address(path: str, **query: object) -> str:
    """Return a path of ours with a query; what is None or empty is left out."""
    given = {name: str(value) for name, value in query.items() if value is not None and value != ""}
    return f"{path}?{urlencode(given, errors='backslashreplace')}" if given else path


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "count": count,
        "score": score,
        "share": share,
        "reason": reason,
        "short": short,
        "plain": plain,
        "estimate": estimate,
        "change": change,
        "rate": rate,
        "duration": duration,
    }
    environment.globals["address"] = address
    return environment


def shown(text: str | None, most: int = LONGEST) -> Markup:
    """Return a stranger's text, apart from the direction of what stands around; None as a dash.

    What would turn the direction of reading, or is not to be seen, is shown as its escape.
    """
    from markupsafe import Markup

    if text is None:
        return Markup('<span class="none">none</span>')
    return Markup("<bdi>{}</bdi>").format(visible(text, most))


def plain(text: str) -> str:
    """Return a stranger's text for an attribute or a title, which hold no markup; it is still escaped."""
    return visible(text, LONGEST)


def count(number: int) -> str:
    """Return a count as people read it: 20,000."""
    return f"{number:,}"


def change(number: int) -> str:
    """Return a difference with its sign."""
    return f"{number:+,}".replace("-", "\N{MINUS SIGN}") if number else "\N{PLUS-MINUS SIGN}0"


def rate(value: float) -> str:
    """Return a number by second with three digits, and as a count where it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time as people say it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def score(value: float | None) -> str:
    """Return a score with three decimals and a true minus; a dash where there is none."""
    return "\N{EN DASH}" if value is None else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def share(part: float, whole: float = 1) -> str:
    """Return a part of a whole in per cent; a dash where there is no whole.

    Only all is 100% and only nothing is 0%.
    """
    if not whole:
        return "\N{EN DASH}"
    per_cent = 100 * part / whole
    if 0 < per_cent < 0.1:
        return "<0.1%"
    if 99.9 < per_cent < 100:
        return ">99.9%"
    return f"{per_cent:.0f}%" if 10 <= per_cent <= 90 or per_cent in (0, 100) else f"{per_cent:.1f}%"


def estimate(value: Estimate | Share | None) -> Markup:
    """Return a share with its 95% interval."""
    from markupsafe import Markup

    if value is None or value.value is None:
        return Markup('<span class="none">unknown</span>')
    low, high = (f"{100 * end:.0f}" for end in (value.low, value.high))
    return Markup("{} <small>({}\N{EN DASH}{})</small>").format(share(value.value), low, high)


def reason(name: str | None) -> str:
    """Return what a reason of the record is called; None where nothing was decided."""
    return "not judged" if name is None else REASONS.get(name, name.replace("_", " "))


def short(digest: str | None) -> str:
    """Return the first digits of a digest, enough for people."""
    return "\N{EN DASH}" if digest is None else digest[:8]

"""Drawings as SVG that stands inside a page: few elements, no styles of their own, colours for a theme.

What the drawing library writes is taken apart and put together again from a short list of elements and
attributes, so that the page's Content-Security-Policy, which forbids styles in attributes, costs nothing, and
no drawn word can become markup. Colours stay as they were drawn: page.css names each and gives it a second
one for dark screens.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from capfilt.reports.drawing import house_style

if TYPE_CHECKING:
    from collections.abc import Iterator
    from xml.etree.ElementTree import Element

    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_PLACES = frozenset({"d", "x", "y", "width", "height", "transform"})
_LOOKS = frozenset(
    {
        "fill",
        "fill-opacity",
        "font-size",
        "font-weight",
        "opacity",
        "stroke",
        "stroke-dasharray",
        "stroke-linecap",
        "stroke-linejoin",
        "stroke-opacity",
        "stroke-width",
        "text-anchor",
    }
)
_KEPT = {
    "g": frozenset({"clip-path"}) | _LOOKS,
    "path": frozenset({"id", "clip-path"}) | _PLACES | _LOOKS,
    "rect": _PLACES | _LOOKS,
    "text": _PLACES | _LOOKS,
    "tspan": _PLACES | _LOOKS,
    "use": frozenset({"href", "clip-path"}) | _PLACES | _LOOKS,
    "defs": frozenset[str](),
    "clipPath": frozenset({"id"}),
}
"""Elements that may stand in the page, and what each may say."""
_NUMBER = re.compile(r"-?\d+\.\d+")
_NO_TURN = re.compile(r"rotate\(-?0(\.0*)?( [^)]*)?\)")


def svg(figure: Figure, name: str, alt: str) -> Markup:
    """Return a figure as one <svg> element, with its description for those who do not see it.

    `name` is the page's own word for the drawing: ids in it begin with it, as a page holds many.
    """
    import matplotlib as mpl

    data = io.BytesIO()
    with house_style(), mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(data.getvalue())
    body = "".join(_written(child, name) for child in root)
    view = Markup.escape(root.attrib["viewBox"])
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">{}</svg>').format(view, alt, Markup(body))


def _written(element: Element, name: str) -> str:
    """Return an element as text without what the page does not need; nothing where it draws nothing."""
    tag = element.tag.removeprefix(_SVG)
    if tag not in _KEPT:
        return ""
    attributes = {key: value for key, value in _attributes(element, name) if key in _KEPT[tag]}
    if tag in ("path", "rect") and attributes.get("fill") == "none" and "stroke" not in attributes:
        return ""  # a background that is not painted
    inside = str(Markup.escape(element.text or "")) if tag in ("text", "tspan") else ""
    inside += "".join(_written(child, name) for child in element)
    if tag in ("g", "defs") and not inside:
        return ""
    if tag == "g" and not attributes:
        return inside
    written = "".join(f' {key}="{Markup.escape(value)}"' for key, value in attributes.items())
    return f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>"


def _attributes(element: Element, name: str) -> Iterator[tuple[str, str]]:
    """Yield what an element says, its style taken apart; numbers have a tenth of a point at most."""
    for key, value in element.attrib.items():
        if key == "style":
            for part in filter(None, value.split(";")):
                look, _, how = part.partition(":")
                yield look.strip(), how.strip()
        elif key == "id":
            yield key, f"{name}-{value}"
        elif key == _HREF:
            yield "href", value.replace("#", f"#{name}-", 1)
        elif key == "clip-path":
            yield key, value.replace("#", f"#{name}-", 1)
        elif key == "transform":
            if turned := _NO_TURN.sub("", value).strip():
                yield key, _rounded(turned)
        elif key in _PLACES:
            yield key, _rounded(" ".join(value.split()))


def _rounded(text: str) -> str:
    return _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text)

"""A page as a test reads it: its elements, its words, and its tables by their captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_EMPTY = {"meta", "link", "img", "br", "path", "rect", "use"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    inside: tuple[str, ...]
    """Ids of the elements around it."""


@dataclass
class Page:
    elements: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """Everything that is shown, piece by piece."""
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """Rows by caption, the head first; a caption that comes twice keeps its first table."""
    style: str = ""

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[tuple[str, str]] = []
        self._caption = ""
        self._rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        ids = tuple(id_ for _, id_ in self._open if id_)
        self.page.elements.append(Element(tag, dict(attrs), ids))
        if tag not in _EMPTY:
            self._open.append((tag, dict(attrs).get("id") or ""))
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append(Element(tag, dict(attrs), tuple(id_ for _, id_ in self._open if id_)))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag, f"<{opened}> ends as </{tag}>"
        if tag == "table":
            self.page.tables.setdefault(self._caption, self._rows)

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if "style" in inside:
            self.page.style += data
            return
        self.page.words.append(data)
        if "caption" in inside:
            self._caption += data
        elif inside and inside[-1] in ("td", "th"):
            self._rows[-1][-1] += data


def read_page(html: str) -> Page:
    """Parse a page; tags that do not match are an AssertionError."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader._open == []
    return reader.page


def number(cell: str) -> float:
    """Return what a cell says; a dash is nothing."""
    return 0.0 if cell == "\N{EN DASH}" else float(cell.replace(",", "").replace("\N{MINUS SIGN}", "-"))

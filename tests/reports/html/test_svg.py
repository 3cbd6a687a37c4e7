from __future__ import annotations

import re
from xml.etree import ElementTree

from read_page import read_page

from capfilt.reports.html.panels import Table, sheet


def drawn(words: str, name: str = "chart") -> str:
    with sheet() as one:
        axes = one.figure.subplots()
        axes.plot([0, 1], [0, 1], "o-")
        axes.fill_between([0, 1], [0, 1], alpha=0.5)
        axes.text(0.5, 0.5, words)
        axes.set_xlim(0, 1)
        return str(one.panel(name, "A title", alt=words, table=Table(("a",), [])).drawing)


def test_words_of_a_drawing_are_words() -> None:
    hostile = "</text><script>alert(1)</script> \" onload='x' &amp; $x$"
    page = read_page(drawn(hostile))
    assert hostile in page.text
    assert {element.tag for element in page.elements} <= {
        "svg",
        "g",
        "path",
        "text",
        "use",
        "defs",
        "clippath",
        "rect",
    }
    assert page.elements[0].attributes["aria-label"] == f"A title. {hostile}"


def test_a_drawing_has_no_style_of_its_own_and_names_nothing_outside() -> None:
    text = drawn("a word")
    ElementTree.fromstring(text)
    assert not re.search(r"\sstyle=|<style|font-family|http|@import", text)
    names = set(re.findall(r' id="([^"]+)"', text))
    assert names
    assert {name[1:] for name in re.findall(r'(?:href="|url\()(#[^")]+)', text)} == names


def test_two_drawings_share_no_id() -> None:
    one, other = (set(re.findall(r' id="([^"]+)"', drawn("a word", name))) for name in ("first", "second"))
    assert one
    assert one.isdisjoint(other)


def test_the_same_drawing_has_the_same_bytes() -> None:
    assert drawn("a word") == drawn("a word")


def test_what_is_drawn_stays_where_it_was() -> None:
    """The line goes from corner to corner of its axes, to a tenth of a point."""
    root = ElementTree.fromstring(drawn("a word"))
    view = [float(value) for value in root.attrib["viewBox"].split()]
    [line] = [path for path in root.iter("path") if path.get("stroke-width") == "1.5"]
    x0, y0, x1, y1 = (float(value) for value in re.findall(r"[\d.]+", line.attrib["d"]))
    assert 0 < x0 < x1 <= view[2]
    assert view[3] >= y0 > y1 >= 0
    [clip] = root.iter("rect")
    assert abs(float(clip.attrib["x"]) - x0) <= 0.1
    assert abs(float(clip.attrib["width"]) - (x1 - x0)) <= 0.2

"""Pictures with texts as hostile as strangers can make them, as a tar."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw
from world import write_tar

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {
    "script": "<script>window.owned = 'script'</script> a red square",
    "handler": "<img src=x onerror=\"window.owned = 'handler'\"> a photo",
    "quotes": "\"><svg onload=\"window.owned = 'quotes'\"> ' onmouseover='window.owned=1",
    "link": "<a href=\"javascript:window.owned='link'\">javascript:alert(1)</a>",
    "style": "</style><style>body{display:none}</style> a hidden page",
    "template": "{{ 7 * 7 }} {% raw %} ${7*7} <%= 7 %>",
    "htmx": '<hx-partial hx-target="#notice"><b>taken</b></hx-partial><p hx-get="/x" hx-trigger="load">',
    "oob": '<div id="deed" hx-swap-oob="true">taken</div><div data-hx-on:click="window.owned=1">x</div>',
    "title": "</title></head><body>taken",
    "comment": "<!-- --> <![CDATA[ ]]> &lt;script&gt; &#60;script&#62;",
    "terminal": "\x1b]0;taken\x07\x1b[2J\x1b[31ma red text",
    "rich": "[red]a red text[/red] [link=https://example.org]here[/link]",
    "turned": "a \u202etxet denrut\u202c and \u2067more\u2069",
    "null": "a null \x00 byte",
    "formula": '=HYPERLINK("https://example.org","a cat")',
    "long": "longword" * 1_249,
    "longer": "longword" * 12_500,
}
"""By the key of their sample; the last one is longer than texts that are read."""
KEYS = ("<b onclick='window[`owned`]=1'>key", 'a key\'s "quotes" & <signs>', "%2e%2e%2fkey")
"""Keys that are hostile themselves."""
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")


def write_hostile_tar(path: Path, *, plain: int = 24) -> Path:
    """Write hostile samples, then plain ones, one whose picture cannot be read, and one that is an SVG."""
    members: list[tuple[str, bytes | str]] = []
    texts = {**TEXTS, **{key: f"a text of {key}" for key in KEYS}}
    for number, (key, text) in enumerate(texts.items()):
        metadata = {"url": "javascript:window.owned='url'//<script>", "note": f"<i>{key}</i>"}
        members += _sample(key, number, text, metadata)
    for number in range(plain):
        colour = COLOURS[number % len(COLOURS)]
        kind = "right" if number % 3 else "swap"
        metadata = {"url": f"https://example.org/{number}.jpg", "noise_kind": kind}
        members += _sample(f"plain{number:03d}", number, f"a {colour} square on grey", metadata)
    members += [("broken.jpg", b"\xff\xd8 no picture"), ("broken.txt", "a broken picture")]
    svg = "<svg xmlns='http://www.w3.org/2000/svg'><script>window.owned='svg'</script></svg>"
    members += [("drawing.jpg", svg), ("drawing.txt", "a drawing")]
    return write_tar(path, members)


def _sample(key: str, number: int, text: str, metadata: dict[str, str]) -> list[tuple[str, bytes | str]]:
    picture = Image.new("RGB", (48, 32), "grey")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((4 + number % 20, 6, 24 + number % 20, 26), COLOURS[number % len(COLOURS)])
    data = io.BytesIO()
    picture.save(data, "PNG")
    return [(f"{key}.png", data.getvalue()), (f"{key}.txt", text), (f"{key}.json", json.dumps(metadata))]

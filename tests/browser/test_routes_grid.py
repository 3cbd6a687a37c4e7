from __future__ import annotations

import re
from typing import TYPE_CHECKING

from serving import served
from small_run import make_run

if TYPE_CHECKING:
    from pathlib import Path


def test_a_link_with_an_endless_number_of_texts_a_picture_is_a_short_page(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    with served(run) as page:
        usual = page.ask("/?judge.per_image=2")
        found = page.ask("/?judge.per_image=3000000")
    assert (usual.status, found.status) == (200, 200)
    choices = re.search(r'<select id="per_image".*?</select>', found.text, re.DOTALL)
    assert choices is not None
    values = re.findall(r'<option value="(\d*)"( selected)?', choices.group())
    assert values == [("", ""), *((str(n), "") for n in range(1, 6)), ("3000000", " selected")]
    assert len(found.body) < len(usual.body) + 2000

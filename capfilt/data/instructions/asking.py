"""How an example is asked where answers are measured: always in the same words, so that figures compare.

In training words are drawn; here a data set is asked by one template of its category, and by one that wants a
short answer where its answers are short (as InstructBLIP does: "Question: ... Short answer:").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from capfilt.data.instructions.example import Example
    from capfilt.data.instructions.registry import Category
    from capfilt.data.instructions.templates import Template

_BRIEF = re.compile(r"short|brief", re.IGNORECASE)


def fixed_template(example: Example, category: Category) -> Template:
    """Return the template that examples with these parts are asked by.

    The first of the category that fits and, where its answers are short, that says so; the first that fits
    where none says so. Raises CapfiltError where none fits.
    """
    fitting = [one for one in category.parsed() if one.needed <= set(example.parts)]
    if not fitting:
        raise CapfiltError(
            f"no template of {category.name} fits {example.dataset}, whose examples have "
            f"{', '.join(sorted(example.parts)) or 'no parts'}",
            fix="give the data set another category, or the category a template that names these parts alone",
        )
    brief = [one for one in fitting if _BRIEF.search(one.text)] if category.answers == "short" else []
    return (brief or fitting)[0]

"""Instructions with gaps, which the parts of an example fill.

A part in {braces} is needed; what stands in [brackets] goes when the example lacks a part that it names. So
one set of templates serves questions with and without choices, hints or words read in the picture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

from capfilt.data.instructions.example import Part
from capfilt.draws import uniforms
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capfilt.data.instructions.example import Example

_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_GAP = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Instruction:
    """An example as it is given to a model."""

    example: Example
    text: str
    """The instruction."""
    output: str
    """What the model is to say."""


class Template:
    """One way to put a task into words."""

    def __init__(self, text: str) -> None:
        """Read a template; a bracket that is not closed or an unknown part is a CapfiltError."""
        self.text = text
        pieces = list(_PIECE.finditer(text))
        whole = "".join(piece[0] for piece in pieces)
        left = _GAP.sub("", text)
        unknown = sorted(set(_GAP.findall(text)) - set(get_args(Part)))
        idle = [piece[0] for piece in pieces if piece[1] is not None and not _GAP.search(piece[1])]
        if whole != text or "{" in left or "}" in left or unknown or idle:
            raise CapfiltError(
                f"template {text!r} " + (f"names {unknown[0]}" if unknown else "cannot be read"),
                fix=f"write parts as {{question}}, optional text as [Hint: {{context}} ] around at least one "
                f"part; parts are {', '.join(get_args(Part))}",
            )
        self._pieces = [
            (piece[1] is not None, piece[1] if piece[1] is not None else piece[2]) for piece in pieces
        ]
        self.needed = frozenset(
            cast("Part", name)
            for optional, piece in self._pieces
            if not optional
            for name in _GAP.findall(piece)
        )
        """Parts that an example must have."""

    def filled(self, parts: Mapping[Part, str]) -> str:
        """Return the instruction; what a part holds is copied as it is, braces and brackets included.

        Raises KeyError for a part that is needed and not there.
        """
        return "".join(
            _GAP.sub(lambda gap: parts[cast("Part", gap[1])], piece)
            for optional, piece in self._pieces
            if not optional or all(name in parts for name in _GAP.findall(piece))
        ).strip()


def instruct(example: Example, templates: Sequence[Template], *key: str | int) -> Instruction:
    """Put an example into words: one of the templates and one of its outputs, drawn by `key`.

    The same key gives the same words; that of a training holds its seed and the step.

    Raises CapfiltError where every template needs a part that the example lacks.
    """
    fitting = [template for template in templates if template.needed <= set(example.parts)]
    if not fitting:
        needed = sorted(set().union(*(template.needed for template in templates)) - set(example.parts))
        raise CapfiltError(
            f"no template fits {example.dataset}: its examples have no {', '.join(needed)}",
            fix="give the data set another category, or the category a template with "
            f"{', '.join(sorted(example.parts)) or 'no part'} alone",
        )
    which, what = uniforms(2, "instruction", example.dataset, example.id, *key)
    template = fitting[int(which * len(fitting))]
    return Instruction(
        example, template.filled(example.parts), example.outputs[int(what * len(example.outputs))]
    )

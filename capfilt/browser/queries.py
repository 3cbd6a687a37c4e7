"""What a query of the page asks for, and the address that says the same in the fewest words.

Everything that is looked at stands in the address. A form sends all its fields, most of them empty or as they
are in the policy in force; such ones are left out of the address. To propose what is in force is to propose
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from capfilt.browser.proposal import Proposal
from capfilt.browser.selection import Selection
from capfilt.provenance.policy import AtLeast, PerImage, Policy, Rescue, TopFraction
from capfilt.records import SCORES, Measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.browser.cards import Facets

FORM = "form"
"""Field that says that the others come from the page's form, where an empty rule is no rule."""
ALSO = "also."
"""Before the column of a further filter's score, in the field of its threshold."""
_DIGITS = ".6g"
"""Of a threshold in the form."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked at."""

    selection: Selection
    proposal: Proposal
    """Without rules it is the policy in force."""
    offset: int = 0

    @classmethod
    def read(cls, query: Sequence[tuple[str, str]], facets: Facets, in_force: Policy | None) -> Wanted:
        """Return what a query or a form asks for; CapfiltError for values that are none."""
        offset = next((value for name, value in query if name == "offset"), "")
        proposal = Proposal.read([*query, *_further(query)])
        known = proposal_of(in_force)
        # What ranks follows from the rest where it is not given.
        if replace(proposal, by=proposal.by or known.by, texts="best") == known:
            proposal = Proposal(texts=proposal.texts)
        elif not proposal.is_given and any(name == FORM for name, _ in query):
            proposal = _without_rules(proposal, facets)
        whole = int(offset) if offset.isdecimal() and len(offset) < 12 else 0
        return cls(Selection.read(query), proposal, whole)

    def address(self, *, offset: int = 0, **changes: Any) -> str:
        """Return the page's address of the same, with some fields of the selection changed."""
        query = [*self.selection.at(**changes).query(), *self.proposal.query()]
        if offset:
            query.append(("offset", str(offset)))
        return f"/?{urlencode(query, errors='backslashreplace')}" if query else "/"

    def without_proposal(self) -> Wanted:
        """Return the same pictures, judged by the policy in force."""
        return replace(self, proposal=Proposal())


def proposal_of(policy: Policy | None) -> Proposal:
    """Return the options of `capfilt judge` that give a policy, its thresholds as the numbers they became."""
    values: dict[str, Any] = {}
    for rule in policy.rules if policy is not None else ():
        if isinstance(rule, AtLeast):
            if rule.filter is None:
                values[rule.score] = threshold_text(rule.threshold)
            else:
                one = f"{rule.filter[:8]}:{rule.score}={threshold_text(rule.threshold)}"
                values["also"] = (*values.get("also", ()), one)
            continue
        values["by"] = rule.by
        if isinstance(rule, TopFraction):
            values["fraction"] = rule.fraction
        elif isinstance(rule, PerImage):
            values["per_image"] = rule.n
        elif isinstance(rule, Rescue):
            values["rescue"] = True
    return Proposal(**values)


def threshold_text(value: float) -> str:
    """Return a threshold as the form holds it."""
    return format(value, _DIGITS)


def threshold_of(proposal: Proposal, column: str) -> str:
    """Return what a proposal says of a column: a number or a wish; empty where it says nothing."""
    measure = Measure.of_column(column)
    if measure.filter is None:
        return getattr(proposal, measure.score) or ""
    for one in proposal.also:
        name, _, rest = one.partition(":")
        score, _, wish = rest.partition("=")
        if score == measure.score and name.startswith(measure.filter):
            return wish
    return ""


def _without_rules(proposal: Proposal, facets: Facets) -> Proposal:
    """Return what a form without any rule means: all that is scored, and not what is in force."""
    own = [one for one in facets.columns if Measure.of_column(one.name).filter is None]
    if not own:
        return proposal
    everything: dict[str, Any] = {own[0].name: threshold_text(own[0].low)}
    return replace(proposal, **everything)


def _further(query: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the thresholds of further filters as a proposal names them."""
    found = []
    for name, value in query:
        score, _, digits = name.removeprefix(ALSO).partition("_")
        if name.startswith(ALSO) and value.strip() and score in SCORES:
            found.append(("judge.also", f"{digits}:{score}={value.strip()}"))
    return found

"""What was asked of a policy, as rules: wishes become numbers, names of filters become digests.

A policy on disk holds neither, so that it means the same wherever the run is moved and whatever is calibrated
later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.evaluation.calibration import choose_threshold
from capfilt.models.cards import CARD_FILE, read_card
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.policy import AtLeast, PerImage, Rescue, Rule, TopFraction
from capfilt.provenance.ranking import Ranking
from capfilt.records import BEST_FIRST, SCORES, Measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capfilt.provenance.rundir import RunDir
    from capfilt.settings import Judge

DEFAULT = "0.5"
"""The paper's rule (BLIP, section 3.3): what ITM takes for a match, or any other probability for yes."""


@dataclass(frozen=True)
class Filters:
    """The filters that scored a run, what each measured, and the one whose scores are the policy's own."""

    run: RunDir
    digests: Sequence[str]
    """At least one."""
    chosen: str
    measured: dict[str, frozenset[str]]
    """Scores by digest; nothing of a filter that met no caption."""

    @classmethod
    def of(cls, run: RunDir, digests: Sequence[str], chosen: str | None = None) -> Filters:
        """Return what the run's scores say; `chosen` is a name of the policy's own, by default the first."""
        measured = _measured(run)
        known = cls(run, digests, digests[0], measured)
        return cls(run, digests, known.named(chosen), measured) if chosen else known

    def named(self, name: str) -> str:
        """Return the digest of a filter by its first digits, or by its name in the run's models."""
        matches = [digest for digest in self.digests if digest.startswith(name)]
        if len(matches) != 1 and (self.run.model(name) / CARD_FILE).exists():
            own = read_card(self.run.model(name)).digest
            matches = [digest for digest in self.digests if digest == own]
        if len(matches) != 1:
            raise CapfiltError(
                f"{self.run.path} was not scored by a filter {name}",
                fix="name one of " + ", ".join(digest[:12] for digest in self.digests),
            )
        return matches[0]

    def further(self, name: str) -> str | None:
        """Return the digest of a filter as a measure has it: None for the policy's own."""
        digest = self.named(name)
        return None if digest == self.chosen else digest

    @property
    def best(self) -> Measure:
        """The score that speaks for the chosen filter."""
        known = self.measured.get(self.chosen, frozenset(SCORES))
        return Measure(next(score for score in (*BEST_FIRST, *known) if score in known))

    @property
    def usual_rule(self) -> list[str]:
        """The options of `capfilt judge` to begin with."""
        score = self.best.score
        return [f"--{score}", DEFAULT] if SCORES[score].is_probability else ["--per-image", "1"]

    def check(self, measure: Measure) -> None:
        """Refuse a score that the filter did not measure: it would drop every caption as unscored."""
        digest = measure.filter or self.chosen
        known = self.measured.get(digest)
        if known and measure.score not in known:
            told = ", ".join(score.upper() for score in BEST_FIRST if score in known)
            raise CapfiltError(
                f"filter {digest[:12]} measured no {measure.score.upper()} in this run, only {told}",
                fix=f"judge by {told}, or score the run with a filter that has {measure.score.upper()}: "
                f"capfilt score {self.run.path} --filter MODEL",
            )


def rules_of(
    judge: Judge, filters: Filters, calibration: Callable[[str], dict[str, Any] | None]
) -> tuple[Rule, ...]:
    """Return the rules that were asked for: thresholds, the fraction, the rescue, the number per image.

    `calibration` gives that of a filter by its digest. Where no threshold and no fraction is given, a
    probability that ranks must be at least 0.5, and a cosine must be nothing.
    """
    thresholds = _thresholds(judge, filters, calibration)
    ranking = _ranking(judge, thresholds, filters)
    if not thresholds and judge.fraction is None:
        thresholds = _default(judge, ranking, filters)
    rules: list[Rule] = [*thresholds]
    if judge.fraction is not None:
        rules.append(TopFraction(judge.fraction, str(ranking)))
    if judge.rescue:
        rules.append(Rescue(str(ranking)))
    if judge.per_image is not None:
        rules.append(PerImage(judge.per_image, str(ranking)))
    for measure in dict.fromkeys(measure for rule in rules for measure in rule.measures):
        filters.check(measure)
    return tuple(rules)


def _thresholds(
    judge: Judge, filters: Filters, calibration: Callable[[str], dict[str, Any] | None]
) -> list[AtLeast]:
    """Return the rules of the policy's own filter, then those of further ones in the order given."""
    wishes = [(Measure(s), getattr(judge, s), "") for s in BEST_FIRST if getattr(judge, s) is not None]
    for one in judge.also:
        name, _, rest = one.partition(":")
        score, _, wish = rest.partition("=")
        wishes.append((Measure(score, filters.further(name)), wish, name))
    rules = []
    for measure, wish, name in wishes:
        filters.check(measure)
        known = calibration(measure.filter or filters.chosen)
        found = choose_threshold(measure.score, wish, known, noise_rate=judge.noise_rate, of=name)
        rules.append(AtLeast(measure.score, found.threshold, found.words, measure.filter))
    return rules


def _ranking(judge: Judge, thresholds: Sequence[AtLeast], filters: Filters) -> Ranking:
    if judge.by is not None:
        return Ranking.read(judge.by, filters.further)
    read = {rule.measure for rule in thresholds}
    return Ranking(((1.0, read.pop() if len(read) == 1 else filters.best),))


def _default(judge: Judge, ranking: Ranking, filters: Filters) -> list[AtLeast]:
    """Return the threshold of a policy that was given none, if it needs one."""
    ranks = judge.per_image is not None or judge.rescue
    measure = ranking.only if ranks else filters.best
    if measure is not None and SCORES[measure.score].is_probability:
        return [AtLeast(measure.score, float(DEFAULT), filter=measure.filter)]
    if ranks:
        return []
    raise CapfiltError(
        f"filter {filters.chosen[:12]} measured {filters.best.words} alone, and no cosine fits every filter "
        "as a threshold",
        fix="give a rule: --itc T, or --per-image N, which keeps the best of each picture, or --fraction F",
    )


def _measured(run: RunDir) -> dict[str, frozenset[str]]:
    """Return the scores that each filter measured in a run.

    Where a shard is damaged, which its next start does anew, the filters' cards say what they measure.
    """
    try:
        with open_catalog(run) as catalog:
            rows = catalog.execute(
                "SELECT filter, list(DISTINCT score) FROM scores GROUP BY filter"
            ).fetchall()
    except CapfiltError:
        cards = (read_card(file.parent) for file in run.path.glob(f"models/*/{CARD_FILE}"))
        return {card.digest: frozenset(card.scores) for card in cards if card.scores}
    return {digest: frozenset(scores) for digest, scores in rows}

"""A run of a few hundred pairs whose rows are known as plain Python: every figure can be counted again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import provenance_rows as made

from capfilt.provenance.commit import commit_shard
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, record_run
from capfilt.records import Refusal, Source, Status

if TYPE_CHECKING:
    from pathlib import Path

ITM = 0.4
PROMPT = "a picture of"
WORDS = ["a", "red", "Red", "cat", "on", "the", "mat", "sits", "[red]", "\u202edog", "x\x00y", "東京"]
BLANKS = [" ", "  ", "\t", "\u3000", "\n", "\x85"]
WENT_WRONG = [
    "red red red",
    "on the mat on the mat on the mat",
    "a picture of a cat",
    "",
    " \u3000 ",
    "so it is so it is",
]


@dataclass(frozen=True)
class Counted:
    """A run, and what was committed to it."""

    run: RunDir
    samples: list[dict[str, Any]]
    captions: list[dict[str, Any]]
    scores: dict[str, dict[str, float]]
    """By pair_id, then by score."""
    policy: Policy

    def of(self, source: str) -> list[dict[str, Any]]:
        """Captions of one source, by pair_id."""
        return sorted(
            (row for row in self.captions if row["source"] == source), key=lambda row: row["pair_id"]
        )

    def values(self, source: str, score: str) -> list[float]:
        """Values of one score, sorted."""
        found = (self.scores[row["pair_id"]].get(score) for row in self.of(source))
        return sorted(value for value in found if value is not None)

    def is_kept(self, caption: dict[str, Any]) -> bool:
        """The policy's verdict, by its words: a text with words, and an ITM of at least ITM."""
        itm = self.scores[caption["pair_id"]].get("itm")
        return bool(caption["text"].split()) and itm is not None and itm >= ITM


def counted_run(folder: Path, *, seed: int = 0, captioner: str = "c" * 64, itm: float = ITM) -> Counted:
    """Make the run; another seed gives the same web texts other synthetic ones and other scores."""
    run = RunDir.create(folder)
    record_run(run, {"seed": seed}, command=["capfilt", "bootstrap"])
    chance = random.Random(seed)
    texts_of = {Source.WEB: random.Random("found"), Source.SYNTHETIC: random.Random(f"written {seed}")}
    samples, captions, scores = [], [], {}
    for ordinal in range(3):
        shard = made.shard(ordinal)
        mine = [_sample(shard, f"{n:03d}") for n in range(50)]
        texts = [
            {
                **made.caption(shard, row["key"], source),
                "text": _text(texts_of[source]),
                **_written(source, captioner),
            }
            for row in mine
            if row["status"] == Status.OK
            for source in Source
            if source is Source.SYNTHETIC or row["web_text"] is not None
        ]
        measured = {row["pair_id"]: _scores(chance) for row in texts}
        commit_shard(
            run,
            shard,
            fingerprint="print",
            samples=mine,
            captions=texts,
            scores=[made.score(pair, name, v) for pair, by in measured.items() for name, v in by.items()],
            samples_in=len(mine),
        )
        samples += mine
        captions += texts
        scores |= measured
    policy = Policy((AtLeast("itm", itm),), made.FILTER)
    write_policy(run, policy)
    return Counted(run, samples, captions, scores, policy)


def _sample(shard: Any, key: str) -> dict[str, Any]:
    number = int(key)
    if number % 10 == 9:
        reason = Refusal.UNREADABLE_IMAGE if number % 20 == 9 else Refusal.MISSING_IMAGE
        return made.sample(shard, key, status=Status.REFUSED, reason=reason, web_text=None, width=None)
    if number % 10 == 7:
        return made.sample(shard, key, web_text=None, reason=Refusal.MISSING_TEXT)
    return made.sample(shard, key)


def _written(source: Source, captioner: str) -> dict[str, Any]:
    return {"captioner": captioner, "prompt": PROMPT} if source is Source.SYNTHETIC else {}


def _text(chance: random.Random) -> str:
    if chance.random() < 0.15:
        return chance.choice(WENT_WRONG)
    words = chance.choices(WORDS, k=chance.randint(1, 6))
    return "".join(word + chance.choice(BLANKS) for word in words)


def _scores(chance: random.Random) -> dict[str, float]:
    scores = {"itm": chance.random(), "itc": chance.uniform(-0.3, 0.6)}
    if chance.random() < 0.1:
        del scores["itm"]
    return scores

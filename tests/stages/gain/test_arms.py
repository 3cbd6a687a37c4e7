"""The texts of each arm against a run that is written by hand, and against the pictures of a real one."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import world
from provenance_rows import FILTER, caption, sample, score, shard

from capfilt.data.sources import find_shards, read_bytes, read_shard
from capfilt.data.stream import Stream, Text
from capfilt.errors import CapfiltError
from capfilt.provenance.commit import commit_shard
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, record_run
from capfilt.records import Refusal, Source, Status
from capfilt.settings import Clean, Input
from capfilt.settings import Stream as Weights
from capfilt.stages.gain.arms import ARMS, ArmPool, takes, write_texts

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.stages.gain.arms import Texts

HOSTILE = "a cat\x1b]0;owned\x07 \u202edrowkcab [red]loud[/red] \n=cmd|' /C calc'!A0 ; DROP TABLE pairs; --"
Written = tuple[str, int, str, float]
"""Source, candidate, text and ITM; at least 0.5 is kept."""


def web(text: str, itm: float) -> Written:
    return ("web", 0, text, itm)


def own(text: str, itm: float, candidate: int = 0) -> Written:
    return ("synthetic", candidate, text, itm)


SAMPLES: list[list[tuple[str, list[Written] | None]]] = [
    [
        ("b", [web(HOSTILE, 0.9), own("a cat", 0.8), own("cats", 0.2, 1)]),
        ("a", [web("IMG_0042.JPG", 0.1), own("a dog", 0.5)]),
        ("c", [own("", 0.9), own(" \t", 0.9, 1)]),
        ("gone", None),
    ],
    [("x", None)],
    [("d", [web("a fox", 0.4), own("a fox", 0.3), own("", 0.1, 1)]), ("e", [web("a hen", 0.7)])],
]
"""Keys with their texts, shard by shard, in the order in which they lie there; None for what was refused."""
EXPECTED: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "none": [
        ("b", [("web", HOSTILE)]),
        ("a", [("web", "IMG_0042.JPG")]),
        ("d", [("web", "a fox")]),
        ("e", [("web", "a hen")]),
    ],
    "F": [("b", [("web", HOSTILE)]), ("e", [("web", "a hen")])],
    "C": [
        ("b", [("web", HOSTILE), ("synthetic", "a cat"), ("synthetic", "cats")]),
        ("a", [("web", "IMG_0042.JPG"), ("synthetic", "a dog")]),
        ("d", [("web", "a fox"), ("synthetic", "a fox")]),
        ("e", [("web", "a hen")]),
    ],
    "C+F": [
        ("b", [("web", HOSTILE), ("synthetic", "a cat")]),
        ("a", [("synthetic", "a dog")]),
        ("e", [("web", "a hen")]),
    ],
}
COUNTS = {"none": 4, "F": 2, "C": 8, "C+F": 4}


def made(folder: Path, shards: Any, *, policy: bool = True) -> RunDir:
    """A run of samples as SAMPLES has them."""
    run = RunDir.create(folder)
    record_run(run, {"seed": 0})
    for ordinal, samples in enumerate(shards):
        of = shard(ordinal)
        rows, captions, scores = [], [], []
        for place, (key, texts) in enumerate(samples):
            where = {"image_offset": 512 * (place + 1), "image_size": 100 + place}
            refused = {"status": Status.REFUSED, "reason": Refusal.UNREADABLE_IMAGE}
            rows.append(sample(of, key, **where, **(refused if texts is None else {})))
            for source, candidate, text, itm in texts or ():
                row = caption(of, key, Source(source), candidate, text=text)
                captions.append(row)
                scores.append(score(row["pair_id"], "itm", itm))
        commit_shard(
            run,
            of,
            fingerprint="print",
            samples=rows,
            captions=captions,
            scores=scores,
            samples_in=len(samples),
        )
    if policy:
        write_policy(run, Policy((AtLeast("itm", 0.5),), FILTER))
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    run = made(tmp_path_factory.mktemp("made") / "run", SAMPLES)
    return write_texts(run, run.gain)


def read(pool: ArmPool) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (one.key, [(text.source, text.text) for text in one.texts])
        for number in range(len(pool))
        for one in pool.read(number, Counter())
    ]


@pytest.mark.parametrize("arm", EXPECTED)
def test_an_arm_has_the_texts_that_are_its_own(written: Texts, arm: Any) -> None:
    pool = written.pool(arm)
    assert len(pool) == 3  # one of the shards has no picture that can be used
    assert read(pool) == EXPECTED[arm]
    assert read(pickle.loads(pickle.dumps(pool))) == EXPECTED[arm]
    assert written.counts[arm] == COUNTS[arm] == sum(len(texts) for _, texts in EXPECTED[arm])


def test_pictures_without_a_text_in_the_arm_are_counted(written: Texts) -> None:
    refused: dict[str, Counter[str]] = {arm: Counter() for arm in EXPECTED}
    for arm, counts in refused.items():
        for number in range(3):
            list(written.pool(arm).read(number, counts))  # type: ignore[arg-type]
    # The picture whose captions came out empty has no text anywhere; those of refused samples are not met.
    assert {arm: counts["no_text_in_this_arm"] for arm, counts in refused.items()} == {
        "none": 1,
        "F": 3,
        "C": 1,
        "C+F": 2,
    }


def test_a_reference_says_where_the_picture_lies(written: Texts) -> None:
    [first, second] = written.pool("F").read(0, Counter()), written.pool("F").read(2, Counter())
    [b], [e] = list(first), list(second)
    assert (str(b.path), b.offset, b.size, b.shard) == ("web/00000.tar", 512, 100, "00000")
    assert (str(e.path), e.offset, e.size, e.shard) == ("web/00002.tar", 1024, 101, "00002")
    assert b.texts == (Text("web", HOSTILE),)


def test_raw_texts_are_repeated_until_they_are_as_many_as_those_of_both(written: Texts) -> None:
    pool = written.pool("repeated")
    assert read(pool) == EXPECTED["none"]
    assert written.repetition == 1.0  # C+F has as many texts as there are raw ones
    more = replace(written, counts={**written.counts, "C+F": 10})
    assert more.repetition == 2.5
    stream = Stream([pool], Weights(web=more.repetition), 5, Clean(), ())
    visits = Counter(pair.reference.key for pair in stream.epoch(0))
    assert set(visits.values()) <= {2, 3}
    assert set(visits) == {"b", "a", "d", "e"}
    assert replace(written, counts={**written.counts, "C+F": 1}).repetition == 1.0


def test_an_arm_of_few_pictures_meets_them_more_often(written: Texts) -> None:
    assert written.pictures == {arm: len(pictures) for arm, pictures in EXPECTED.items()}
    assert [written.visits(arm) for arm in ("none", "F", "C", "C+F", "repeated")] == [1, 2, 1, 4 / 3, 1]


def test_visits_of_a_repeated_arm_add_up_to_the_texts_of_both(tmp_path: Path) -> None:
    pairs = [(f"{n:03}", [web(f"text {n}", 0.9), own("a cat", (n % 7) / 8)]) for n in range(200)]
    shards = [pairs[start : start + 50] for start in range(0, 200, 50)]
    texts = write_texts(run := made(tmp_path / "run", shards), run.gain)
    kept = sum((n % 7) / 8 >= 0.5 for n in range(200))
    assert texts.counts == {"none": 200, "F": 200, "C": 400, "C+F": 200 + kept}
    stream = Stream([texts.pool("repeated")], Weights(web=texts.repetition), 0, Clean(), ())
    expected, chance = 200 + kept, kept / 200
    assert abs(stream.survey().pairs - expected) < 4 * (200 * chance * (1 - chance)) ** 0.5


def test_the_same_run_gives_the_same_file_and_another_policy_another(tmp_path: Path) -> None:
    run = made(tmp_path / "run", SAMPLES)
    first = write_texts(run, run.gain)
    data = first.file.read_bytes()
    assert write_texts(run, run.gain) == first
    assert first.file.read_bytes() == data
    write_policy(run, Policy((AtLeast("itm", 0.85),), FILTER))
    second = write_texts(run, run.gain)
    assert second.counts == {"none": 4, "F": 1, "C": 8, "C+F": 1}
    for arm in ("F", "C+F"):
        assert second.pool(arm).facts != first.pool(arm).facts


def test_arms_are_told_apart_by_their_facts(written: Texts) -> None:
    facts = [written.pool(arm).facts for arm in ARMS]
    assert facts[ARMS.index("repeated")] == facts[ARMS.index("none")]
    assert len({str(one) for one in facts}) == 4


def test_a_text_that_was_not_scored_is_in_no_filtered_arm() -> None:
    row = {"source": "web", "text": "a cat", "keep": None}
    assert [arm for arm in ARMS if takes(arm, row)] == ["none", "C", "repeated"]


def test_a_run_without_a_policy_is_refused_with_what_to_type(tmp_path: Path) -> None:
    run = made(tmp_path / "run", SAMPLES, policy=False)
    with pytest.raises(CapfiltError, match="has no policy") as caught:
        write_texts(run, run.gain)
    assert caught.value.fix.startswith(f"capfilt judge {run.path}")
    assert not run.gain.exists()


def test_a_run_that_wrote_no_captions_is_refused(tmp_path: Path) -> None:
    only_web = [
        [
            (key, None if texts is None else [one for one in texts if one[0] == "web"])
            for key, texts in samples
        ]
        for samples in SAMPLES
    ]
    run = made(tmp_path / "run", only_web)
    with pytest.raises(CapfiltError, match="holds no synthetic captions"):
        write_texts(run, run.gain)


def test_pictures_are_read_out_of_the_original_shards(bundles: dict[str, Path], tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", world.REAL / "noisy.tar", bundles, candidates=2, judge={"itm": "0"}).run
    texts = write_texts(run, run.gain)
    [source] = find_shards(world.REAL / "noisy.tar")
    images = {one.key: one.image for one in read_shard(source, Input())}
    references = list(texts.pool("C").read(0, Counter()))
    assert len(references) > 20
    for one in references:
        assert read_bytes(one.path, one.offset, one.size) == images[one.key]
    by_key = dict(world.sql(run, "SELECT key, count(*) FROM pairs WHERE trim(text) <> '' GROUP BY key"))
    assert {one.key: len(one.texts) for one in references} == by_key
    assert max(by_key.values()) == 3

"""What is asked of a policy becomes rules: of one filter, and of several side by side."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import world

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.provenance.commit import commit_scores, manifests
from capfilt.provenance.policy import AtLeast, PerImage, Rescue, TopFraction, newest_policy
from capfilt.records import Measure, Shard
from capfilt.settings import Export, Judge
from capfilt.stages.export import export_run
from capfilt.stages.judge import advice, filters_of, judge_run, policy_of, weak_scores_of
from capfilt.stages.rescore import score_run
from capfilt.stages.wishes import Filters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

Row = dict[str, Any]


@pytest.fixture(scope="module")
def scored_twice(
    finished: RunDir, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    """The finished run with the scores of a second filter; not to be changed: `both` is."""
    run = world.copied(finished, tmp_path_factory.mktemp("twice") / "run")
    score_run(run, bundles["second"], world.settings(bundles), world.InProcess(), world.QUIET)
    return run


@pytest.fixture
def both(scored_twice: RunDir, tmp_path: Path) -> RunDir:
    return world.copied(scored_twice, tmp_path / "run")


def stored(run: RunDir) -> dict[str, Row]:
    """By pair: its place, its text's source, and each score by (filter, name), as the rows have them."""
    rows = world.sql(run, "SELECT pair_id, shard, key, source FROM captions")
    pairs: dict[str, Row] = {
        pair: {"image": (shard, key), "source": source} for pair, shard, key, source in rows
    }
    for pair, digest, score, value in world.sql(run, "SELECT pair_id, filter, score, value FROM scores"):
        pairs[pair][digest, score] = value
    return pairs


def kept(run: RunDir) -> set[str]:
    return {pair for (pair,) in world.sql(run, "SELECT pair_id FROM pairs WHERE keep")}


def median(pairs: dict[str, Row], *column: str) -> float:
    return sorted(row[column] for row in pairs.values())[len(pairs) // 2]


def measured(run: RunDir, score: str, value_of: Callable[[str], float]) -> str:
    """Add scores of a made-up filter, and return its digest."""
    digest = hashlib.sha256(score.encode()).hexdigest()
    for manifest in manifests(run):
        if manifest["kind"] != "shard":
            continue
        names = ("shard", "path", "ordinal", "bytes", "digest")
        shard = Shard(*(manifest[name] for name in names))
        pairs = [
            pair for (pair,) in world.sql(run, "SELECT pair_id FROM captions WHERE shard = ?", shard.name)
        ]
        rows = [{"pair_id": p, "filter": digest, "score": score, "value": value_of(p)} for p in pairs]
        commit_scores(run, shard, filter_digest=digest, fingerprint="made up", scores=rows)
    return digest


# -- several filters side by side


def test_a_pair_is_kept_where_both_filters_say_so(both: RunDir) -> None:
    first, second = filters_of(both)
    pairs = stored(both)
    itm, itc = median(pairs, first, "itm"), median(pairs, second, "itc")

    _, policy = judge_run(both, Judge(itm=str(itm), also=(f"{second[:6]}:itc={itc!r}",)))

    assert policy.rules == (AtLeast("itm", itm), AtLeast("itc", itc, filter=second))
    assert policy.filter == first
    assert f"ITC by filter {second[:8]} of at least" in policy.words
    expected = {p for p, row in pairs.items() if row[first, "itm"] >= itm and row[second, "itc"] >= itc}
    assert kept(both) == expected
    # Neither alone decides.
    assert (
        0
        < len(expected)
        < min(
            sum(row[first, "itm"] >= itm for row in pairs.values()),
            sum(row[second, "itc"] >= itc for row in pairs.values()),
        )
    )


def test_all_scores_of_all_filters_are_columns_of_pairs(both: RunDir) -> None:
    first, second = filters_of(both)

    rows = world.sql(both, f"SELECT pair_id, itc, itm, vqa, itc_{second[:8]}, itm_{second[:8]} FROM pairs")

    pairs = stored(both)
    assert len(rows) == len(pairs) == 48
    for pair, *values in rows:
        row = pairs[pair]
        ours = [row[first, "itc"], row[first, "itm"], None]
        assert values == [*ours, row[second, "itc"], row[second, "itm"]]


def test_a_further_filter_is_named_by_its_folder_in_the_run_too(both: RunDir) -> None:
    first, second = filters_of(both)
    [folder] = [path.name for path in (both.path / "models").iterdir() if path.name.startswith("filter-")]

    by_folder = policy_of(both, Judge(also=(f"{folder}:itc=0.25", "filter:itm=0.5")))

    # The policy's own filter is no further one, by whatever name it is called.
    assert by_folder.rules == (AtLeast("itc", 0.25, filter=second), AtLeast("itm", 0.5))
    assert by_folder.filter == first
    swapped = policy_of(both, Judge(also=(f"{first[:8]}:itm=0.5",)), filter_digest=folder)
    assert (swapped.filter, swapped.rules) == (second, (AtLeast("itm", 0.5, filter=first),))


def test_a_wish_of_a_further_filter_is_met_by_its_own_calibration(
    both: RunDir, bundles: dict[str, Path]
) -> None:
    _, second = filters_of(both)
    [folder] = [path for path in (both.path / "models").iterdir() if path.name.startswith("filter-")]
    wish = Judge(itm="0", also=(f"{second[:8]}:itm=auto:recall=0.75",))
    with pytest.raises(
        CapfiltError, match=f"--also {second[:8]}:itm=auto:recall=0.75 needs a calibrated filter"
    ):
        policy_of(both, wish)

    world.calibrated(bundles["second"], folder, itm=0.8, itc=0.4)

    # Of right pairs scored 0, 0.05, ... 0.95, three quarters reach 0.25.
    assert policy_of(both, wish).rules[1] == AtLeast(
        "itm", 0.25, "auto:recall=0.75 of held-out clean pairs", second
    )


def test_a_weak_score_of_a_further_filter_is_told_and_withholds_the_export(
    both: RunDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    _, second = filters_of(both)
    [folder] = [path for path in (both.path / "models").iterdir() if path.name.startswith("filter-")]
    world.calibrated(bundles["filter"], both.model("filter"), itm=0.8, itc=0.8)
    world.calibrated(bundles["second"], folder, itm=0.8, itc=0.4)

    _, policy = judge_run(both, Judge(itm="0.1", also=(f"{second[:8]}:itc=-1",)))

    assert weak_scores_of(both, policy) == {Measure("itc", second)}
    assert any(line.startswith(f"filter {second[:8]}: weak filter: ITC") for line in advice(both))
    with pytest.raises(CapfiltError, match=f"reads ITC by filter {second[:8]}, no better than chance"):
        export_run(both, tmp_path / "to", Export())
    # Its ITM is strong, and so is the first filter's ITC.
    fine = policy_of(both, Judge(itc="-1", also=(f"{second[:8]}:itm=0",)))
    assert weak_scores_of(both, fine) == set()


def test_texts_are_ranked_by_a_weighted_sum_of_two_filters(both: RunDir) -> None:
    first, second = filters_of(both)

    _, policy = judge_run(both, Judge(itm="0", per_image=1, by=f"0.7*itm + 0.3*{second[:8]}:itc"))

    assert policy.rules[-1] == PerImage(1, f"0.7*itm + 0.3*{second}:itc")
    best: dict[Any, tuple[float, str]] = {}
    for pair, row in stored(both).items():
        place = (-(0.7 * row[first, "itm"] + 0.3 * row[second, "itc"]), pair)
        best[row["image"]] = min(best.get(row["image"], place), place)
    assert kept(both) == {pair for _, pair in best.values()}
    judge_run(both, Judge(itm="0", per_image=1))
    assert kept(both) != {pair for _, pair in best.values()}


def test_an_export_shows_what_the_policy_read_and_orders_texts_by_its_ranking(
    both: RunDir, tmp_path: Path
) -> None:
    _, second = filters_of(both)
    judge_run(both, Judge(per_image=2, by=f"{second[:8]}:itc"))

    export_run(both, tmp_path / "to", Export(texts="all"))

    column = f"itc_{second[:8]}"
    pairs = stored(both)
    seen = 0
    for tar in (tmp_path / "to").glob("*.tar"):
        for name, data in world.members(tar).items():
            if name.endswith(".json"):
                captions = json.loads(data)["capfilt"]["captions"]
                values = [caption[column] for caption in captions]
                assert values == sorted(values, reverse=True)
                assert values == [pairs[caption["pair_id"]][second, "itc"] for caption in captions]
                seen += len(captions)
    assert seen == len(kept(both)) > 24
    assert column in pq.read_schema(tmp_path / "to" / "verdicts.parquet").names
    assert f"best by ITC by filter {second[:8]}" in (tmp_path / "to" / "README.md").read_text()


def test_scores_of_a_further_filter_that_come_later_make_another_export(both: RunDir, tmp_path: Path) -> None:
    made = measured(both, "vqa", lambda pair: int(pair[:4], 16) / 0xFFFF)
    judge_run(both, Judge(itm="0.1", also=(f"{made[:8]}:vqa=0",)))
    before = export_run(both, tmp_path / "to", Export())
    assert not export_run(both, tmp_path / "to", Export()).is_new

    for file in both.manifests.glob(f"*.{made}.json"):
        file.write_text(file.read_text().replace("made up", "made up again"))

    assert export_run(both, tmp_path / "to", Export()).is_new
    assert before.samples > 0


# -- what a filter did not measure, and what needs no threshold


def test_a_filter_that_answers_questions_judges_by_its_yes(both: RunDir) -> None:
    digest = measured(both, "vqa", lambda pair: int(pair[:4], 16) / 0xFFFF)

    _, policy = judge_run(both, Judge(), filter_digest=digest)

    assert policy.rules == (AtLeast("vqa", 0.5),)
    assert policy.words == "VQA of at least 0.5"
    assert kept(both) == {pair for pair in stored(both) if int(pair[:4], 16) / 0xFFFF >= 0.5}
    assert Filters.of(both, filters_of(both), digest).usual_rule == ["--vqa", "0.5"]
    with pytest.raises(CapfiltError, match=f"filter {digest[:12]} measured no ITM in this run, only VQA"):
        policy_of(both, Judge(itm="0.5"), filter_digest=digest)
    with pytest.raises(CapfiltError, match="measured no VQA in this run, only ITM, ITC"):
        policy_of(both, Judge(per_image=1, by="vqa"))


def test_the_best_by_a_cosine_need_no_threshold_and_a_probability_keeps_its_own(both: RunDir) -> None:
    digest = measured(both, "itc", lambda pair: int(pair[:4], 16) / 0xFFFF)

    assert policy_of(both, Judge(per_image=2, by="itc")).rules == (PerImage(2, "itc"),)
    assert policy_of(both, Judge(rescue=True, by="itc")).rules == (Rescue("itc"),)
    assert policy_of(both, Judge(per_image=2, by="itm")).rules == (AtLeast("itm", 0.5), PerImage(2, "itm"))
    alone = {"filter_digest": digest}
    assert policy_of(both, Judge(per_image=2), **alone).rules == (PerImage(2, "itc"),)
    assert policy_of(both, Judge(fraction=0.3), **alone).rules == (TopFraction(0.3, "itc"),)
    with pytest.raises(CapfiltError, match="measured ITC alone, and no cosine fits every filter") as caught:
        policy_of(both, Judge(), **alone)
    assert "--per-image" in caught.value.fix
    assert Filters.of(both, filters_of(both), digest).usual_rule == ["--per-image", "1"]


@pytest.mark.parametrize(
    ("wishes", "what"),
    [
        ({"also": ("itc=0.25",)}, "'itc=0.25' is not of the form FILTER:"),
        ({"also": ("abc:cider=1",)}, "'abc:cider=1' is not of the form FILTER:itc|itm|vqa=THRESHOLD"),
        ({"by": "itm+beauty"}, "'beauty' is none of the scores"),
    ],
)
def test_what_is_no_score_is_refused_before_a_run(wishes: Row, what: str) -> None:
    with pytest.raises(CapfiltError) as caught:
        world.settings({"captioner": world.REAL, "filter": world.REAL}, judge=wishes)
    assert what in caught.value.what


@pytest.mark.parametrize("wishes", [{"also": ("ffff:itc=0.25",)}, {"by": "ffff:itc", "per_image": 1}])
def test_a_further_filter_that_did_not_score_the_run_is_refused(both: RunDir, wishes: Row) -> None:
    with pytest.raises(CapfiltError, match="was not scored by a filter ffff") as caught:
        policy_of(both, Judge(**wishes))
    assert all(digest[:12] in caught.value.fix for digest in filters_of(both))


def test_a_policy_that_names_no_further_filter_has_the_record_it_always_had(both: RunDir) -> None:
    number, policy = judge_run(both, Judge(itm="0.5", per_image=1))
    file = json.loads((both.policies / f"{number:04d}.json").read_text())
    assert file["rules"] == [
        {"kind": "at_least", "score": "itm", "threshold": 0.5, "chosen": ""},
        {"kind": "per_image", "n": 1, "by": "itm"},
    ]
    assert file["digest"] == digest_of({"rules": file["rules"], "filter": policy.filter})
    assert newest_policy(both) == (number, policy)

"""`capfilt evaluate` as it is typed, by processes of this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Bundles of random weights and small test sets are made by what the tests of the stages share.
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
sys.path.insert(0, str(Path(__file__).parents[1] / "stages" / "evaluate"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import drawn
import pyarrow.parquet
import world
from qformer_folders import prompted_folder

if TYPE_CHECKING:
    from typed_commands import Capfilt

QUICK = ("--device", "cpu", "--precision", "fp32", "--batch-size", 8, "--quiet")
HOSTILE = "a dog \x1b]0;owned\x07 [bold]and\u202e a cat"


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.bundle(tmp_path_factory.mktemp("joint") / "joint", "joint", ("itc", "itm", "lm"), seed=3)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.tar(tmp_path_factory.mktemp("data") / "set.tar")


@pytest.fixture(scope="module")
def noisy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.noisy_tar(tmp_path_factory.mktemp("data") / "noisy.tar")


def test_retrieval_is_told_written_and_given_as_json(capfilt: Capfilt, joint: Path, test_set: Path) -> None:
    words = ("evaluate", "retrieval", joint, test_set, "--top-k", 5, *QUICK)
    told = capfilt(*words, "--out", "found")
    value = json.loads(capfilt(*words, "--json").stdout)

    assert told.exit_code == 0, told.stderr
    text = " ".join(told.stdout.split())
    for said in (
        "20 pictures, 23 texts, on cpu in fp32",
        "1 unreadable_image",
        "image to text",
        "text to image",
        "ITC, then ITM",
        "chance",
        "ITM orders the 5 best candidates of ITC by the probability of a match",
    ):
        assert said in text
    written = json.loads(Path("found/results.json").read_text())
    assert written == value
    assert (value["pictures"], value["texts"], value["encoder_passes"]) == (20, 23, 20)
    figure = next(one for one in value["figures"] if (one["row"], one["measure"]) == ("ITC", "R@10"))
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in text
    items = pyarrow.parquet.read_table("found/items.parquet").to_pylist()
    ranks = [row["rank_itc"] for row in items if row["direction"] == "image to text"]
    assert sum(rank <= 10 for rank in ranks) / len(ranks) == pytest.approx(figure["value"])
    assert Path("found/retrieval.png").read_bytes().startswith(b"\x89PNG")


def test_captions_are_told_with_what_they_cannot_be_compared_with(
    capfilt: Capfilt, joint: Path, test_set: Path
) -> None:
    words = ("evaluate", "caption", joint, test_set, "--limit", 9, "--set", "decoding.max_tokens=8", *QUICK)
    told = capfilt(*words, "--out", "found")
    assert told.exit_code == 0, told.stderr
    text = " ".join(told.stdout.split())
    for said in (
        "9 pictures",
        "the first ones",
        "CIDEr-D",
        "BLEU-4",
        "commonest caption of the data",
        "different captions",
        "Penn Treebank",
        "written to found",
    ):
        assert said in text
    value = json.loads(Path("found/results.json").read_text())
    assert (value["decoding"]["method"], value["decoding"]["max_tokens"]) == ("greedy", 8)
    rows = pyarrow.parquet.read_table("found/items.parquet").to_pylist()
    assert [row["key"] for row in rows] == [f"k{n:02}" for n in range(9)]
    assert rows[0]["references"] == [drawn.text(0)]


def test_a_filter_is_measured_by_kind_of_noise(capfilt: Capfilt, joint: Path, noisy_set: Path) -> None:
    given = ("--kind-field", "noise_kind", "--fraction", 0.5, "--fraction", 0.1, "--out", "found")
    told = capfilt("evaluate", "filter", joint, noisy_set, *given, *QUICK)
    assert told.exit_code == 0, told.stderr
    text = " ".join(told.stdout.split())
    for said in ("right pairs and junk", "right pairs and swap", "all wrong ones", "text alone", "AUROC"):
        assert said in text
    value = json.loads(Path("found/results.json").read_text())
    assert value["kinds"] == {"right": 15, "junk": 7, "swap": 8}
    assert {one["measure"] for one in value["figures"]} >= {"best 50%: recall", "best 10%: precision"}
    assert sum(each["pairs"] for each in value["reliability"]) == 30
    assert [one["kind"] for one in value["curves"] if one["row"] == "ITM"] == [
        "junk",
        "swap",
        "all wrong ones",
    ]
    assert {path.name for path in Path("found").iterdir()} == {
        "results.json",
        "items.parquet",
        "roc.png",
        "roc_by_kind.png",
        "precision_by_kind.png",
        "reliability.png",
    }


def test_a_hostile_text_moves_no_terminal(capfilt: Capfilt, joint: Path, tmp_path: Path) -> None:
    members = [part for n in range(4) for part in drawn.sample(f"k{n}", n, drawn.text(n), kind="right")]
    members += drawn.sample("bad", 5, HOSTILE, kind="\x1b[2Jclear [bold]")
    data = world.write_tar(tmp_path / "\x1b[2Jset.tar", members)
    told = capfilt("evaluate", "filter", joint, data, "--kind-field", "kind", *QUICK, "--out", "found")
    assert told.exit_code == 0, told.stderr
    assert "\x1b" not in told.stdout
    assert "\\x1b[2Jclear [bold]" in " ".join(told.stdout.split())
    assert HOSTILE in pyarrow.parquet.read_table("found/items.parquet")["text"].to_pylist()


def test_what_cannot_be_evaluated_is_the_users_error(
    capfilt: Capfilt, joint: Path, test_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for words, what in (
        (("retrieval", joint / "captioner", test_set), "cannot score pairs"),
        (("caption", joint / "filter", test_set), "cannot write captions"),
        (("retrieval", "nowhere", test_set), "there is no"),
        (("retrieval", joint, "nowhere"), "nowhere"),
        (("filter", joint, test_set, "--kind-field", "kind"), "no sample says of its text"),
        (("filter", joint, test_set, "--fraction", 1.5), "no share of the pairs"),
        (("retrieval", joint, test_set, "--clip", "nowhere"), "there is no nowhere"),
        (("retrieval", joint, test_set, "--out", "mine"), "it holds other things"),
    ):
        ended = capfilt("evaluate", *words, *QUICK)
        assert ended.exit_code == 2, words
        assert ended.stdout == ""
        assert what in ended.stderr
        assert "  fix: " in ended.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_evaluation_replaces_an_earlier_one(capfilt: Capfilt, joint: Path, test_set: Path) -> None:
    for limit in (4, 6):
        words = ("evaluate", "caption", joint, test_set, "--limit", limit, "--out", "found", *QUICK)
        assert capfilt(*words).exit_code == 0
    assert json.loads(Path("found/results.json").read_text())["pictures"] == 6


def test_answers_are_told_held_out_and_held_in_apart(capfilt: Capfilt, tmp_path: Path) -> None:
    model = prompted_folder("t5", tmp_path / "instructed", "instructblip")
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(drawn.png(number))
    questions = {
        str(number): {"question": f"what is {word}", "imageId": str(number % 4), "answer": "\x1b[2Jred"}
        for number, word in enumerate(("this", "it", "that", "red", "blue"))
    }
    (tmp_path / "gqa.json").write_text(json.dumps(questions))
    captions = [{"image": f"{number}.jpg", "caption": f"a red {number} cat"} for number in range(4)]
    (tmp_path / "pairs.json").write_text(json.dumps(captions))
    (tmp_path / "mine.toml").write_text(
        '[[dataset]]\nname = "gqa"\nannotations = ["gqa.json"]\nimages = "images"\n'
        '[[dataset]]\nname = "web_capfilt"\nannotations = ["pairs.json"]\nimages = "images"\n'
        '[[dataset]]\nname = "msvd_qa"\nannotations = ["gqa.json"]\nimages = "images"\n'
    )
    words = ("evaluate", "answers", model, "--registry", "mine.toml", *QUICK)

    told = capfilt(*words, "--out", "found")
    assert told.exit_code == 0, told.stderr
    text = " ".join(told.stdout.split())
    for said in (
        "8 pictures, 9 examples, on cpu in fp32",
        "held out, zero-shot",
        "gqa: exact answers",
        "held in",
        "web_capfilt: CIDEr-D",
        "without a picture",
        "msvd_qa is left out: needs reader",
        "written to found",
    ):
        assert said in text
    assert text.index("held out, zero-shot") < text.index("held in")
    assert "\x1b" not in told.stdout
    value = json.loads(Path("found/results.json").read_text())
    assert value == json.loads(capfilt(*words, "--json").stdout)
    figures = {(one["table"], one["row"], one["measure"]): one["value"] for one in value["figures"]}
    assert figures["held out, zero-shot", "gqa: exact answers", "without a picture"] == 1.0
    rows = pyarrow.parquet.read_table("found/items.parquet").to_pylist()
    assert [row["instruction"] for row in rows[:2]] == [
        "what is this Answer briefly.",
        "what is it Answer briefly.",
    ]
    assert {path.name for path in Path("found").iterdir()} == {
        "results.json",
        "items.parquet",
        "answers.png",
        "captions.png",
    }

    some = capfilt(*words, "--datasets", "web_capfilt", "--method", "beam", "--limit", 2, "--json")
    value = json.loads(some.stdout)
    assert (list(value["datasets"]), value["decoding"]["method"], value["texts"]) == (
        ["web_capfilt"],
        "beam",
        2,
    )
    refused = capfilt(*words, "--datasets", "nowhere")
    assert refused.exit_code == 2
    assert "there is no data set nowhere" in refused.stderr

"""A user's own file: run from its copy, looked at, and its errors told by file and line."""

from __future__ import annotations

import hashlib
import pickle
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from small_models import pictures

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.models import foreign_bundle
from capfilt.models.backends import python
from capfilt.models.cards import read_card
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.cards import Kind

CAPTIONER = """
    from dataclasses import dataclass

    @dataclass
    class Mine:
        device: str
        precision: str
        loud: bool = False

        def caption(self, batch, decoding, *, seed, candidates):
            word = "LOUD" if self.loud else "quiet"
            return [[f"{word} {self.device} {seed} {n}" for n in range(candidates)] for _ in batch.pictures]

    captioner = Mine
"""
FILTER = """
    from capfilt.records import Scores

    class Mine:
        def score(self, batch, texts):
            return [[Scores(itc=len(text) / 100) for text in mine] for mine in texts]

    def filter(device, precision):
        return Mine()
"""


def taken(folder: Path, code: str, role: Kind, **options: object) -> Path:
    """A bundle of a file with this code."""
    file = folder / "mine.py"
    file.write_text(dedent(code))
    card = foreign_bundle.describe(file, role, options)
    foreign_bundle.take(file, card, folder / role)
    file.unlink()  # what is run is the copy
    return folder / role


def captions(bundle: Path) -> list[list[str]]:
    made = python.captioner(bundle, read_card(bundle), "cpu", "bf16")
    return made.caption(pictures(2), SettledDecoding(), seed=7, candidates=2)


def scores(bundle: Path, texts: list[list[str]]) -> list[list[float | None]]:
    found = python.filter(bundle, read_card(bundle), "cpu", "fp32").score(pictures(len(texts)), texts)
    return [[one.itc for one in mine] for mine in found]


def test_a_file_writes_captions_with_device_precision_and_options(tmp_path: Path) -> None:
    bundle = taken(tmp_path, CAPTIONER, "captioner", loud=True)
    assert captions(bundle) == [["LOUD cpu 7 0", "LOUD cpu 7 1"]] * 2
    assert sorted(one.name for one in bundle.iterdir()) == ["capfilt.json", "mine.py"]  # nothing compiled


def test_a_file_scores_pairs(tmp_path: Path) -> None:
    bundle = taken(tmp_path, FILTER, "filter")
    assert scores(bundle, [["a", "abc"], []]) == [[0.01, 0.03], []]


def test_the_digest_is_that_of_the_file_and_of_the_version_it_gives(tmp_path: Path) -> None:
    card = read_card(taken(tmp_path, FILTER, "filter"))
    assert card.weights == hashlib.sha256(dedent(FILTER).encode()).hexdigest()
    assert python.filter(tmp_path / "filter", card, "cpu", "fp32").digest == card.digest
    digests = {card.weights}
    for version in ("1", "'2026-01'", "2"):
        file = tmp_path / "mine.py"
        file.write_text(f"VERSION = {version}\n" + dedent(FILTER))
        digests.add(foreign_bundle.describe(file, "filter").weights)
    assert len(digests) == 4


def test_what_a_file_says_of_itself_is_read_without_running_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit\nSCORES = 'itm', 'itc'\ntry:\n  from mine import filter\nfinally: pass")
    assert foreign_bundle.describe(file, "filter").objectives == ("itc", "itm")
    for code, what in (
        ("SCORES = ('itm', 'beauty')\ndef filter(device, precision): ...", "SCORES is"),
        ("def filter(device, precision): ...\nVERSION = f'{1}'", "line 2: VERSION is computed"),
        ("def captioner(device, precision): ...", "defines no function filter"),
        ("def filter(device, precision) ...", "line 1 is not Python"),
    ):
        file.write_text(code)
        with pytest.raises(CapfiltError, match=what):
            foreign_bundle.describe(file, "filter")
    with pytest.raises(CapfiltError, match="cannot be read"):
        python.describe(tmp_path / "nowhere.py", "filter", {})


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("1 / 0\n\ndef captioner(device, precision): ...", r"mine\.py, line 1: ZeroDivisionError"),
        ("import nobody_has_this\ncaptioner = 1", r"line 1: ModuleNotFoundError: No module named 'nobody"),
        ("def captioner(device, precision):\n    return {}['a']", r"line 2: KeyError: 'a'"),
        ("def captioner(device): ...", r"mine\.py: TypeError: captioner\(\) takes 1 positional"),
        ("def captioner(device, precision): ...", r"mine\.py: AttributeError: 'NoneType'"),
        (
            "class C:\n  def caption(self, batch, decoding, *, seed, candidates):\n"
            "    import json\n    json.loads('{')\n\ndef captioner(*a): return C()",
            r"line 4: JSONDecodeError",
        ),
    ],
)
def test_an_error_is_told_by_file_and_line(tmp_path: Path, code: str, what: str) -> None:
    bundle = taken(tmp_path, code, "captioner")
    with pytest.raises(CapfiltError, match=what) as told:
        captions(bundle)
    assert "own_filter.py" in told.value.fix
    assert pickle.loads(pickle.dumps(told.value)).what == told.value.what  # it crosses processes


def test_an_error_that_the_file_means_for_the_user_goes_through(tmp_path: Path) -> None:
    code = """
        from capfilt.errors import RunFailedError

        def filter(device, precision):
            raise RunFailedError("the disk of my model is full", fix="make room")
    """
    with pytest.raises(RunFailedError, match="my model is full"):
        scores(taken(tmp_path, code, "filter"), [["a"]])


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("[['a'], ['b', 'c']]", "2 captions for each of 2 pictures"),
        ("[['a', 'b']]", "2 captions for each of 2 pictures"),
        ("'ab'", "2 captions for each of 2 pictures"),
        ("[['a', None], ['b', 'c']]", "captions that are str"),
    ],
)
def test_captions_that_were_not_asked_for_are_refused(tmp_path: Path, answer: str, what: str) -> None:
    code = f"class C:\n  def caption(self, *a, **k): return {answer}\n\ndef captioner(*a): return C()"
    with pytest.raises(CapfiltError, match=f"did not give {what}"):
        captions(taken(tmp_path, code, "captioner"))


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("[[Scores(itc=0.1)]]", "Scores for each text"),
        ("[[0.1, 0.2], []]", "Scores of capfilt.records"),
        ("[[Scores()] * 2, []]", "a cosine, a number from -1 to 1, as itc"),
        ("[[Scores(itc=float('nan'))] * 2, []]", "a cosine, a number from -1 to 1, as itc"),
        ("[[Scores(itc=-1.2)] * 2, []]", "a cosine, a number from -1 to 1, as itc"),
        ("[[Scores(itc=0.5), Scores(itc=7)], []]", "a cosine, a number from -1 to 1, as itc"),
        ("[[Scores(itc=0.1, itm=0.1)] * 2, []]", "scores without itm, which is not among its SCORES"),
    ],
)
def test_scores_that_were_not_asked_for_are_refused(tmp_path: Path, answer: str, what: str) -> None:
    code = (
        "from capfilt.records import Scores\n\nclass F:\n"
        f"  def score(self, batch, texts): return {answer}\n\ndef filter(*a): return F()"
    )
    with pytest.raises(CapfiltError, match=f"did not give {what}"):
        scores(taken(tmp_path, code, "filter"), [["a", "b"], []])


@pytest.mark.parametrize(("value", "is_one"), [(0, True), (1, True), (1.2, False), (-0.5, False)])
def test_a_probability_is_one(tmp_path: Path, value: float, is_one: bool) -> None:
    code = f"""
        from capfilt.records import Scores

        SCORES = "itm"

        class Mine:
            def score(self, batch, texts):
                return [[Scores(itm={value})]]

        def filter(device, precision):
            return Mine()
    """
    bundle = taken(tmp_path, code, "filter")
    if is_one:
        assert scores(bundle, [["a"]]) == [[None]]
    else:
        with pytest.raises(CapfiltError, match="a probability, a number from 0 to 1, as itm"):
            scores(bundle, [["a"]])


def test_a_copy_that_was_changed_is_not_run(tmp_path: Path) -> None:
    bundle = taken(tmp_path, FILTER, "filter")
    (bundle / "mine.py").write_text(dedent(FILTER) + "\n")
    with pytest.raises(CapfiltError, match="is not the file"):
        scores(bundle, [["a"]])

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from made_run import FILTER, made_run, started_run

from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.reports.show_comparison import show_comparison
from capfilt.reports.summary import summarise
from capfilt.reports.text import terminal

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir


def shown(against: dict[str, Any], width: int = 100) -> str:
    file = io.StringIO()
    show_comparison(against, terminal(file, width=width))
    return file.getvalue()


def strict(folder: Path) -> RunDir:
    run = made_run(folder)
    write_policy(run, Policy((AtLeast("itm", 0.75),), FILTER))
    return run


def test_a_change_of_policy_reads_like_this(tmp_path: Path) -> None:
    against = summarise(made_run(tmp_path / "run"), against=strict(tmp_path / "other"))["against"]
    # By hand: of the five texts, the dog's synthetic one scores 0.7.
    assert shown({**against, "other": "runs/other"}).strip().splitlines() == [
        "Against runs/other",
        "       policy in force",
        "here   ITM of at least 0.5",
        "there  ITM of at least 0.75",
        "",
        "1 of 5 texts judged by both, 20.0%, has another verdict",
        "",
        "source     text  both keep  only here  only there  neither",
        "web        same          1          0           0        1",
        "synthetic  same          1          1           0        1",
        "",
        "source     here  there            texts",
        "synthetic  kept  below threshold      1",
        "",
        "texts that are the same have the same scores",
        "",
        "Kept here, dropped there",
        'synthetic: "a dog on a log"',
        "    here kept, ITM 0.700, ITC 0.250",
        "    there below threshold, ITM 0.700, ITC 0.250",
        "    00000/dog",
    ]


def test_seen_from_the_other_run_it_is_the_other_way_round(tmp_path: Path) -> None:
    text = shown(summarise(strict(tmp_path / "run"), against=made_run(tmp_path / "other"))["against"])
    assert "Dropped here, kept there" in text
    assert "Kept here" not in text
    assert "    here below threshold, ITM 0.700, ITC 0.250\n    there kept, ITM 0.700" in text


def test_another_text_under_the_same_name_is_shown_beside_the_first(tmp_path: Path) -> None:
    against = summarise(made_run(tmp_path / "run"), against=strict(tmp_path / "other"))["against"]
    against["examples"][0]["text_there"] = "a hog\x1b[2J in the fog"
    assert 'there: "a hog\\x1b[2J in the fog"\n' in shown(against)


def test_scores_that_moved_are_told_with_their_direction(tmp_path: Path) -> None:
    against = summarise(made_run(tmp_path / "run"), against=strict(tmp_path / "other"))["against"]
    against["shifts"] = [{"score": "itm", "source": "web", "pairs": 2, "mean": -0.25, "mean_absolute": 0.5}]
    lines = [line.split() for line in shown(against).splitlines()]
    assert ["ITM", "web", "2", "-0.250", "0.500"] in lines


def test_runs_that_agree_say_so(tmp_path: Path) -> None:
    text = shown(summarise(made_run(tmp_path / "run"), against=made_run(tmp_path / "other"))["against"])
    assert "0 of 5 texts judged by both, 0.0%, have another verdict" in text
    assert "for example" not in text


def test_runs_without_a_common_text_say_so(tmp_path: Path) -> None:
    text = shown(summarise(made_run(tmp_path / "run"), against=started_run(tmp_path / "other"))["against"])
    assert "only here: 2 web texts, 3 synthetic texts" in text
    assert "no text was judged by both" in text
    assert "there  nothing was judged yet" in text


def test_many_differences_between_runs_are_not_all_shown(tmp_path: Path) -> None:
    against = summarise(made_run(tmp_path / "run"), against=made_run(tmp_path / "other"))["against"]
    against["facts"] = [f"setting {n}: 0 -> 1" for n in range(20)]
    text = shown(against)
    assert "there -> here, setting 11: 0 -> 1" in text
    assert "setting 12" not in text
    assert "and 8 more differences" in text

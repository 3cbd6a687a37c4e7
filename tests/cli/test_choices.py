from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from capfilt.cli.choices import chosen, nested, prompt_flags
from capfilt.errors import CapfiltError
from capfilt.settings import Bootstrap, Decoding, Phase, Training

if TYPE_CHECKING:
    from pathlib import Path


def test_flags_by_dotted_name_become_groups_and_what_was_not_given_is_left_out() -> None:
    flags = {"seed": 0, "judge.itm": "0.6", "judge.rescue": None, "compute.workers": 2, "recaption": False}
    assert nested(flags) == {
        "seed": 0,
        "judge": {"itm": "0.6"},
        "compute": {"workers": 2},
        "recaption": False,
    }


def test_a_file_wins_over_the_pipeline_a_flag_over_the_file_and_set_over_all(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("seed = 2\ncandidates = 5\n[compute]\nbatch_size = 4\nworkers = 4\n")
    settings = chosen(
        Bootstrap(seed=1, decoding=Decoding(top_p=0.5)),
        config=config,
        flags={"candidates": 6, "compute.workers": 8, "compute.batch_size": None},
        assignments=["compute.workers=9"],
    )
    assert settings.decoding.top_p == 0.5
    assert (settings.seed, settings.candidates) == (2, 6)
    assert (settings.compute.batch_size, settings.compute.workers) == (4, 9)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_many_candidates_of_a_decoding_with_one_answer_are_refused(method: str) -> None:
    base = Bootstrap(decoding=Decoding(method=method))
    with pytest.raises(CapfiltError, match="one answer"):
        chosen(base, flags={"candidates": 2})
    assert chosen(base, flags={"candidates": 1}).candidates == 1
    assert chosen(base, flags={"candidates": 2, "recaption": False}).candidates == 2


def test_one_prompt_or_several_are_put_over_those_of_a_pipeline() -> None:
    for before in (Decoding(prompt="p"), Decoding(prompts=("p", "q")), Decoding()):
        base = Bootstrap(decoding=before, candidates=4)
        assert chosen(base, flags=prompt_flags(None)).decoding == before
        assert chosen(base, flags=prompt_flags(["x"])).decoding == Decoding(prompt="x")
        assert chosen(base, flags=prompt_flags(["x", "y"])).decoding == Decoding(prompts=("x", "y"))


def test_every_prompt_has_a_candidate_and_one_answer_of_each_needs_no_draw() -> None:
    flags = prompt_flags(["x", "y", "z"])
    with pytest.raises(CapfiltError, match="with 3 prompts the last would never be used") as caught:
        chosen(Bootstrap(candidates=2), flags=flags)
    assert "--candidates 3" in caught.value.fix
    greedy = Bootstrap(decoding=Decoding(method="greedy"))
    assert chosen(greedy, flags={**flags, "candidates": 3}).candidates == 3
    with pytest.raises(CapfiltError, match="one answer for a picture and prompt"):
        chosen(greedy, flags={**flags, "candidates": 4})


def test_settings_keep_the_class_of_the_pipeline() -> None:
    class Choices(Bootstrap):
        """A pipeline's own."""

    assert type(chosen(Choices(), flags={"seed": 3})) is Choices


def test_a_policy_of_scores_that_a_training_does_not_teach_is_refused() -> None:
    base = Bootstrap(filter_training=Training(phases=(Phase(itc=1.0),)))
    refused: list[dict[str, Any]] = [
        {"judge.itm": "0.5"},
        {"judge.vqa": "auto:recall=0.9"},
        {"judge.by": "itm", "judge.rescue": True},
    ]
    for flags in refused:
        with pytest.raises(CapfiltError, match=r"the filter that is trained learns ITC alone"):
            chosen(base, flags=flags)
        # One that is given is looked at where it is found; without scores there is no policy.
        assert chosen(base, flags={**flags, "bundles.filter": "NAME/MODEL"}).judge.is_given
        assert chosen(base, flags={**flags, "score": False}).judge.is_given
    taken: list[dict[str, Any]] = [
        {"judge.itc": "0.2"},
        {"judge.also": ("f:itm=0.5",)},
        {"judge.by": "0.5*itc + 2*f:itm", "judge.per_image": 1},
    ]
    for flags in taken:
        assert chosen(base, flags=flags).judge.is_given


def test_options_of_a_model_that_is_not_given_are_refused() -> None:
    given = {"captioner_options": {"template": {"enable_thinking": False}}}
    with pytest.raises(CapfiltError, match=r"bundles\.captioner_options are for a captioner that is given"):
        chosen(Bootstrap(), flags={"bundles": given})
    settings = chosen(Bootstrap(), flags={"bundles": {**given, "captioner": "NAME/MODEL"}})
    assert settings.bundles.captioner_options == given["captioner_options"]

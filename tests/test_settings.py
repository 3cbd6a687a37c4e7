from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import BaseModel

from capfilt import settings as module
from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.layers import Settings, changed, read_toml, validated
from capfilt.settings import Bootstrap, Decoding, Images, Phase, Vision

if TYPE_CHECKING:
    from pathlib import Path


def groups() -> list[type[Settings]]:
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Settings)]


# -- assignments


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("decoding.top_p=0.5", "decoding.top_p", 0.5),
        (" decoding.top_p = 0.5 ", "decoding.top_p", 0.5),
        ("decoding.method=greedy", "decoding.method", "greedy"),
        ('decoding.prompt="a picture of"', "decoding.prompt", "a picture of"),
        ("decoding.prompt=a picture of", "decoding.prompt", "a picture of"),
        ("decoding.prompt=x=y", "decoding.prompt", "x=y"),
        ("decoding.prompt=", "decoding.prompt", ""),
        ("recaption=false", "recaption", False),
        ("judge.itm=auto:precision=0.9", "judge.itm", "auto:precision=0.9"),
        ("compute.workers=none", "compute.workers", None),
        ("model.vision.timm=null", "model.vision.timm", None),
        ("filter_training.phases.0.batch_size=8", "filter_training.phases.0.batch_size", 8),
        ("model.images.mean=[0.1, 0.2, 0.3]", "model.images.mean", (0.1, 0.2, 0.3)),
        ("seed=1_000", "seed", 1000),
    ],
)
def test_an_assignment_reaches_the_setting_it_names(assignment: str, path: str, value: Any) -> None:
    before = Bootstrap()
    after: Any = changed(before, assignments=[assignment])
    for part in path.split("."):
        after = after[int(part)] if part.isdigit() else getattr(after, part)
    assert after == value
    assert before == Bootstrap()


def test_the_last_word_wins_from_defaults_over_files_to_assignments() -> None:
    layers = [{"seed": 1, "decoding": {"top_p": 0.3}}, {"seed": 2, "decoding": {"top_k": 4}}]
    found = changed(Bootstrap(), *layers, assignments=["decoding.top_k=5", "decoding.top_k=6"])
    assert (found.seed, found.decoding.top_p, found.decoding.top_k) == (2, 0.3, 6)
    assert found.decoding.max_tokens == Bootstrap().decoding.max_tokens
    assert layers == [{"seed": 1, "decoding": {"top_p": 0.3}}, {"seed": 2, "decoding": {"top_k": 4}}]


@pytest.mark.parametrize("assignment", ["seed", "", "=3", "  =3"])
def test_what_is_no_assignment_says_how_one_is_written(assignment: str) -> None:
    with pytest.raises(CapfiltError, match="is not an assignment") as refused:
        changed(Bootstrap(), assignments=[assignment])
    assert refused.value.fix == "write --set name.of.setting=value"


@pytest.mark.parametrize(
    "assignment",
    [
        "sede=1",
        "decoding.topp=1",
        "nowhere.at.all=1",
        "seed.low=1",
        "filter_training.phases.9.lm=1",
        "filter_training.phases.x.lm=1",
        "filter_training.phases.-1.lm=1",
        "pretrain.phases.0.lm=1",
        "decoding..top_p=1",
        ".=1",
    ],
)
def test_a_setting_that_does_not_exist_is_named(assignment: str) -> None:
    with pytest.raises(CapfiltError) as refused:
        changed(Bootstrap(), assignments=[assignment])
    assert assignment.partition("=")[0].rpartition(".")[2] in refused.value.what
    assert "capfilt settings" in refused.value.fix


@pytest.mark.parametrize(
    ("assignment", "name", "shown"),
    [
        ("decoding.top_p=1.5", "decoding.top_p", "1.5"),
        ("decoding.top_p=x", "decoding.top_p", "'x'"),
        ("seed=-1", "seed", "-1"),
        ("seed=1.5", "seed", "1.5"),
        ("compute.device=tpu", "compute.device", "'tpu'"),
        ("judge.by=clip", "judge.by", "'clip'"),
        ("filter_training.phases.0.batch_size=0", "filter_training.phases.0.batch_size", "0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_setting_and_its_mend(
    assignment: str, name: str, shown: str
) -> None:
    with pytest.raises(CapfiltError) as refused:
        changed(Bootstrap(), assignments=[assignment])
    assert refused.value.what.startswith(f"setting {name}")
    assert shown in refused.value.what
    assert f"--set {name}" in refused.value.fix


@pytest.mark.parametrize(
    ("assignments", "why"),
    [
        (["decoding.min_tokens=30", "decoding.max_tokens=20"], "min_tokens is above max_tokens"),
        (["model.text.heads=7"], "text.width must be a multiple of text.heads"),
        (["model.vision.heads=7"], "vision.width must be a multiple of vision.heads"),
        (["model.images.size_px=100"], "size_px must be a multiple of vision.patch_px"),
        (["filter_training.phases.0.itc=0", "filter_training.phases.0.itm=0"], "a phase needs a loss"),
    ],
)
def test_values_that_do_not_go_together_say_why(assignments: list[str], why: str) -> None:
    with pytest.raises(CapfiltError) as refused:
        changed(Bootstrap(), assignments=assignments)
    assert why in refused.value.what
    assert "Value error" not in refused.value.what


@given(st.text(max_size=30))
def test_any_text_is_an_assignment_or_the_users_error(text: str) -> None:
    try:
        found = changed(Bootstrap(), assignments=[text])
    except CapfiltError:
        return
    assert "=" in text
    assert found.fingerprint()


@pytest.mark.parametrize(
    "assignment", ["model.vision=vit_tiny_patch16_224", 'model.vision=" vit_tiny_patch16_224 "']
)
def test_the_name_of_a_vit_may_stand_where_its_group_stands(assignment: str) -> None:
    before = changed(Bootstrap(), {"model": {"vision": {"width": 96, "norm_epsilon": 1e-5}}})
    after = changed(before, assignments=[assignment, "model.embed=64"])
    assert after.model.vision == Vision(timm="vit_tiny_patch16_224")
    assert after.model.embed == 64
    over = changed(after, {"model": {"vision": "vit_small_patch16_224"}})
    assert over.model.vision == Vision(timm="vit_small_patch16_224")


@pytest.mark.parametrize("value", ["3", "", "none", "true", "[1]"])
def test_what_is_neither_a_vit_nor_its_group_is_refused_with_its_mend(value: str) -> None:
    with pytest.raises(
        CapfiltError, match=r"setting model\.vision .*the name of a timm ViT, or a group"
    ) as no:
        changed(Bootstrap(), assignments=[f"model.vision={value}"])
    assert "--set model.vision=" in no.value.fix


def test_a_setting_inside_a_plain_value_is_refused_by_that_value() -> None:
    both = ["model.vision=vit_tiny_patch16_224", "model.vision.heads=3"]
    with pytest.raises(CapfiltError, match=r"model\.vision is 'vit_tiny_patch16_224' and holds"):
        changed(Bootstrap(), assignments=both)


# -- files


def test_a_settings_file_is_put_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('seed = 3\n[decoding]\nprompt = "a photo of"\n[[captioner_training.phases]]\nlm = 2.0\n')
    found = changed(Bootstrap(), read_toml(file))
    assert (found.seed, found.decoding.prompt) == (3, "a photo of")
    assert found.captioner_training.phases == (Phase(lm=2.0),)


@pytest.mark.parametrize("content", [None, b"seed = ", b"\xff", b"seed = 1\nseed = 2"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "s.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CapfiltError, match=r"s\.toml cannot be read") as refused:
        read_toml(file)
    assert "TOML" in refused.value.fix


# -- groups


def lineage(kind: type[Settings], name: str) -> list[type[Settings]]:
    """Return the groups that a setting is inherited from: a changed default need not be explained again."""
    return [base for base in kind.__mro__ if issubclass(base, Settings) and name in base.model_fields]


def test_every_setting_says_what_it_is() -> None:
    assert len(groups()) > 10
    silent = [
        f"{kind.__name__}.{name}"
        for kind in groups()
        for name, setting in kind.model_fields.items()
        if not any(base.model_fields[name].description for base in lineage(kind, name))
        and not (isinstance(setting.annotation, type) and issubclass(setting.annotation, BaseModel))
        and name not in {"phases", "captioner_training", "filter_training"}  # groups of settings themselves
    ]
    assert silent == []


def test_a_group_is_frozen_and_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Images().size_px = 3
    with pytest.raises(CapfiltError, match="setting sise_px"):
        validated(Images, {"sise_px": 3})


def test_a_missing_value_is_named() -> None:
    with pytest.raises(CapfiltError, match="setting phases: Field required"):
        validated(module.Training, {})


@given(st.floats(0.01, 1), st.integers(0, 5))
def test_a_fingerprint_is_that_of_the_choices_however_they_were_made(top_p: float, top_k: int) -> None:
    one = Decoding(top_p=top_p, top_k=top_k)
    other = changed(Decoding(), {"top_k": top_k}, assignments=[f"top_p={top_p!r}"])
    assert one.fingerprint() == other.fingerprint()
    assert Decoding(top_p=top_p, top_k=top_k + 1).fingerprint() != one.fingerprint()
    assert validated(Decoding, one.model_dump(mode="json")) == one


# -- prompts


def test_one_prompt_has_one_digest_however_it_is_given_and_the_one_it_always_had() -> None:
    plain = Decoding(prompt="a picture of")
    assert Decoding(prompts=("a picture of",)) == plain
    assert plain.fingerprint() == digest_of(
        {name: getattr(plain, name) for name in Decoding.model_fields if name != "prompts"}
    )
    assert "prompts" not in Bootstrap().model_dump()["decoding"]
    assert Decoding(prompts=("a", "b")).fingerprint() != Decoding(prompt="a").fingerprint()


def test_several_prompts_come_back_from_their_record_and_the_first_is_the_prompt() -> None:
    several = Decoding(prompts=("a", "b"))
    assert several.prompt == "a"
    assert Decoding(**several.model_dump(mode="json")) == several
    assert changed(Bootstrap(), assignments=['decoding.prompts=["a", "b"]']).decoding == several


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"prompt": "x", "prompts": ("a", "b")}, "prompt is 'x', which is not the first of prompts"),
        ({"prompts": ("a", "b", "a")}, "one of the prompts is given twice"),
    ],
)
def test_prompts_that_contradict_are_refused(values: dict[str, Any], what: str) -> None:
    with pytest.raises(CapfiltError, match=what):
        validated(Decoding, values)

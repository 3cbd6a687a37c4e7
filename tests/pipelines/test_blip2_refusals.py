"""What cannot be done with a Q-Former, said before the work and with its mend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import given_models
import pytest
import small_folders
import world
from blip2_world import KEEP, SMALL, TRAINED, engine, sets
from small_language import small_prompted, small_structure
from small_models import WORDS
from small_qformer import SMALL_BLIP2, small_qformer
from whole_runs import capfilt

from capfilt.models.language_vocabulary import load_language_vocabulary
from capfilt.models.qformer_bundle import pack_qformer
from capfilt.models.vocabulary import train_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

TRAINS = ("--pipeline", "blip2_opt", *sets(TRAINED))
USED = {name: value for name, value in SMALL.items() if not name.startswith("model.")}


@pytest.fixture(scope="module")
def models(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of several families and roles, and what Q-Formers are put between."""
    folder = tmp_path_factory.mktemp("models")
    words = train_vocabulary(WORDS, 160)
    about: dict[str, Any] = {"parent": None, "data": None, "training": {}, "versions": {}}
    stage_1 = small_qformer(("itc", "itm", "lm"), len(words))
    pack_qformer(
        folder / "stage1", kind="joint", model=stage_1, settings=SMALL_BLIP2, vocabulary=words, **about
    ).write()
    settings = small_structure("opt", parts["opt"])
    pack_qformer(
        folder / "stage2",
        kind="captioner",
        model=small_prompted(settings),
        settings=settings,
        vocabulary=load_language_vocabulary(parts["opt"], settings.language),
        **about,
    ).write()
    return {
        **parts,
        "stage1": folder / "stage1",
        "stage2": folder / "stage2",
        "med": world.bundle(folder / "med", "filter", ("itc", "itm")),
        "retrieval": given_models.retrieval(folder / "retrieval", words),
        "clip": small_folders.clip(folder / "clip"),
    }


@dataclass(frozen=True)
class Refused:
    """A command whose words in capitals are models, and what is said of it."""

    command: str
    what: str
    fix: str
    is_early: bool = True
    """Whether nothing was made for it."""


PARTS = "--set bundles.vision=PLAIN --set bundles.language=OPT"
REFUSED = {
    "no image encoder": Refused(
        "TRAINS --set bundles.language=OPT", "looks through an image encoder", "bundles.vision=timm"
    ),
    "no language model": Refused(
        "TRAINS --set bundles.vision=PLAIN", "writes with a language model", "bundles.language="
    ),
    "text as an image encoder": Refused(
        "TRAINS --set bundles.vision=LLAMA --set bundles.language=OPT",
        "of the type llama, which sees no pictures",
        "the folder of a ViT",
        is_early=False,
    ),
    "a picture's model as a language model": Refused(
        "TRAINS --set bundles.vision=PLAIN --set bundles.language=CLIP",
        "transformers cannot build the language model",
        "a text-only language model",
    ),
    "a text side that is no BERT": Refused(
        f"TRAINS {PARTS} --set bundles.text=OPT",
        "model_type is 'opt'",
        "a BERT as transformers writes it",
    ),
    "an end that is no token of the language model": Refused(
        f'TRAINS {PARTS} --set model.language.ends_with="circle"',
        "tokens of this language model and not one",
        "leave it empty for the end token",
    ),
    "texts longer than the language model has places": Refused(
        f"TRAINS {PARTS} --set model.language.max_tokens=46",
        "3 queries and 46 tokens stand in one row, and the language model has 48 places",
        "max_tokens to 45",
    ),
    "a start model without a language model": Refused(
        "TRAINS --init STAGE1", "writes with a language model", "bundles.language="
    ),
    "a folder of transformers without a language model": Refused(
        "TRAINS --init RETRIEVAL", "writes with a language model", "bundles.language="
    ),
    "BLIP's model that starts from a Q-Former": Refused(
        "--init STAGE1", "is of the kind blip2, and this pipeline trains BLIP", "--pipeline blip2_opt"
    ),
    "an image encoder beside the start model's": Refused(
        "TRAINS --init STAGE1 --set bundles.vision=PLAIN --set bundles.language=OPT",
        "bundles.vision is for a model from nothing",
        "leave out bundles.vision, or --init",
    ),
    "a structure that the start model does not have": Refused(
        "TRAINS --init STAGE1 --set bundles.language=OPT --set model.qformer.queries=7",
        "model.qformer.queries is 7 here and",
        "leave these settings out",
    ),
    "a momentum encoder": Refused(
        f"TRAINS {PARTS} --set pretrain.phases.0.momentum=0.995",
        "a Q-Former is trained without",
        "leave momentum at 0",
        is_early=False,
    ),
    "a captioner trained to match": Refused(
        "TRAINS --init STAGE1 --set bundles.language=OPT --set captioner_training.phases.0.itc=1",
        "trained for lm alone, and its training has itc",
        "lm alone a weight in every phase",
        is_early=False,
    ),
    "a filter that starts from a captioner": Refused(
        "TRAINS --init STAGE2 --captioner STAGE2", "has no part for texts", "from stage 1"
    ),
    "a Q-Former that starts from BLIP": Refused(
        "TRAINS --init MED --set bundles.language=OPT",
        "is of the kind blip, and this pipeline trains a Q-Former",
        "blip2_stage1",
    ),
    "a training that starts from CLIP": Refused(
        "TRAINS --init CLIP --set bundles.language=OPT", "no model that capfilt trains", "BLIP-2"
    ),
    "stage 1 as captioner": Refused(
        "--captioner STAGE1 --filter MED", "cannot write captions: it is a joint", "as --captioner"
    ),
    "a filter of transformers as captioner": Refused(
        "--captioner RETRIEVAL --filter MED", "is a filter", "give it as --filter"
    ),
    "a captioner as filter": Refused(
        "--captioner STAGE2 --filter STAGE2", "cannot score pairs: it is a captioner", "itc or itm"
    ),
    "a text-only model as filter": Refused(
        "--captioner STAGE2 --filter OPT", "a model of the type opt, which nothing here runs", "CLIP, SigLIP"
    ),
    "pictures of another side": Refused(
        "--captioner STAGE2 --filter MED --set bundles.size_px=32", "at its own size", "leave it out"
    ),
    "a folder's pictures of another side": Refused(
        "--captioner STAGE2 --filter RETRIEVAL --set bundles.size_px=16", "at its own size", "leave it out"
    ),
    "texts that begin with [ENC]": Refused(
        "--captioner STAGE2 --filter STAGE1 --set filter.match_token=enc",
        "begin with [CLS]",
        "leave filter.match_token out",
        is_early=False,
    ),
    "captions longer than the language model has places": Refused(
        "--captioner STAGE2 --filter STAGE1 --set decoding.max_tokens=60",
        "has 48 places",
        "max_tokens lower",
        is_early=False,
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with_its_mend(
    case: Refused, models: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    words = ["bootstrap", few / "web", "--clean", few / "clean", "--out", tmp_path / "run", *KEEP]
    is_from_nothing = "TRAINS" in case.command and "--init" not in case.command
    words += sets(SMALL if is_from_nothing else USED)
    for word in case.command.split():
        name, is_setting, value = word.rpartition("=")
        if word == "TRAINS":
            words += TRAINS
        else:
            words.append(
                f"{name}{is_setting}{models.get(value.lower(), value) if value.isupper() else value}"
            )
    with engine():
        ended = capfilt(*words)
    assert ended.code == 2
    said, _, mend = ended.err.partition("\n  fix: ")
    assert case.what in said
    assert case.fix in mend
    assert (tmp_path / "run").exists() != case.is_early


def test_a_training_alone_is_refused_what_it_starts_from_by_the_name_it_was_given(
    models: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pairs = (few / "web", "--clean", few / "clean")
    no_language = "writes with a language model, and none is given", "--set bundles.language="
    for command, (what, fix) in {
        (
            "train",
            "captioner",
            few / "clean",
            "--pipeline",
            "blip2_opt",
            "--init",
            models["stage1"],
        ): no_language,
        ("pretrain", *pairs, "--pipeline", "blip2_stage2", "--init", models["stage1"]): no_language,
        ("pretrain", *pairs, "--pipeline", "instructblip", "--init", models["stage2"]): (
            f"{models['stage2']} is a captioner of BLIP-2, whose Q-Former has no part for texts",
            "give the stage 1 that it was trained from as --init",
        ),
    }.items():
        with engine():
            ended = capfilt(*command, "--out", out, *sets(USED))
        assert ended.code == 2
        said, _, mend = ended.err.partition("\n  fix: ")
        assert what in said
        assert fix in mend
        assert list(tmp_path.iterdir()) == [], "nothing is begun, and nothing copied"

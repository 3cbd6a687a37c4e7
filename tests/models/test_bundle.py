from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bundle_writer import packed
from safetensors.torch import load_file, save
from small_models import SMALL, small_med

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.models.bundle import load_bundle, pack
from capfilt.models.cards import read_calibration, read_card

if TYPE_CHECKING:
    from collections.abc import Callable

    from capfilt.models.cards import Kind, Objective
    from capfilt.models.vocabulary import Vocabulary


def write_bundle(
    path: Path,
    vocabulary: Vocabulary,
    kind: Kind = "joint",
    objectives: tuple[Objective, ...] = ("itc", "itm", "lm"),
) -> Path:
    pack(
        path,
        kind=kind,
        model=small_med(objectives, len(vocabulary)),
        settings=SMALL,
        vocabulary=vocabulary,
        parent="p" * 64,
        data="d" * 64,
        training={"steps": 3, "loss": 0.25},
        versions={"torch": "2"},
    ).write({"rows": [{"auroc": 0.9}]}, [{"name": "itc", "value": 1.5}])
    return path


@pytest.fixture
def bundle(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    return write_bundle(tmp_path / "bundle", vocabulary)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def with_weights(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the weights and let the card name them: only their fit is left to be found wrong."""
    weights = load_file(path / "model.safetensors")
    change(weights)
    data = save(weights)
    (path / "model.safetensors").write_bytes(data)
    with_card(path, {"weights": hashlib.sha256(data).hexdigest()})


def with_card(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads((path / "capfilt.json").read_text(encoding="utf-8"))
    (path / "capfilt.json").write_text(json.dumps({**values, **changes}), encoding="utf-8")


# -- a whole one


def test_a_bundle_reads_as_it_was_written(bundle: Path, vocabulary: Vocabulary) -> None:
    read = load_bundle(bundle)
    model = small_med(["itc", "itm", "lm"], len(vocabulary))
    assert read.model.objectives == ("itc", "itm", "lm")
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor), name
    assert read.card.model == SMALL
    assert (read.card.kind, read.card.parent, read.card.data) == ("joint", "p" * 64, "d" * 64)
    assert read.card.training == {"steps": 3, "loss": 0.25}
    assert read.calibration == {"rows": [{"auroc": 0.9}]}
    texts = ["a red cat", "[SEP]"]
    assert (
        read.vocabulary.encode(texts, "cls", 9)[0].tolist() == vocabulary.encode(texts, "cls", 9)[0].tolist()
    )


def test_the_card_names_the_weights_by_their_digest_in_canonical_bytes(bundle: Path) -> None:
    text = (bundle / "capfilt.json").read_text(encoding="utf-8")
    values = json.loads(text)
    assert values["weights"] == hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    assert text == canonical_json(values) + "\n"
    assert text == json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert read_card(bundle).weights == values["weights"]


def test_the_same_model_gives_the_same_bytes(bundle: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert digests(write_bundle(tmp_path / "again", vocabulary)) == digests(bundle)


def test_a_bundle_without_calibration_has_none(tmp_path: Path) -> None:
    packed(tmp_path / "b", 0).write()
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == [
        "capfilt.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ]
    assert load_bundle(tmp_path / "b").calibration is None


def test_one_objective_of_a_bundle_may_be_asked_for(
    bundle: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for objective in ("itc", "itm", "lm"):
        load_bundle(bundle, needs=objective)
    captioner = write_bundle(tmp_path / "c", vocabulary, "captioner", ("lm",))
    scorer = write_bundle(tmp_path / "f", vocabulary, "filter", ("itc", "itm"))
    with pytest.raises(CapfiltError, match="cannot score pairs: it is a captioner trained for lm") as refused:
        load_bundle(captioner, needs="itm")
    assert refused.value.fix == "give a bundle trained for itm"
    with pytest.raises(CapfiltError, match="cannot write captions: it is a filter trained for itc, itm"):
        load_bundle(scorer, needs="lm")


# -- a broken one


def test_what_is_no_bundle_is_refused_with_its_mend(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "there is no such folder"), (tmp_path, "it has no capfilt.json")):
        with pytest.raises(CapfiltError, match=why) as refused:
            load_bundle(path)
        assert "capfilt train" in refused.value.fix


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(bundle: Path, missing: str) -> None:
    (bundle / missing).unlink()
    with pytest.raises(CapfiltError, match=missing) as refused:
        load_bundle(bundle)
    assert "whole" in refused.value.fix


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("capfilt.json", b""),
        ("capfilt.json", b'{"format": 1'),
        ("capfilt.json", b"\xff"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x00" * 40),
        ("calibration.json", b'{"rows": ['),
        ("calibration.json", b"\xff"),
    ],
)
def test_a_broken_file_is_named_with_its_mend(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    with pytest.raises(CapfiltError, match=f"{name} cannot be read") as refused:
        load_bundle(bundle)
    assert "whole" in refused.value.fix


def test_weights_cut_short_are_refused(bundle: Path) -> None:
    file = bundle / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CapfiltError, match=r"model\.safetensors"):
        load_bundle(bundle)


def test_one_other_bit_in_the_weights_is_noticed(bundle: Path) -> None:
    file = bundle / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CapfiltError, match="its digest differs") as refused:
        load_bundle(bundle)
    assert "copy the bundle again" in refused.value.fix


def test_weights_that_do_not_fit_the_card_are_named(bundle: Path) -> None:
    with_weights(bundle, lambda weights: weights.pop("itm_head.bias"))
    with pytest.raises(CapfiltError, match=r"missing \['itm_head.bias'\], surplus \[\]"):
        load_bundle(bundle)
    with_weights(
        bundle, lambda weights: weights.update({"itm_head.bias": torch.zeros(2), "extra": torch.zeros(1)})
    )
    with pytest.raises(CapfiltError, match=r"missing \[\], surplus \['extra'\]"):
        load_bundle(bundle)
    with_weights(bundle, lambda weights: weights.pop("extra"))
    load_bundle(bundle)
    with_weights(bundle, lambda weights: weights.update({"itm_head.bias": torch.zeros(3)}))
    with pytest.raises(CapfiltError, match=r"of another shape \['itm_head.bias'\]"):
        load_bundle(bundle)


def test_a_vocabulary_of_another_bundle_is_noticed(bundle: Path) -> None:
    from capfilt.models.vocabulary import train_vocabulary

    train_vocabulary(["other words"], 60).save(bundle)
    with pytest.raises(
        CapfiltError, match=r"its vocabulary has .* entries where capfilt\.json says"
    ) as refused:
        load_bundle(bundle)
    assert "tokenizer" in refused.value.fix


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": None}])
def test_a_card_of_another_format_asks_for_another_version(bundle: Path, changes: dict[str, Any]) -> None:
    with_card(bundle, changes)
    with pytest.raises(CapfiltError, match="format that this version does not know") as refused:
        read_card(bundle)
    assert refused.value.fix == "update capfilt"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "poet"}, "kind"),
        ({"objectives": ["itc", "mlm"]}, "objectives"),
        ({"model": {"text": {"width": 50, "heads": 4}}}, "model"),
        ({"weights": 5}, "weights"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_damaged_card_is_named_with_what_is_wrong(
    bundle: Path, changes: dict[str, Any], named: str
) -> None:
    with_card(bundle, changes)
    with pytest.raises(CapfiltError, match=rf"capfilt\.json is damaged: .*{named}") as refused:
        read_card(bundle)
    assert "--set" not in refused.value.fix  # a card is no setting


def test_a_bundle_without_a_calibration_file_has_no_calibration(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None


# -- a killed writer


def test_a_writer_killed_at_any_moment_leaves_a_whole_bundle_or_none(tmp_path: Path) -> None:
    path, program = tmp_path / "bundle", Path(__file__).with_name("bundle_writer.py")
    with subprocess.Popen(
        [sys.executable, str(program), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        time.sleep(0.05)
        process.kill()
    seen = {load_bundle(path).card.training["seed"]} if path.exists() else set()
    packed(path, 1).write()  # what was left behind is in nobody's way
    seen.add(load_bundle(path).card.training["seed"])
    assert seen <= {0, 1}
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]

"""Folders and files that other software runs, as bundles: known, described by their files, copied whole."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent / "backends"))

import small_folders
from small_models import pictures
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.models.backends import BACKENDS, backend
from capfilt.models.backends.answers import PROMPT
from capfilt.models.backends.chat import ChatCaptioner
from capfilt.models.backends.dual_encoder import DualEncoder, DualEncoderFilter
from capfilt.models.cards import read_card
from capfilt.models.checkpoints import hub
from capfilt.models.foreign_bundle import FILES, describe, described_by, recognised, take
from capfilt.models.loading import captioner_of, filter_of
from capfilt.settings import Decoding, Foreign
from capfilt.stages.given import content_digest

if TYPE_CHECKING:
    from capfilt.models.cards import Card, Kind


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folders.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folders.llava(tmp_path_factory.mktemp("llava"))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def bundled(path: Path, role: Kind, to: Path) -> Card:
    take(path, describe(path, role), to)
    return read_card(to)


def test_a_folder_is_described_by_all_of_its_files_that_matter(llava: Path) -> None:
    (llava / "README.md").write_text("nothing depends on it")
    card = describe(llava, "captioner")
    names = {one.name for one in llava.iterdir()} - {"README.md"}
    assert card.files == {name: sha256(llava / name) for name in names}
    assert {"chat_template.jinja", "generation_config.json", "model.safetensors"} <= names
    assert card.weights == sha256(llava / "model.safetensors")
    assert (card.kind, card.objectives, card.family, card.vocabulary) == ("captioner", ("lm",), "chat", 0)
    settled = card.conventions.decoding(Decoding())
    assert (settled.prompt, settled.min_tokens, settled.max_tokens) == (PROMPT, 1, 60)
    assert describe(llava, "captioner", {"template": {"answers": "one"}}).foreign == Foreign(
        backend="chat", options={"template": {"answers": "one"}}
    )


def test_a_bundle_is_the_same_model_here_and_in_transformers(clip: Path, llava: Path, tmp_path: Path) -> None:
    batch, texts = pictures(2), [["a red circle", "the blue star"], ["a star"]]
    card = bundled(clip, "filter", tmp_path / "filter")
    assert (card.objectives, card.family) == (("itc",), "dual_encoder")
    scores = filter_of(tmp_path / "filter", "cpu", "fp32").score(batch, texts)
    assert scores == DualEncoderFilter(DualEncoder(clip, "cpu"), card.digest).score(batch, texts)
    AutoModel.from_pretrained(tmp_path / "filter")

    card = bundled(llava, "captioner", tmp_path / "captioner")
    decoding = card.conventions.decoding(Decoding(max_tokens=6))
    written = captioner_of(tmp_path / "captioner", "cpu", "fp32").caption(
        batch, decoding, seed=1, candidates=2
    )
    assert written == ChatCaptioner(llava, card.digest, "cpu").caption(batch, decoding, seed=1, candidates=2)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "captioner")
    assert AutoProcessor.from_pretrained(tmp_path / "captioner").chat_template


def test_another_template_or_another_word_is_another_model(llava: Path, tmp_path: Path) -> None:
    before = describe(llava, "captioner")
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        changed = tmp_path / name
        shutil.copytree(llava, changed)
        with (changed / name).open("a") as file:
            file.write("\n ")
        after = describe(changed, "captioner")
        assert after.weights == before.weights
        assert after.digest != before.digest


def test_weights_in_several_files_are_one_digest_and_are_copied(clip: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(clip, parts)
    (parts / "model.safetensors").unlink()
    AutoModel.from_pretrained(clip).save_pretrained(parts, max_shard_size="8KB")
    names = sorted(one.name for one in parts.iterdir() if one.name.startswith("model"))
    assert len(names) > 2
    assert "model.safetensors.index.json" in names
    card = bundled(parts, "filter", tmp_path / "filter")
    assert card.weights == digest_of({name: sha256(parts / name) for name in names})
    assert filter_of(tmp_path / "filter", "cpu", "fp32").score(pictures(1), [["a star"]])
    (parts / names[0]).unlink()
    with pytest.raises(CapfiltError, match="does not name files of its folder"):
        describe(parts, "filter")


def test_what_lies_there_is_known_by_its_config_or_its_ending(
    clip: Path, llava: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.touch()
    other = tmp_path / "other.pth"
    other.touch()
    found = [recognised(path) for path in (clip, llava, own, other, tmp_path, tmp_path / "nowhere")]
    assert found == ["dual_encoder", "chat", "python", None, None, None]
    for kind in ("blip", "blip-2", "instructblip", "bert"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert recognised(tmp_path) is None


def test_a_role_that_a_model_cannot_play_is_refused(clip: Path, llava: Path) -> None:
    for path, role, what in (
        (clip, "captioner", "is a clip and cannot write captions"),
        (llava, "filter", "is a llava and cannot score pairs"),
        (llava, "joint", "is a llava and cannot be trained"),
    ):
        with pytest.raises(CapfiltError, match=what) as refused:
            describe(path, role)  # type: ignore[arg-type]
        assert refused.value.fix.startswith("give it as the ")


def test_what_nothing_runs_is_refused_by_name(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(CapfiltError, match="holds no model"):
        describe(tmp_path, "filter")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CapfiltError, match="a model of the type bert, which nothing here runs"):
        describe(tmp_path, "filter")
    (tmp_path / "config.json").write_bytes((clip / "config.json").read_bytes())
    with pytest.raises(CapfiltError, match="holds no weights"):
        describe(tmp_path, "filter")
    with pytest.raises(CapfiltError, match="no option max_pixels"):
        describe(clip, "filter", {"max_pixels": 3})


def test_a_file_that_changes_between_the_look_and_the_copy_is_refused(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    card = describe(folder, "filter")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CapfiltError, match=r"tokenizer\.json changed while it was read"):
        take(folder, card, tmp_path / "filter")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CapfiltError, match="cannot be copied"):
        take(folder, card, tmp_path / "filter")
    assert not (tmp_path / "filter").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_bundle_with_another_file_than_its_card_says_is_not_loaded(
    clip: Path, tmp_path: Path, name: str
) -> None:
    bundled(clip, "filter", tmp_path / "filter")
    with (tmp_path / "filter" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(CapfiltError, match=f"{name} is not the file"):
        filter_of(tmp_path / "filter", "cpu", "fp32")


def test_a_backend_is_found_by_its_name() -> None:
    for name in BACKENDS:
        module = backend(name)
        assert hasattr(module, "captioner") or hasattr(module, "filter")
    with pytest.raises(CapfiltError, match="no backend psychic") as refused:
        backend("psychic")
    assert "dual_encoder, chat, server, python" in refused.value.fix


def test_what_is_downloaded_and_what_is_compared_is_what_a_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "qformer_tokenizer").mkdir()
    (tmp_path / "model.safetensors").write_text("weights")
    seen = {content_digest(tmp_path)}
    for number, name in enumerate((*FILES, "qformer_tokenizer/vocab.txt"), start=1):
        assert any(fnmatch(name, pattern) for pattern in hub._FILES), name
        (tmp_path / name).write_text("{}")
        seen.add(content_digest(tmp_path))
        assert len(seen) == number + 1, f"{name} is not looked at"
    (tmp_path / "README.md").write_text("nothing depends on it")
    assert content_digest(tmp_path) in seen
    assert sorted(described_by(tmp_path)) == sorted((*FILES, "qformer_tokenizer/vocab.txt"))

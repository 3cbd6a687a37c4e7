"""CLIP and SigLIP as filters, against transformers' own classes on the same folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import small_folders
import torch
import transformers
from PIL import Image
from small_models import pictures

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.models.backends import dual_encoder
from capfilt.models.backends.dual_encoder import DualEncoder, DualEncoderFilter
from capfilt.models.protocols import ImageBatch

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [
    ["a red circle", "a blue square and the green star", ""],
    [],
    ["the red star", "a red circle"],
]
KINDS = {
    "clip": (transformers.CLIPModel, transformers.CLIPImageProcessorPil, transformers.CLIPTokenizer),
    "siglip": (
        transformers.SiglipModel,
        transformers.SiglipImageProcessorPil,
        transformers.PreTrainedTokenizerFast,
    ),
    "siglip2": (
        transformers.Siglip2Model,
        transformers.Siglip2ImageProcessorPil,
        transformers.Siglip2Tokenizer,
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: getattr(small_folders, kind)(tmp_path_factory.mktemp(kind)) for kind in KINDS}


def of(folder: Path, precision: str = "fp32") -> DualEncoderFilter:
    return DualEncoderFilter(DualEncoder(folder, "cpu", precision), "digest")


def theirs(folder: Path, kind: str, pictures: Any, text: str) -> torch.Tensor:
    """Cosines of pictures and one text by the named classes, as their pages show it."""
    model, processor, tokenizer = (part.from_pretrained(folder) for part in KINDS[kind])
    inputs = processor(images=list(pictures), return_tensors="pt")
    if kind == "clip":
        words = dict(tokenizer([text], truncation=True, return_tensors="pt"))
    else:
        read = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt")
        words = {"input_ids": read["input_ids"]}
    with torch.inference_mode():
        seen = model.eval().get_image_features(**inputs).pooler_output
        read = model.get_text_features(**words).pooler_output
    cosines: torch.Tensor = torch.nn.functional.cosine_similarity(seen, read)
    return cosines


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_transformers_cosines(kind: str, folders: dict[str, Path]) -> None:
    batch = pictures(3)
    found = of(folders[kind]).score(batch, TEXTS)
    spread = []
    for number, mine in enumerate(TEXTS):
        assert len(found[number]) == len(mine)
        for score, text in zip(found[number], mine, strict=True):
            expected = theirs(folders[kind], kind, batch.pictures, text)
            assert score.itc == pytest.approx(expected[number].item(), abs=1e-5)
            assert (score.itm, expected.std() > 1e-3) == (None, True)  # what is seen matters
            spread.append(expected[number].item())
    assert max(spread) - min(spread) > 0.05  # and what is read


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_reads_capitals_as_small_letters_whatever_its_tokenizer_does(
    kind: str, folders: dict[str, Path]
) -> None:
    encoder = DualEncoder(folders[kind], "cpu")
    capital, small = encoder.text_features(["A Red circle", "a red circle"])
    assert torch.equal(capital, small)


def test_siglip_reads_a_text_the_same_beside_longer_ones(folders: dict[str, Path]) -> None:
    encoder = DualEncoder(folders["siglip"], "cpu")
    [alone] = encoder.text_features(["a red circle"])
    beside, _ = encoder.text_features(["a red circle", "the blue star and the green square and the red star"])
    assert beside == pytest.approx(alone, abs=1e-6)


def test_a_picture_is_encoded_once_for_all_texts_and_askers(folders: dict[str, Path]) -> None:
    batch = pictures(3)
    filter_ = of(folders["clip"])
    first = filter_.score(batch, TEXTS)
    assert filter_.score(batch, TEXTS) == first
    assert filter_.encoder_passes == 3
    assert filter_.score(batch, [[], [], []]) == [[], [], []]
    assert filter_.score(pictures(1), [[]]) == [[]]
    assert filter_.encoder_passes == 3  # nothing to read, nothing to see


def test_many_texts_are_read_some_at_a_time(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pictures(2)
    texts = [[f"a {word} star" for word in small_folders.WORDS], ["the blue square"]]
    together = of(folders["clip"]).score(batch, texts)
    monkeypatch.setattr(dual_encoder, "TEXTS_AT_ONCE", 3)
    apart = of(folders["clip"]).score(batch, texts)
    for mine, others in zip(together, apart, strict=True):
        assert [one.itc for one in mine] == pytest.approx([one.itc for one in others], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_is_too_long_is_cut_at_the_models_length(kind: str, folders: dict[str, Path]) -> None:
    encoder = DualEncoder(folders[kind], "cpu")
    long = encoder.text_features(["a red star and " * 20, "a red star and " * 40])
    assert torch.isfinite(long).all()
    assert long[0] == pytest.approx(long[1], abs=1e-6)


def test_what_is_transparent_shows_white(folders: dict[str, Path]) -> None:
    clear = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    white = Image.new("RGB", (20, 20), (255, 255, 255))
    red = Image.new("RGB", (20, 20), (200, 0, 0))
    features = DualEncoder(folders["clip"], "cpu").image_features([clear, white, red])
    assert features[0] == pytest.approx(features[1], abs=1e-6)
    assert (features[0] - features[2]).abs().max() > 1e-3


def test_bf16_is_near_fp32_and_another_number(folders: dict[str, Path]) -> None:
    texts = [["a red circle", "the blue star"]] * 3
    exact, near = (
        torch.tensor(
            [[one.itc for one in mine] for mine in of(folders["clip"], precision).score(pictures(3), texts)]
        )
        for precision in ("fp32", "bf16")
    )
    assert near == pytest.approx(exact, abs=0.05)
    assert not torch.equal(near, exact)
    with pytest.raises(CapfiltError, match="int8") as refused:
        of(folders["clip"], "int8")
    assert "bf16" in refused.value.fix


def test_it_is_known_by_its_config() -> None:
    assert {
        kind: dual_encoder.recognises({"model_type": kind}) for kind in ("clip", "siglip", "siglip2")
    } == {
        "clip": "filter",
        "siglip": "filter",
        "siglip2": "filter",
    }
    for other in ("blip", "blip-2", "llava", "bert", "clip_vision_model", None):
        assert dual_encoder.recognises({"model_type": other}) is None


def test_weights_that_are_missing_are_not_drawn_at_random(folders: dict[str, Path], tmp_path: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(folders["clip"])
    kept = {name: one for name, one in model.state_dict().items() if name != "text_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=kept)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["clip"] / name).read_bytes())
    with pytest.raises(CapfiltError, match=r"is a clip without text_projection\.weight"):
        of(tmp_path)


def test_a_folder_without_its_tokenizer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["siglip"].iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CapfiltError, match="cannot be loaded") as refused:
        of(tmp_path)
    assert "tokenizer included" in refused.value.fix


def test_numbers_that_are_not_finite_stop_the_run(folders: dict[str, Path]) -> None:
    encoder = DualEncoder(folders["clip"], "cpu")
    encoder._model.visual_projection.weight.fill_(torch.nan)
    batch = ImageBatch([Image.new("RGB", (16, 16))], ["0"])
    with pytest.raises(RunFailedError, match="no finite numbers"):
        DualEncoderFilter(encoder, "digest").score(batch, [["a"]])

"""Files of LAVIS that are refused, by what is wrong with them or with what was named for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from lavis_files import (
    LANGUAGE_PARTS,
    VISION,
    converted,
    eva_file,
    lavis_file,
    recorded_language,
    without,
)

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def stray(state: dict[str, Any]) -> None:
    state["mystery.weight"] = torch.zeros(1)
    state["Qformer.bert.encoder.layer.0.attention.self.gate"] = torch.zeros(1)


def resized(name: str, *shape: int) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({name: torch.zeros(*shape)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (stray, r"surplus: mystery\.weight, Qformer\.bert\.encoder\.layer\.0\.attention\.self\.gate"),
        (without("itm_head."), r"missing: itm_head\.weight, itm_head\.bias"),
        (without(f"{VISION}blocks.1.attn.v_bias"), r"missing: visual_encoder\.blocks\.1\.attn\.v_bias"),
        (without("Qformer.bert.encoder.layer.3.output_query.dense"), r"missing: Qformer.*\.3\.output_query"),
        (resized("text_proj.weight", 8, 48), r"of another shape: text_proj\.weight"),
        (resized("ln_vision.weight", 31), r"of another shape: ln_vision\.weight"),
        (without("ln_vision"), r"lacks ln_vision\.weight"),
        (resized("query_tokens", 4), "is built as no BLIP-2 is"),
        (resized("Qformer.cls.predictions.decoder.bias", 201), r"decoder\.bias differs from .*\.bias"),
        (resized("Qformer.bert.embeddings.position_ids", 1, 64), "does not count from 0"),
        (lambda state: state["query_tokens"].fill_(torch.inf), "not finite: query_tokens"),
    ],
)
def test_a_file_that_is_not_as_lavis_wrote_it_is_refused_by_what_is_wrong(
    shared: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    file = lavis_file(tmp_path / "odd.pth", shared / "golden/blip2_qformer", change)
    with pytest.raises(CapfiltError, match=told):
        converted(file, tmp_path / "bundle", vocabulary=shared / "golden/tokenizer")
    assert not (tmp_path / "bundle").exists()


def test_a_file_that_ends_too_early_is_refused(shared: Path, tmp_path: Path) -> None:
    file = lavis_file(tmp_path / "cut.pth", shared / "golden/blip2_qformer")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CapfiltError, match=r"cut\.pth (cannot be read|is damaged)"):
        converted(file, tmp_path / "bundle", vocabulary=shared / "golden/tokenizer")


def test_heads_that_nothing_says_must_be_given(shared: Path, tmp_path: Path) -> None:
    file = lavis_file(tmp_path / "x.pth", shared / "golden/blip2_qformer")
    with pytest.raises(CapfiltError, match="its Q-Former is 48 wide") as refused:
        converted(file, tmp_path / "bundle", heads=None)
    assert "--heads V,Q" in refused.value.fix


def test_parts_that_do_not_fit_are_refused_before_they_are_loaded(shared: Path, tmp_path: Path) -> None:
    recorded, words = shared / "golden/blip2_opt", shared / "golden/tokenizer"
    file = lavis_file(tmp_path / "x.pth", recorded, without(VISION, *LANGUAGE_PARTS))
    with pytest.raises(CapfiltError, match="holds no image encoder and no language model") as refused:
        converted(file, tmp_path / "b", vocabulary=words)
    named = f"capfilt models convert {file} --vision FOLDER --language FOLDER --out BUNDLE"
    assert named in refused.value.fix
    eva = eva_file(tmp_path / "eva_vit_g.pth", recorded)
    language = recorded_language(tmp_path / "language", "opt", recorded)
    t5 = recorded_language(tmp_path / "t5", "t5", shared / "golden/blip2_t5")
    with pytest.raises(CapfiltError, match=r"a model that continues a text, and .*t5 answers a text"):
        converted(file, tmp_path / "b", vocabulary=words, vision=eva, language=t5)
    config = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps(config | {"hidden_size": 44, "word_embed_proj_dim": 44}))
    with pytest.raises(CapfiltError, match=r"its queries, 40 wide, .*takes 44"):
        converted(file, tmp_path / "b", vocabulary=words, vision=eva, language=language)
    (language / "config.json").write_text(json.dumps(config))
    wide = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 1}
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=28, patch_size=7, **wide))
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(CapfiltError, match="image states 32 wide, and those of its image encoder are 24"):
        converted(file, tmp_path / "b", vocabulary=words, vision=tmp_path / "vit", language=language)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"vision": "eva_vit_g.pth"}, "holds the image encoder"),
        ({"language": "facebook/opt-2.7b"}, "which has no language model"),
        ({"size_px": 56}, "sees pictures at its own size"),
    ],
)
def test_what_a_file_has_no_use_for_is_refused(
    shared: Path, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    file = lavis_file(tmp_path / "x.pth", shared / "golden/blip2_qformer")
    with pytest.raises(CapfiltError, match=told):
        converted(file, tmp_path / "b", vocabulary=shared / "golden/tokenizer", **given)


def test_parts_are_for_files_that_may_lack_them(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="has all its parts") as refused:
        converted(
            lavis_file(tmp_path / "x.pth", shared / "golden/blip_itm"), tmp_path / "b", vision="eva_vit_g.pth"
        )
    assert refused.value.fix == "leave them out"

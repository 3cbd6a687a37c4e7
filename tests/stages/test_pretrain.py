"""What a pre-training is refused before a worker is asked for anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from capfilt.cli.pipelines import load_pipeline
from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.stages.pretrain import pretrain

if TYPE_CHECKING:
    from pathlib import Path


class NoWorkers:
    """An engine that is not to be asked."""

    def run(self, *_given: Any, **_named: Any) -> Any:
        raise AssertionError("a worker was asked")


def refused(tmp_path: Path, pipeline: str, data: str, **bundles: str) -> CapfiltError:
    settings = changed(load_pipeline(pipeline).choices(), {"bundles": bundles})
    engine: Any = NoWorkers()
    progress: Any = None
    with pytest.raises(CapfiltError) as caught:
        pretrain(data, None, tmp_path / "out", settings, engine, progress)
    assert list(tmp_path.iterdir()) == [], "nothing is begun"
    return caught.value


@pytest.mark.parametrize(
    ("pipeline", "bundles", "what", "mend"),
    [
        ("blip2_stage1", {}, "looks through an image encoder", "bundles.vision="),
        ("blip2_stage2", {"vision": "somewhere"}, "writes with a language model", "bundles.language="),
        ("instructblip", {"language": "somewhere"}, "looks through an image encoder", "--init"),
    ],
)
def test_parts_that_are_not_named_are_asked_for_at_once(
    tmp_path: Path, pipeline: str, bundles: dict[str, str], what: str, mend: str
) -> None:
    error = refused(tmp_path, pipeline, "web.toml" if pipeline == "instructblip" else "web", **bundles)
    assert what in error.what
    assert mend in error.fix


def test_a_registry_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    error = refused(
        tmp_path, "instructblip", str(tmp_path / "sets.toml"), init="stage1", language="somewhere"
    )
    assert f"registry {tmp_path / 'sets.toml'} cannot be read" in error.what
    assert "[[dataset]]" in error.fix

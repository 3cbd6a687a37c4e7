"""Runs in this very process, with random models that are small but answer differently to every picture."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from capfilt.data.sources import find_shards, read_shard
from capfilt.layers import changed
from capfilt.models.bundle import pack
from capfilt.models.cards import CALIBRATION_FILE
from capfilt.models.med import MED
from capfilt.models.vocabulary import train_vocabulary
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.rundir import RunDir
from capfilt.reports.progress import QuietProgress
from capfilt.settings import (
    Bootstrap,
    Decoding,
    Images,
    Input,
    Matching,
    Model,
    SettledDecoding,
    Text,
    Vision,
)
from capfilt.stages.bootstrap import Request, bootstrap
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.shard import ShardJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from capfilt.models.cards import Kind, Objective
    from capfilt.stages.bootstrap import Finished
    from capfilt.stages.context import Stage

REAL = Path(__file__).parents[1] / "data" / "real"
TINY = Model(
    images=Images(size_px=16),
    vision=Vision(patch_px=8, width=16, layers=1, heads=2),
    text=Text(width=24, layers=1, heads=2, feed_forward=32, vocabulary=120, max_tokens=24, dropout=0.0),
    embed=8,
)
DECODING = Decoding(min_tokens=2, max_tokens=8)
QUIET = QuietProgress()


class InProcess:
    """An engine without processes: item after item, here."""

    def __init__(self) -> None:
        self.handed_out: list[Any] = []

    def run(
        self,
        work: Callable[..., Any],
        items: Sequence[Any],
        *,
        devices: Sequence[str],
        threads: int,  # noqa: ARG002
        hear: Callable[[int, int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        for number, item in enumerate(items):
            self.handed_out.append(item)

            def tell(done: int, total: int, words: str = "", *, number: int = number) -> None:
                if words and say is not None:
                    say(words)
                if not words and hear is not None:
                    hear(number, done, total)

            yield number, work(item, devices[0], tell)


def bundles(folder: Path) -> dict[str, Path]:
    kinds: dict[str, tuple[Kind, tuple[Objective, ...]]] = {
        "captioner": ("captioner", ("lm",)),
        "filter": ("filter", ("itc", "itm")),
        "second": ("filter", ("itc", "itm")),
    }
    for seed, (name, (kind, objectives)) in enumerate(kinds.items()):
        bundle(folder / name, kind, objectives, seed=seed)
    return {name: folder / name for name in kinds}


def bundle(
    path: Path, kind: Kind, objectives: Sequence[Objective], *, seed: int = 0, model: Model = TINY
) -> Path:
    """Write a bundle of random weights, so large that captions and scores depend on the picture."""
    texts = [
        sample.web_text or ""
        for shard in find_shards([REAL / "noisy.tar", REAL / "clean.tar"])
        for sample in read_shard(shard, Input())
    ]
    vocabulary = train_vocabulary(texts, model.text.vocabulary)
    torch.manual_seed(seed)
    med = MED(model, len(vocabulary), objectives)
    with torch.no_grad():
        for name, weights in med.named_parameters():
            if not name.endswith("temperature"):
                weights.add_(torch.randn_like(weights) * (0.5 if "cross." in name else 0.25))
    pack(
        path,
        kind=kind,
        model=med,
        settings=model,
        vocabulary=vocabulary,
        parent=None,
        data=None,
        training={},
        versions={},
    ).write()
    return path


def settings(bundles: dict[str, Path], /, **changes: Any) -> Bootstrap:
    base = Bootstrap(decoding=DECODING)
    given = {"bundles": {"captioner": bundles["captioner"], "filter": bundles["filter"]}}
    layers = [
        {"compute": {"workers": 1, "batch_size": 8, "device": "cpu", "precision": "fp32"}},
        given,
        changes,
    ]
    return changed(base, *layers)


def run(
    out: Path,
    web: Path,
    bundles: dict[str, Path],
    /,
    *,
    stages: Sequence[Stage] | None = None,
    engine: Any = None,
    **changes: Any,
) -> Finished:
    """Do a whole run, in this process; `changes` are settings."""
    chosen = settings(bundles, **changes)
    every: Sequence[Stage] = [
        RecaptionAndScore(chosen.recaption, chosen.score),
        JudgePairs(),
        ExportPairs(),
    ]
    request = Request(str(web), None, out, chosen, stages or every)
    return bootstrap(request, engine or InProcess(), QUIET)


def job(run: Path, web: Path, bundles: dict[str, Path], **changes: Any) -> ShardJob:
    """The first shard of `web`, as a job."""
    values: dict[str, Any] = {
        "run": run,
        "shard": find_shards(web)[0],
        "fingerprint": "print",
        "captioner": bundles["captioner"],
        "filter": bundles["filter"],
        "decoding": SettledDecoding(min_tokens=2, max_tokens=8),
        "matching": Matching(),
        "candidates": 1,
        "seed": 0,
        "input": Input(max_pixels=1_000_000),
        "batch_size": 8,
        "precision": "fp32",
    }
    return ShardJob(**{**values, **changes})


def nobody(_done: int, _total: int, _words: str = "") -> None:
    """Hears what a worker says."""


def sql(run: RunDir, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with open_catalog(run) as catalog:
        return catalog.execute(query, list(parameters)).fetchall()


def copied(run: RunDir, to: Path) -> RunDir:
    """A copy of a run without its export."""
    shutil.copytree(run.path, to, ignore=lambda _, names: {"export"} & set(names))
    return RunDir(to)


def calibrated(path: Path, to: Path, *, itm: float, itc: float) -> Path:
    """A copy of a filter's bundle whose calibration gives the lower ends of the intervals of AUROC."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(path, to)
    rows = [
        {
            "score": score,
            "negatives": negatives,
            "positives": 50,
            "negatives_count": 200,
            "auroc": (1 + low) / 2,
            "auroc_low": low,
            "auroc_high": 1.0,
            "precision_at_half": None,
            "recall_at_half": None,
            "weak": low <= 0.5 if negatives == "shuffled" else None,
        }
        for score, low in (("itm", itm), ("itc", itc))
        for negatives in ("shuffled", "hard")
    ]
    values = {
        "itm": {"right": [n / 20 for n in range(20)], "shuffled": [n / 40 for n in range(20)], "hard": []},
        "itc": {"right": [n / 10 - 1 for n in range(20)], "shuffled": [-1.0] * 20, "hard": []},
    }
    (to / CALIBRATION_FILE).write_text(json.dumps({"rows": rows, "values": values}))
    return to


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    """sha256 of every file below a folder that fits one of the patterns, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns or ("**/*",)
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def members(tar: Path) -> dict[str, bytes]:
    """Every member of a tar, read by the standard library."""
    with tarfile.open(tar) as file:
        return {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]


def write_tar(path: Path, members: Sequence[tuple[str, bytes | str]]) -> Path:
    """Write members in their order; a name may come twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path

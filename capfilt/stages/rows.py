"""Rows of what was read, written and scored, with the columns that the schema names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.records import Source, pair_id

if TYPE_CHECKING:
    from PIL.Image import Image

    from capfilt.records import Caption, Sample, Scores
    from capfilt.stages.shard import ShardJob

Row = dict[str, Any]


def sample_row(sample: Sample, picture: Image | None, round_number: int) -> Row:
    """Return the row of a sample; `picture` is None where it was refused."""
    url = sample.metadata.get("url")
    return {
        "shard": sample.shard,
        "key": sample.key,
        "image_sha256": sample.image_sha256,
        "url": url if isinstance(url, str) else None,
        "web_text": sample.web_text,
        "width": picture.width if picture is not None else None,
        "height": picture.height if picture is not None else None,
        "status": sample.status.value,
        "reason": sample.reason.value if sample.reason is not None else None,
        "member": sample.member,
        "image_offset": sample.image_offset,
        "image_size": len(sample.image) if sample.image is not None else None,
        "metadata": canonical_json(sample.metadata),
        "round": round_number,
    }


def caption_row(sample: Sample, caption: Caption, job: ShardJob, captioner: str | None) -> Row:
    """Return the row of a caption; `captioner` is the digest of who wrote the synthetic ones."""
    is_synthetic = caption.source is Source.SYNTHETIC
    return {
        "pair_id": _pair_id(sample, caption, job.round_number),
        "shard": sample.shard,
        "key": sample.key,
        "image_sha256": sample.image_sha256,
        "source": caption.source.value,
        "candidate": caption.candidate,
        "text": caption.text,
        "captioner": captioner if is_synthetic else None,
        "decoding": canonical_json(job.decoding.model_dump(mode="json")) if is_synthetic else None,
        "prompt": job.decoding.prompt_of(caption.candidate) if is_synthetic else None,
        "unfinished": caption.unfinished.value if caption.unfinished is not None else None,
        "seed": job.seed if is_synthetic else None,
        "round": job.round_number,
    }


def score_rows(
    sample: Sample, captions: list[Caption], values: list[Scores], round_number: int, digest: str
) -> list[Row]:
    """Return a row for each score of each caption, by the filter of this digest."""
    return [
        {"pair_id": _pair_id(sample, caption, round_number), "filter": digest, "score": name, "value": value}
        for caption, scores in zip(captions, values, strict=True)
        for name, value in scores.measured().items()
    ]


def _pair_id(sample: Sample, caption: Caption, round_number: int) -> str:
    return pair_id(
        shard=sample.shard,
        key=sample.key,
        source=caption.source,
        candidate=caption.candidate,
        round_number=round_number,
    )

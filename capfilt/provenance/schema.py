"""Every column of the record, with its type and what it means, once.

The writers take their Arrow schemas from here, the catalog its view definitions, and
`capfilt sql RUN --schema` its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt import records

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its Arrow type by name, and what it means."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One stored table or view."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema."""
        import pyarrow as pa

        return pa.schema([(column.name, pa.type_for_alias(column.type)) for column in self.columns])

    def columns_named(self, *names: str) -> tuple[Column, ...]:
        """Return some of the columns, in the order asked for."""
        return tuple(column for name in names for column in self.columns if column.name == name)

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return [column.name for column in self.columns]


SAMPLES = Table(
    "samples",
    "one row a sample of the input, used or refused",
    (
        Column("shard", "string", "input shard: its path below the input's common folder, without .tar"),
        Column("key", "string", "the sample's key in its shard"),
        Column("image_sha256", "string", "sha256 of the encoded image; null without an image"),
        Column("url", "string", "where the image came from, when the metadata says"),
        Column(
            "web_text", "string", "T_w as it stands in the shard; null when there is none or it was refused"
        ),
        Column("width", "int32", "pixels, upright; null when the image was refused"),
        Column("height", "int32", "pixels, upright; null when the image was refused"),
        Column("status", "string", "ok: the image was used; refused: it was not"),
        Column("reason", "string", "why the sample was refused or, where status is ok, why its web text was"),
        Column("member", "string", "the image's name in the tar, or the damaged byte range"),
        Column("image_offset", "int64", "first byte of the image in the tar"),
        Column("image_size", "int64", "bytes of the image in the tar"),
        Column("metadata", "string", "KEY.json as canonical JSON; {} when there was none"),
        Column("round", "int32", "round of bootstrapping, from 1"),
    ),
)

CAPTIONS = Table(
    "captions",
    "one row a caption of an image that was used: what was read or written, before any score",
    (
        Column("pair_id", "string", "name of this image with this caption in the run"),
        Column("shard", "string", "as in samples"),
        Column("key", "string", "as in samples"),
        Column("image_sha256", "string", "as in samples"),
        Column("source", "string", "web or synthetic"),
        Column("candidate", "int32", "number of the draw, from 0; 0 for a web text"),
        Column("text", "string", "the caption"),
        Column("captioner", "string", "digest of the captioner's weights; null for a web text"),
        Column("decoding", "string", "settings of the draw as one canonical JSON text; null for a web text"),
        Column(
            "prompt",
            "string",
            "what the captioner was made to begin with, or told to do, for this text; null for a web text",
        ),
        Column(
            "unfinished",
            "string",
            "why its writer did not end it: length (cut off at decoding.max_tokens), content_filter or "
            "refused (both empty); null where it did, and where nobody says",
        ),
        Column("seed", "int64", "the run's seed; null for a web text"),
        Column("round", "int32", "round of bootstrapping, from 1"),
    ),
)

SCORES = Table(
    "scores",
    "one row a pair, filter and score: a second filter adds rows and rewrites none",
    (
        Column("pair_id", "string", "as in pairs"),
        Column("filter", "string", "digest of the filter's weights"),
        Column("score", "string", ", ".join(records.SCORES)),
        Column(
            "value", "double", "; ".join(f"{name}: {scale.meaning}" for name, scale in records.SCORES.items())
        ),
    ),
)

PAIRS = Table(
    "pairs",
    "captions with the scores of the run's filter and the verdict of the newest policy; before the verdict, "
    "a column for each score of a further filter, named by the first digits of its digest: itc_1a2b3c4d",
    (
        *CAPTIONS.columns[:7],
        *(
            Column(name, "double", f"{scale.meaning}, by the run's filter; null where it lacks one")
            for name, scale in records.SCORES.items()
        ),
        CAPTIONS.columns[7],
        Column("filter", "string", "digest of the filter whose scores stand here"),
        *CAPTIONS.columns[8:],
        Column("keep", "bool", "verdict of the newest policy; null while there is none"),
        Column("reason", "string", "why: kept, below_threshold, ..."),
    ),
)

SHARDS = Table(
    "shards",
    "one row a committed shard",
    (
        Column("shard", "string", "as in samples"),
        Column("path", "string", "where the shard was read"),
        Column("bytes", "int64", "size of the shard"),
        Column("samples_in", "int64", "samples that the reader found in the tar"),
        Column("samples_ok", "int64", "rows of samples with status ok"),
        Column("samples_refused", "int64", "rows of samples with status refused"),
        Column("captions", "int64", "rows of captions"),
        Column("captions_synthetic", "int64", "rows of captions that the captioner wrote"),
        Column("fingerprint", "string", "digest of everything these rows depend on"),
    ),
)

MODELS = Table(
    "models",
    "one row a model that wrote or scored something in this run, or that a training started from",
    (
        Column(
            "model",
            "string",
            "digest of the weights; of a model that other software runs, of its other files and options too",
        ),
        Column("kind", "string", "captioner, filter or joint"),
        Column("path", "string", "bundle it was read from"),
        Column("parent", "string", "digest of the model it was started from; null from scratch"),
        Column("data", "string", "digest of the pairs it was trained on; null when unknown"),
        Column(
            "settings",
            "string",
            "how it is built, was trained and is used, and its origin, as canonical JSON",
        ),
        Column("versions", "string", "versions of the libraries that trained it, as one canonical JSON text"),
    ),
)

CALIBRATION = Table(
    "calibration",
    "how well a score tells held-out clean pairs from wrong ones",
    (
        Column("model", "string", "digest of the filter"),
        Column("score", "string", ", ".join(records.SCORES)),
        Column("negatives", "string", "shuffled: another pair's caption; hard: the most similar wrong one"),
        Column("positives", "int64", "held-out pairs measured"),
        Column("negatives_count", "int64", "wrong pairs measured"),
        Column("auroc", "double", "chance that a right pair scores above a wrong one; null without pairs"),
        Column("auroc_low", "double", "lower end of its 95% interval"),
        Column("auroc_high", "double", "upper end of its 95% interval"),
        Column("precision_at_half", "double", "precision at a probability of 0.5, as many right as wrong"),
        Column("recall_at_half", "double", "recall at a probability of 0.5"),
        Column(
            "weak", "bool", "auroc_low against shuffled captions is at or below 0.5, or nothing was measured"
        ),
    ),
)

POLICIES = Table(
    "policies",
    "one row a policy; the newest is in force",
    (
        Column("policy", "int32", "number, from 1"),
        Column("digest", "string", "digest of the rule and its thresholds"),
        Column("filter", "string", "digest of the filter whose scores it reads"),
        Column("rule", "string", "the rule as one canonical JSON text"),
        Column("thresholds", "string", "the numbers in force, as one canonical JSON text"),
        Column("words", "string", "the rule in words"),
    ),
)

METRICS = Table(
    "metrics",
    "one row a measurement during training",
    (
        Column("model", "string", "which training: captioner, filter, joint, init or next"),
        Column("phase", "string", "part of the training"),
        Column("step", "int64", "optimizer steps done"),
        Column("split", "string", "train or validation"),
        Column("name", "string", "loss, itc, itm, lm, learning_rate, temperature, negatives, ..."),
        Column("value", "double", "the measurement"),
        Column("time", "double", "seconds since 1970"),
    ),
)

LABELS = Table(
    "labels",
    "one row a word of a person on a pair, those that were superseded or taken back too",
    (
        Column("pair_id", "string", "as in pairs"),
        Column("verdict", "string", "match, mismatch, unsure, or undone: taken back"),
        Column("who", "string", "the person, as the person gave it"),
        Column("time", "double", "seconds since 1970"),
        Column("note", "string", "what the person added, or nothing"),
        Column("draw", "string", "the drawn sample it came from; null for a pair that was not drawn"),
        Column("text_sha256", "string", "digest of the text that was looked at"),
        Column("newest", "bool", "whether it is what this person says of this pair now"),
    ),
)

STAGES = Table(
    "stages",
    "one row a stage of one start of the run; clock times live here and in metrics only",
    (
        Column("stage", "string", "train_captioner, train_filter, recaption_and_score, judge, export, ..."),
        Column("start", "int32", "which start of the run, from 1"),
        Column("status", "string", "running, done, withheld, failed"),
        Column("detail", "string", "why it was withheld or failed, or what it made"),
        Column("started", "double", "seconds since 1970"),
        Column("ended", "double", "seconds since 1970; null while it runs"),
        Column("count", "int64", "images, steps or pairs"),
        Column("per_second", "double", "count by second"),
        Column("settings", "string", "settings of the stage, as one canonical JSON text"),
        Column("versions", "string", "versions of the libraries, as one canonical JSON text"),
    ),
)

ROUNDS = Table(
    "rounds",
    "one row a round of bootstrapping; the tables of a further round are round_2.pairs, round_2.models, ...",
    (
        Column("round", "int32", "number, from 1"),
        Column("path", "string", "folder of the round, a run of its own"),
        Column("seed", "int64", "what the round's random choices are keyed by"),
        Column("init", "string", "digest of the model its trainings start from; null from scratch"),
        Column("init_export", "string", "digest of the export that init was pre-trained on; null for others"),
        Column("captioner", "string", "digest of the captioner that wrote the round's captions"),
        Column("filter", "string", "digest of the filter whose scores stand in its pairs"),
        Column("policy", "string", "its newest policy, in words"),
        Column("export", "string", "digest of the shards in its export/; null while there are none"),
        Column("samples", "int64", "samples in its export/"),
        Column("next", "string", "digest of the model that was pre-trained on its export, for a next round"),
        Column("next_export", "string", "digest of the export that next was pre-trained on"),
    ),
)

ANCESTRY = Table(
    "ancestry",
    "one row a model of any round and a model that it descends from, by weights or by data",
    (
        Column("model", "string", "digest of the weights"),
        Column("kind", "string", "captioner, filter or joint"),
        Column("round", "int32", "first round that knows the model"),
        Column("ancestor", "string", "digest of the weights it descends from"),
        Column("ancestor_kind", "string", "captioner, filter or joint; null where no round knows more of it"),
        Column("ancestor_round", "int32", "first round that knows the ancestor"),
        Column("depth", "int32", "steps between them, the shortest way; 1 for a parent"),
        Column(
            "via",
            "string",
            "parent: it started from the ancestor's weights, step by step; data: somewhere between, a model "
            "was trained on what another one wrote or kept",
        ),
    ),
)

LINEAGE = Table(
    "lineage",
    "one row a caption of any round: which models wrote and scored it, and what these descend from",
    (
        Column("round", "int32", "as in captions"),
        *PAIRS.columns_named("shard", "key", "pair_id", "source", "candidate", "text", *records.SCORES),
        *PAIRS.columns_named("keep", "reason"),
        Column("captioner", "string", "digest of the captioner's weights; null for a web text"),
        Column("captioner_ancestors", "string", "what the captioner descends from, the nearest first"),
        Column("filter", "string", "digest of the filter whose scores stand here"),
        Column("filter_ancestors", "string", "what the filter descends from, the nearest first"),
    ),
)

TABLES = (
    SAMPLES,
    CAPTIONS,
    SCORES,
    PAIRS,
    SHARDS,
    MODELS,
    CALIBRATION,
    POLICIES,
    METRICS,
    LABELS,
    STAGES,
    ROUNDS,
    ANCESTRY,
    LINEAGE,
)

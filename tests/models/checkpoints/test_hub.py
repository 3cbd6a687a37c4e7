"""Hub ids, with the hub's own code and a cache laid out as it lays out its own; no network is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.hub import Found, find_checkpoint, find_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND = "1" * 40, "2" * 40
PROGRAM = """
import json, sys
from capfilt.errors import CapfiltError
from capfilt.models.checkpoints import hub
try:
    found = getattr(hub, sys.argv[1])(sys.argv[2])
    print(json.dumps([str(found.path), found.source, found.revision]))
except CapfiltError as error:
    print(json.dumps({"what": error.what, "fix": error.fix}))
"""


def cached(cache: Path, name: str, revisions: dict[str, str], files: dict[str, list[str]]) -> None:
    """Lay out a repository as a download does: blobs, a link to each in its snapshot, commits of branches."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    for revision, commit in revisions.items():
        (folder / "refs" / revision).write_text(commit, encoding="utf-8")
    for commit, names in files.items():
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in names:
            blob = folder / "blobs" / f"{commit}-{file}"
            blob.write_text(file, encoding="utf-8")
            (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    safe = ["config.json", "model.safetensors", "vocab.txt"]
    cached(
        folder,
        "painters/captioner",
        {"main": SECOND, "v1": FIRST},
        {FIRST: ["config.json", "pytorch_model.bin"], SECOND: safe},
    )
    cached(folder, "bert-base-uncased", {"main": FIRST}, {FIRST: ["vocab.txt"]})
    return folder


def offline(cache: Path, function: str, source: str) -> Any:
    """Look a source up in a process of its own: the hub's code reads the environment once."""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, function, source],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        cwd=cache.parent,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("source", "commit"),
    [
        ("painters/captioner", SECOND),
        ("painters/captioner@v1", FIRST),
        (f"painters/captioner@{FIRST}", FIRST),
    ],
)
def test_a_hub_id_is_found_in_the_cache_with_its_commit(cache: Path, source: str, commit: str) -> None:
    folder = cache / "models--painters--captioner/snapshots" / commit
    assert offline(cache, "find_checkpoint", source) == [str(folder), "painters/captioner", commit]


def test_a_vocabulary_may_have_a_name_without_an_owner(cache: Path) -> None:
    path, source, revision = offline(cache, "find_vocabulary", "bert-base-uncased")
    assert (source, revision) == ("bert-base-uncased", FIRST)
    assert path.endswith(f"models--bert-base-uncased/snapshots/{FIRST}")


@pytest.mark.parametrize("source", ["painters/filter", "painters/captioner@v2", "bert-base-uncased@v9"])
def test_what_is_not_cached_is_refused_offline_with_its_mend(cache: Path, source: str) -> None:
    function = "find_checkpoint" if "/" in source else "find_vocabulary"
    refused = offline(cache, function, source)
    assert refused["what"].startswith(f"{source} is no folder here, it is not whole in the hub's cache")
    assert "HF_HUB_OFFLINE" in refused["fix"]


def test_a_path_that_is_there_wins_over_a_hub_id(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "painters/captioner").mkdir(parents=True)
    assert offline(cache, "find_checkpoint", "painters/captioner") == [
        "painters/captioner",
        "painters/captioner",
        None,
    ]
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("painters/captioner").revision is None
    (tmp_path / "bert-base-uncased").mkdir()
    assert find_vocabulary("bert-base-uncased").revision is None


@pytest.mark.parametrize("source", ["captioner", "a/b/c", "/no/such/place", "../up/down", "a b/c", "a/b@"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(source: str) -> None:
    with pytest.raises(CapfiltError, match=r"there is no ") as refused:
        find_checkpoint(source)
    assert "NAME/MODEL@REVISION" in refused.value.fix


def test_a_vocabulary_that_is_neither_is_refused() -> None:
    with pytest.raises(CapfiltError, match="there is no vocabulary /no/words") as refused:
        find_vocabulary("/no/words")
    assert "vocab.txt" in refused.value.fix


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("RepositoryNotFoundError", "there is no folder painters/x here and no open model painters/x"),
        ("GatedRepoError", "painters/x is on the hub and not open to everybody"),
        ("RevisionNotFoundError", "painters/x has no revision v7 on the hub"),
        ("HfHubHTTPError", "cannot be had from the hub: too many requests"),
    ],
)
def test_what_the_hub_answers_is_told_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, error: str, told: str
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: object, **__: object) -> str:
        kind = getattr(errors, error)
        made: Exception = kind.__new__(kind)
        made.args = ("too many requests",)
        raise made

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CapfiltError, match=told):
        find_checkpoint("painters/x@v7" if "Revision" in error else "painters/x")


def test_pickled_weights_are_fetched_only_where_there_are_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub picks files by these patterns; what is in the folder then says which weights there are."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: list[set[str]] = []
    here = ["config.json", "vocab.txt", "README.md", "tf_model.h5", "pytorch_model.bin", "picture.png"]

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("painters/x", None)
        asked.append(set(filter_repo_objects(here, allow_patterns=allow_patterns)))
        for file in asked[-1]:
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_checkpoint("painters/x") == Found(tmp_path, "painters/x", tmp_path.name)
    assert asked == [{"config.json", "vocab.txt"}, {"config.json", "vocab.txt", "pytorch_model.bin"}]
    here.append("model.safetensors")
    asked.clear()
    find_checkpoint("painters/x")
    assert asked == [{"config.json", "vocab.txt", "model.safetensors"}]

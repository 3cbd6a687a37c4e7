from __future__ import annotations

import json
import re
import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest
from whole_runs import bootstrap, capfilt, copied, given, lasting, sql

if TYPE_CHECKING:
    from pathlib import Path

    from whole_runs import Trained


# -- from scratch


def test_a_run_from_scratch_ends_with_every_stage_done(undisturbed: Trained) -> None:
    assert undisturbed.code == 0, undisturbed.err
    assert sql(undisturbed.path, "SELECT stage, status, start FROM stages ORDER BY started") == [
        ("train_joint", "done", 1),
        ("train_captioner_and_filter", "done", 1),
        ("recaption_and_score", "done", 1),
        ("judge", "done", 1),
        ("export", "done", 1),
    ]
    assert undisturbed.out.strip().rpartition("\n")[2] == f"capfilt inspect {undisturbed.path}"


def test_no_sample_is_lost(undisturbed: Trained, drawn: Path) -> None:
    keys = set()
    for path in (drawn / "web").glob("*.tar"):
        with tarfile.open(path) as tar:
            keys |= {(path.stem, member.name.partition(".")[0]) for member in tar}

    assert len(keys) == 90
    assert set(sql(undisturbed.path, "SELECT shard, key FROM samples")) == keys
    assert sql(undisturbed.path, "SELECT count(*), sum(samples_in), sum(samples_ok) FROM shards") == [
        (6, 90, 90)
    ]
    # The one in twenty whose text is empty is recaptioned all the same.
    empty = sql(undisturbed.path, "SELECT count(*) FROM samples WHERE reason = 'empty_text'")[0][0]
    assert empty > 0
    assert sql(
        undisturbed.path, "SELECT source, count(*), count(itm), count(itc) FROM pairs GROUP BY 1 ORDER BY 1"
    ) == [
        ("synthetic", 90, 90, 90),
        ("web", 90 - empty, 90 - empty, 90 - empty),
    ]


def test_captioner_and_filter_start_from_the_joint_model_and_share_nothing_after(
    undisturbed: Trained,
) -> None:
    rows = sql(undisturbed.path, "SELECT kind, model, parent FROM models")
    models, parents = {kind: model for kind, model, _ in rows}, {kind: parent for kind, _, parent in rows}

    assert len(set(models.values())) == 3
    assert parents == {"joint": None, "captioner": models["joint"], "filter": models["joint"]}
    losses = sql(
        undisturbed.path,
        "SELECT model, list(DISTINCT name ORDER BY name) FROM metrics "
        "WHERE split = 'train' AND name IN ('itc', 'itm', 'lm') GROUP BY model",
    )
    assert dict(losses) == {
        "joint": ["itc", "itm", "lm"],
        "captioner": ["lm"],
        "filter": ["itc", "itm"],
    }


def test_progress_is_told_in_plain_lines_on_stderr(undisturbed: Trained) -> None:
    assert "\x1b" not in undisturbed.err
    for task in ("train joint", "train captioner", "train filter", "recaption and score"):
        assert re.search(rf"^{task}: done, .*[0-9] (steps|images)/s$", undisturbed.err, re.MULTILINE)


def test_nothing_temporary_is_left(undisturbed: Trained) -> None:
    assert not list(undisturbed.path.rglob(".partial-*"))
    assert not list(undisturbed.path.rglob("checkpoint.pt"))
    assert (undisturbed.path / "run.lock").read_text() == ""


# -- again


def test_the_same_command_again_does_nothing_new(undisturbed: Trained, drawn: Path, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed.path, tmp_path / "run")
    before, times = lasting(run), _times(run)

    # Other workers, other logging: neither is what rows depend on.
    again = capfilt(*bootstrap(drawn, run, "--workers", 1, "--json", pretrain__log_every=3))

    assert again.code == 0, again.err
    details = {stage["stage"]: stage["detail"] for stage in json.loads(again.out)["stages"]}
    assert details["train_joint"].endswith("trained before")
    assert details["train_captioner_and_filter"].count("trained before") == 2
    assert details["recaption_and_score"] == "0 shards, 0 samples, 0 images; 6 shards were done before"
    assert lasting(run) == before
    assert _times(run) == times


def test_a_changed_threshold_writes_a_policy_and_trains_nothing(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    run = copied(undisturbed.path, tmp_path / "run")
    [(least,)] = sql(run, "SELECT median(itm) FROM pairs")

    again = capfilt(*bootstrap(drawn, run, "--itm", least, "--fraction", 0.9, "--quiet"))

    assert again.code == 0, again.err
    assert again.err == ""
    [(_, before), (number, words)] = sql(run, "SELECT policy, words FROM policies ORDER BY 1")
    assert before == "ITM of at least 0; among the best 50% of all scored captions by ITM"
    assert number == 2
    assert words.startswith(f"ITM of at least {least:.6g}; among the best 90%")
    assert sql(run, f"SELECT count(*) FROM pairs WHERE keep <> (itm >= {least})") == [(0,)]
    assert again.out.count("trained before") == 3
    old, new = lasting(undisturbed.path), lasting(run)
    changed = {name for name in new if new[name] != old.get(name) and not name.startswith("export/")}
    assert changed == {"provenance/policies/0002.json"}
    assert new["export/verdicts.parquet"] != old["export/verdicts.parquet"]


def _times(run: Path) -> dict[Path, int]:
    """When what is expensive to make was written."""
    folders = (
        "models/*/*",
        "provenance/samples/*",
        "provenance/captions/*",
        "provenance/scores/*",
        "export/*",
    )
    return {path: path.stat().st_mtime_ns for pattern in folders for path in run.glob(pattern)}


def test_what_rows_depend_on_cannot_be_changed_on_the_same_run(undisturbed: Trained, drawn: Path) -> None:
    before = lasting(undisturbed.path)

    refused = capfilt(*bootstrap(drawn, undisturbed.path, decoding__top_p=0.5))

    assert refused.code == 2
    assert re.search(r"decoding\.top_p.*0\.9.*0\.5", refused.err)
    assert "another --out" in refused.err
    assert "recorded values again" in refused.err
    assert "Traceback" not in refused.err
    assert lasting(undisturbed.path) == before


# -- with models that are given


def test_given_models_need_no_clean_pairs_and_workers_do_not_move_a_byte(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    for workers in (1, 2):
        words = given(drawn, tmp_path / f"{workers}", undisturbed.path / "models", "--workers", workers)
        ended = capfilt(*words, "--candidates", 2)
        assert ended.code == 0, ended.err
        assert ended.last_line == f"capfilt inspect {tmp_path / str(workers)}"
    one, two = lasting(tmp_path / "1"), lasting(tmp_path / "2")

    assert one == two
    assert sum(name.startswith("provenance/scores/") for name in one) == 6
    assert sql(tmp_path / "1", "SELECT stage, status FROM stages ORDER BY started") == [
        ("recaption_and_score", "done"),
        ("judge", "done"),
        ("export", "done"),
    ]
    assert sql(tmp_path / "1", "SELECT count(*) FROM pairs WHERE source = 'synthetic'") == [(180,)]


def test_models_that_transformers_loaded_and_saved_give_the_same_captions_and_scores(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    import transformers

    for kind, name in (
        ("captioner", "BlipForConditionalGeneration"),
        ("filter", "BlipForImageTextRetrieval"),
    ):
        ours, theirs = undisturbed.path / "models" / kind, tmp_path / "theirs" / kind
        getattr(transformers, name).from_pretrained(ours).save_pretrained(theirs)
        for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(ours / file, theirs / file)
    # As these models were trained: a folder of transformers says nothing of it.
    as_ours = ("--set", "filter.match_token=enc", "--set", "decoding.min_tokens=5")

    own = capfilt(*given(drawn, tmp_path / "own", undisturbed.path / "models"))
    other = capfilt(*given(drawn, tmp_path / "other", tmp_path / "theirs", *as_ours))

    assert (own.code, other.code) == (0, 0), own.err + other.err
    query = "SELECT pair_id, text, itc, itm FROM pairs ORDER BY pair_id"
    assert sql(tmp_path / "other", query) == sql(tmp_path / "own", query)
    assert len({text for _, text, *_ in sql(tmp_path / "other", query)}) > 90
    again = capfilt(*given(drawn, tmp_path / "other", tmp_path / "theirs", *as_ours))
    assert "6 shards were done before" in again.out


def test_half_of_the_work_is_done_where_half_is_asked_for(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    models = undisturbed.path / "models"
    shard = str(drawn / "web" / "00000.tar")

    written = capfilt(
        *("bootstrap", shard, "--out", tmp_path / "written", "--no-filter", "--pipeline", "small"),
        *("--captioner", models / "captioner"),
    )
    scored = capfilt(
        *("bootstrap", shard, "--out", tmp_path / "scored", "--no-recaption", "--pipeline", "demo"),
        *("--filter", models / "filter", "--accept-weak-filter"),
    )

    assert (written.code, scored.code) == (0, 0), written.err + scored.err
    assert sql(tmp_path / "written", "SELECT bool_and(keep), count(itm), count(*) > 15 FROM pairs") == [
        (True, 0, True)
    ]
    assert sql(tmp_path / "scored", "SELECT DISTINCT source FROM pairs") == [("web",)]
    assert sql(tmp_path / "scored", "SELECT count(*) = count(itm) FROM pairs") == [(True,)]
    assert "recaption: done" in written.out
    assert "score: done" in scored.out
    assert [path.name for path in (tmp_path / "written" / "export").glob("*.tar")] == ["00000.tar"]


def test_a_weak_filter_withholds_the_export_and_says_what_to_type(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    assert sql(undisturbed.path, "SELECT count(*) FROM calibration WHERE weak AND score = 'itm'") == [(1,)], (
        "thirty steps taught this filter something: take fewer"
    )
    words = given(drawn, tmp_path / "run", undisturbed.path / "models")
    words.remove("--accept-weak-filter")

    ended = capfilt(*words)

    assert ended.code == 0
    assert "export: withheld" in ended.out
    assert re.fullmatch(
        rf"capfilt (export {tmp_path / 'run'} --accept-weak-filter|judge {tmp_path / 'run'} --itc \S+)",
        ended.last_line,
    )
    assert not (tmp_path / "run" / "export").exists()
    refused = capfilt("export", tmp_path / "run")
    assert refused.code == 2
    assert "--accept-weak-filter" in refused.err
    taken = capfilt("export", tmp_path / "run", "--accept-weak-filter")
    assert taken.code == 0
    assert "**Weak filter.**" in (tmp_path / "run" / "export" / "README.md").read_text()


# -- what cannot be done


def test_one_clean_pair_is_too_few(drawn: Path, tmp_path: Path) -> None:
    with tarfile.open(drawn / "clean" / "00000.tar") as tar, tarfile.open(tmp_path / "one.tar", "w") as one:
        for member in tar:
            if member.name.startswith("000000."):
                one.addfile(member, tar.extractfile(member))
    words = bootstrap(drawn, tmp_path / "run")
    words[words.index("--clean") + 1] = str(tmp_path / "one.tar")

    refused = capfilt(*words)

    assert refused.code == 2
    assert "holds 1 clean pairs" in refused.err
    assert "at least two clean pairs" in refused.err


def test_a_list_of_urls_ends_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    urls = tmp_path / "urls.csv"
    urls.write_text("url,caption\nhttps://example.org/1.jpg,a cat\n")

    refused = capfilt("bootstrap", urls, "--out", tmp_path / "run", "--pipeline", "small", "--clean", urls)

    assert refused.code == 2
    assert "img2dataset" in refused.err
    assert str(urls) in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("web", ["empty", "missing", "text"])
def test_a_web_without_shards_is_refused(tmp_path: Path, drawn: Path, web: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no shard")

    words = bootstrap(drawn, tmp_path / "run")
    words[1] = str(tmp_path / web)
    refused = capfilt(*words)

    assert refused.code == 2
    assert refused.err.startswith("error: ")
    assert "\n  fix: " in refused.err
    assert not (tmp_path / "run").exists()


def test_the_default_pipeline_says_how_to_give_it_models(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    words = ("bootstrap", drawn / "web", "--clean", drawn / "clean", "--out", tmp_path / "run")

    both = capfilt(*words)
    one = capfilt(*words, "--captioner", undisturbed.path / "models" / "captioner")

    assert (both.code, one.code) == (2, 2)
    assert "--captioner MODEL and --filter MODEL" in both.err
    assert "--init MODEL" in both.err
    assert "--pipeline small" in both.err
    assert "give --filter MODEL" in one.err


def test_a_folder_of_other_things_is_no_place_for_a_run(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    refused = capfilt(*bootstrap(drawn, tmp_path))

    assert refused.code == 2
    assert "no run can be made" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

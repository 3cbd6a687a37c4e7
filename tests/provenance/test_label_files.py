from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import provenance_rows as made
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.label_files import (
    cells,
    draw_records,
    import_labels,
    label_records,
    read_label_table,
    record_of,
)
from capfilt.provenance.labels import Label, Verdict, add_labels, draw_sample, read_labels
from capfilt.records import Source

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

HOSTILE = '=HYPERLINK("http://x";"y")\x1b[2J\u202e\0,\r\n"'


@pytest.fixture
def committed(run: RunDir) -> RunDir:
    """A run of which one web text is hostile."""
    rows = made.rows(made.shard())
    next(row for row in rows["captions"] if row["source"] is Source.WEB)["text"] = HOSTILE
    made.commit(run, made.shard(), **rows)
    return run


def pairs(run: RunDir) -> list[str]:
    with open_catalog(run) as catalog:
        return [
            pair
            for (pair,) in catalog.execute("SELECT pair_id FROM captions ORDER BY source DESC").fetchall()
        ]


def written(records: list[dict[str, str]], file: Path, delimiter: str = ",", bom: bool = False) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(cells(records))
    file.write_bytes(text.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    return file


@pytest.mark.parametrize(("delimiter", "bom"), [(",", False), (";", True), ("\t", False)])
def test_labels_go_to_another_copy_of_the_run_as_they_are(
    committed: RunDir, tmp_path: Path, delimiter: str, bom: bool
) -> None:
    first, second, *_ = pairs(committed)
    said = [
        Label(first, Verdict.MATCH, "=ann", 1.25, note=HOSTILE, draw="d"),
        Label(first, Verdict.UNDONE, "=ann", 2.000001),
        Label(second, Verdict.UNSURE, "bob", 1_700_000_000.123457, note="'quoted'"),
    ]
    add_labels(committed, said)
    before = read_labels(committed, every=True)
    file = written(label_records(committed), tmp_path / "labels.csv", delimiter, bom)
    committed.labels_file.unlink()
    assert import_labels(committed, file) == (3, 3)
    assert read_labels(committed, every=True) == before
    assert import_labels(committed, file) == (3, 0)


@given(
    who=st.text(min_size=1, max_size=16).filter(lambda text: text.strip()),
    note=st.text(max_size=50),
    when=st.floats(0, 253402300799),
)
def test_whatever_a_person_wrote_comes_back_through_a_file(who: str, note: str, when: float) -> None:
    label = Label("p", Verdict.MISMATCH, who, when, note=note, draw="d", text_sha256="e")
    record = {**dict.fromkeys(("source", "text", "shard", "key"), ""), **record_of(label)}
    file = io.StringIO(newline="")
    csv.writer(file).writerows(cells([record]))
    file.seek(0)
    assert read_label_table(file, when=0.0) == [label]


def test_no_cell_of_a_file_is_a_formula(committed: RunDir, tmp_path: Path) -> None:
    add_labels(committed, [Label(pair, Verdict.MATCH, "@ann", 1.0, note="+1") for pair in pairs(committed)])
    with written(label_records(committed), tmp_path / "labels.csv").open(newline="") as file:
        found = [cell for row in csv.reader(file) for cell in row]
    assert "'" + HOSTILE in found
    assert not [cell for cell in found if cell[:1] in set("=+-@")]


def test_a_drawn_sample_is_filled_in_and_read(committed: RunDir, tmp_path: Path) -> None:
    draw = draw_sample(committed, 4)
    records = draw_records(committed, draw)
    assert [record["text"] for record in records if record["source"] == "web"].count(HOSTILE) <= 1
    for record, verdict in zip(records, ("match", " Mismatch ", "UNSURE", ""), strict=True):
        record["verdict"] = verdict
    file = written(records, tmp_path / "drawn.csv")
    assert import_labels(committed, file, who="ann") == (3, 3)
    assert import_labels(committed, file, who="ann") == (3, 0)
    found = read_labels(committed)
    assert [label.verdict for label in found] == ["match", "mismatch", "unsure"]
    assert {(label.who, label.draw) for label in found} == {("ann", draw.name)}
    assert {label.when for label in found} == {round(file.stat().st_mtime, 6)}


def test_a_file_needs_two_columns_in_any_order_and_case(committed: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(f"Verdict, Pair_ID ,more\nmatch,{pairs(committed)[0]},x\n\n")
    assert import_labels(committed, file, who="ann") == (1, 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no column pair_id"),
        (b"pair_id,note\nx,y\n", "no column verdict"),
        (b"pair_id,verdict\nPAIR,perhaps\n", "line 2: 'perhaps' is no verdict"),
        (b"pair_id,verdict\nPAIR,match\n", "line 2: a label says who"),
        (b"pair_id,verdict,who\nPAIR,match,ann\nnothing,match,ann\n", "has no pair 'nothing'"),
        (b"pair_id,verdict,who,when\nPAIR,match,ann,yesterday\n", "line 2: 'yesterday' is no time"),
        (b"pair_id,verdict,who,when\nPAIR,match,ann,0001-01-01\n", "line 2: the time of a label"),
        (b"pair_id,verdict,who\nPAIR,match,\xff\n", "no CSV in UTF-8"),
        (b'pair_id,verdict,who\nPAIR,match,"ann\n', "no CSV in UTF-8"),
    ],
)
def test_a_file_that_is_wrong_anywhere_adds_nothing(
    committed: RunDir, tmp_path: Path, content: bytes, why: str
) -> None:
    file = tmp_path / "wrong.csv"
    file.write_bytes(content.replace(b"PAIR", pairs(committed)[0].encode()))
    with pytest.raises(CapfiltError) as found:
        import_labels(committed, file)
    assert why in found.value.what
    assert read_labels(committed) == []


def test_a_file_that_is_not_there_is_the_users_error(committed: RunDir, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(CapfiltError):
            import_labels(committed, path)


def test_a_long_text_beside_a_label_does_no_harm(committed: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(f"pair_id,verdict,who,text\n{pairs(committed)[0]},match,ann,{'x' * 1_000_000}\n")
    assert import_labels(committed, file) == (1, 1)

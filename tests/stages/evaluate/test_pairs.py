"""What belongs together in a test set, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import drawn
import pytest
import world

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from pathlib import Path


def test_equal_pictures_are_one_and_texts_that_differ_in_case_and_spaces_are_one(test_set: Path) -> None:
    found = drawn.pairs(test_set)

    assert found.pictures == 20
    assert len(found.texts) == 23
    assert len(found.pairs) == 24  # the pair that comes twice is one
    right = [[found.texts[text] for text in mine] for mine in found.right_texts()]
    assert right[0] == [drawn.text(0), drawn.text(40), drawn.text(41)]
    assert right[1] == [drawn.text(1)]
    assert right[2] == [drawn.text(1), drawn.text(2)]
    assert right[3] == [drawn.text(3), drawn.text(42)]
    assert right[4:] == [[drawn.text(n)] for n in range(4, 20)]
    assert found.key(3) == "k03"
    assert dict(found.refused) == {"unreadable_image": 1}
    assert not found.is_cut


def test_pairs_that_share_a_picture_or_a_text_are_one_group(test_set: Path) -> None:
    found = drawn.pairs(test_set)
    groups: dict[int, set[int]] = {}
    for pair in found.pairs:
        groups.setdefault(pair.group_id, set()).add(pair.image_id)
    assert sorted(map(sorted, groups.values())) == [[0], [1, 2], *([n] for n in range(3, 20))]


def test_the_metadata_may_name_groups(tmp_path: Path) -> None:
    members = [part for n in range(4) for part in drawn.sample(f"k{n}", n, drawn.text(n), group=n // 2)]
    found = drawn.pairs(world.write_tar(tmp_path / "set.tar", members))
    first, second, third, fourth = (pair.group_id for pair in found.pairs)
    assert first == second != third == fourth


def test_a_limit_counts_pictures_and_takes_their_texts_as_far_as_it_reads(test_set: Path) -> None:
    found = drawn.pairs(test_set, limit=7)
    assert (found.pictures, len(found.texts), found.is_cut) == (7, 7, True)
    assert not drawn.pairs(test_set, limit=20).is_cut


def test_kinds_are_read_from_the_metadata_and_a_sample_without_one_is_left_out(noisy_set: Path) -> None:
    found = drawn.pairs(noisy_set, kind_field="noise_kind")
    assert found.kinds[:4] == ["right", "swap", "right", "junk"]
    assert dict(found.refused) == {"unlabelled": 1}
    assert found.right_texts()[1] == []


def test_pictures_come_decoded_in_the_order_asked_for(test_set: Path) -> None:
    found = drawn.pairs(test_set)
    batch = found.batch([5, 2])
    assert [picture.size for picture in batch.pictures] == [(24, 20)] * 2
    assert list(batch.sha256) == [found.sha256(5), found.sha256(2)]


def test_a_set_without_a_usable_pair_is_the_users_error(test_set: Path, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="no sample says of its text"):
        drawn.pairs(test_set, kind_field="noise_kind")
    empty = world.write_tar(tmp_path / "empty.tar", [("a.png", b"no picture"), ("a.txt", "a text")])
    with pytest.raises(CapfiltError, match=r"no usable pair .*: 1 unreadable_image"):
        drawn.pairs(empty)

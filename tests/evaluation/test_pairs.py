import gzip
from pathlib import Path

import numpy as np
import pytest

from spn_jax.errors import InputError
from spn_jax.evaluation import pairs
from spn_jax.evaluation.pairs import (
    PairList,
    draw_pairs,
    draw_pairs_per_bin,
    make_pair_list,
    match,
    open_pair_list,
    short_names,
    write_pair_list,
)

PHOTOS = [f"photos/{i}.jpg" for i in range(5)]
MASKS = [f"irregular_masks/{i:05d}.png" for i in range(8)]
PAPER_MASKS = [f"irregular_masks/{i:05d}.png" for i in range(12_000)]


def drawn(seed: int = 0) -> PairList:
    return make_pair_list(PHOTOS, MASKS, draw_pairs(5, 8, seed), f"seed {seed}")


def test_a_mask_comes_twice_only_when_all_have_come() -> None:
    chosen = draw_pairs(photos=25, masks=10, seed=0)
    assert chosen.dtype == np.int32
    assert sorted(chosen[:10]) == sorted(chosen[10:20]) == list(range(10))
    assert len(set(chosen[20:])) == 5
    assert list(chosen[:10]) != list(chosen[10:20])


def test_pairs_are_published_numbers() -> None:
    assert list(draw_pairs(photos=8, masks=12_000, seed=0)) == [4069, 3851, 10228, 4539, 2521, 1598, 1497, 4386]


def test_first_pairs_do_not_depend_on_the_number_of_photos() -> None:
    np.testing.assert_array_equal(draw_pairs(7, 20, seed=3), draw_pairs(50, 20, seed=3)[:7])
    bins = np.arange(20) // 7
    np.testing.assert_array_equal(draw_pairs_per_bin(7, bins, seed=3), draw_pairs_per_bin(50, bins, seed=3)[:7])


def test_pairs_depend_on_the_seed() -> None:
    assert list(draw_pairs(20, 20, seed=0)) != list(draw_pairs(20, 20, seed=1))


def test_every_bin_gets_as_many_photos_as_any_other() -> None:
    bins = np.array([0] * 3 + [2] * 50 + [5] * 8)
    chosen = draw_pairs_per_bin(31, bins, seed=0)
    assert sorted(np.unique(bins[chosen], return_counts=True)[1]) == [10, 10, 11]
    of_first = chosen[bins[chosen] == 0]
    assert sorted(of_first[:3]) == sorted(of_first[3:6]) == [0, 1, 2]
    assert list(chosen) != list(draw_pairs_per_bin(31, bins, seed=1))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/b/1.png", "a/b/2.png"], ("1.png", "2.png")),
        (["a/b/1.png", "a/c/1.png"], ("b/1.png", "c/1.png")),
        (["/x/1.png"], ("1.png",)),
        (["1.png", "a/1.png"], ("1.png", "a/1.png")),
        ([], ()),
    ],
)
def test_where_a_data_set_is_kept_is_no_part_of_its_names(names: list[str], expected: tuple[str, ...]) -> None:
    assert short_names(names) == expected


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_a_list_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    write_pair_list(tmp_path / name, drawn())
    assert open_pair_list(str(tmp_path / name), [], []) == drawn()


def test_the_file_is_text_that_people_can_read(tmp_path: Path) -> None:
    write_pair_list(tmp_path / "pairs.tsv", drawn())
    lines = (tmp_path / "pairs.tsv").read_text().splitlines()
    assert lines[0] == "# spn_jax pair list, format 1"
    assert lines[1].startswith("# photos: 5, sha256 ") and lines[2].startswith("# masks: 8, sha256 ")
    assert lines[3] == f"# pairs: sha256 {drawn().sha256}" and lines[4] == "# drawn: seed 0" and lines[5] == "photo\tmask"
    assert lines[6] == f"0.jpg\t{draw_pairs(5, 8, 0)[0]:05d}.png"


def test_line_ends_of_other_systems_change_nothing(tmp_path: Path) -> None:
    write_pair_list(tmp_path / "pairs.tsv", drawn())
    (tmp_path / "pairs.tsv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "pairs.tsv").read_bytes().replace(b"\n", b"\r\n"))
    assert open_pair_list(str(tmp_path / "pairs.tsv"), PHOTOS, MASKS) == drawn()


def test_the_hash_is_of_the_pairs_alone(tmp_path: Path) -> None:
    assert drawn(0).sha256 != drawn(1).sha256
    moved = make_pair_list([f"elsewhere/{p}" for p in PHOTOS], MASKS, draw_pairs(5, 8, 0), "by hand")
    assert moved.sha256 == drawn().sha256
    np.save(tmp_path / "index.npy", draw_pairs(5, 8, 0))
    assert open_pair_list(str(tmp_path / "index.npy"), PHOTOS, MASKS).sha256 == drawn().sha256


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format 1", "format 2", "no pair list of format 1"),
        ("1.jpg", "7.jpg", "cut off or was edited"),
        ("\n4.jpg", "\n3.jpg", "cut off or was edited"),
        ("photos: 5", "photos: 6", "cut off or was edited"),
        ("2.jpg\t", "2.jpg ", "is damaged"),
    ],
)
def test_a_list_that_was_edited_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = pairs.as_text(drawn())
    assert old in text
    (tmp_path / "pairs.tsv").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        open_pair_list(str(tmp_path / "pairs.tsv"), [], [])


def test_files_that_are_cut_off_or_missing(tmp_path: Path) -> None:
    (tmp_path / "cut.tsv").write_text(pairs.as_text(drawn())[:-3])
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(pairs.as_text(drawn()).encode())[:-9])
    for name, message in {"cut.tsv": "damaged", "cut.tsv.gz": "cannot be read", "gone.tsv": "neither a file nor one of"}.items():
        with pytest.raises(InputError, match=message):
            open_pair_list(str(tmp_path / name), [], [])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (np.arange(4), "4 entries for 5 photos"),
        (np.array([0, 1, 2, 3, 8]), "asks for masks 0 to 8, but there are 8"),
        (np.zeros(5), "holds float64"),
        (np.zeros((5, 1), int), r"holds int64 \(5, 1\)"),
        (np.array([{}] * 5), "cannot be read as a NumPy array"),
    ],
)
def test_a_released_index_that_does_not_fit(tmp_path: Path, index: np.ndarray, message: str) -> None:
    np.save(tmp_path / "index.npy", index)
    with pytest.raises(InputError, match=message):
        open_pair_list(str(tmp_path / "index.npy"), PHOTOS, MASKS)


def test_photos_are_found_in_any_order_and_others_are_left_out_with_a_note() -> None:
    at_hand = ["other/9.jpg", *(f"photos/{i}.jpg" for i in (3, 1, 4, 0, 2))]
    found = match(drawn(), at_hand, MASKS)
    assert found.photos.tolist() == [4, 2, 5, 1, 3]
    assert found.masks.tolist() == draw_pairs(5, 8, 0).tolist()
    assert "the folders of the photos differ" in found.notes[0] and "1 of 6 photos is not in the pair list" in found.notes[1]


@pytest.mark.parametrize(("count", "named"), [(1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more"), (9, "a, b, c and 6 more")])
def test_the_first_three_names_stand_for_all(count: int, named: str) -> None:
    assert pairs._some(list("abcdefghi")[:count]) == named


def test_another_suffix_is_noted() -> None:
    assert match(drawn(), PHOTOS, MASKS).notes == ()
    found = match(drawn(), [name.replace("jpg", "png") for name in PHOTOS], MASKS)
    assert found.photos.tolist() == list(range(5)) and found.notes == ("the suffixes of the photos differ from the pair list's",)


@pytest.mark.parametrize(
    ("photos", "masks", "message"),
    [
        (PHOTOS[:3], MASKS, "2 of the 5 photos of the pair list are not among the 3 at hand: 3.jpg, 4.jpg"),
        ([*PHOTOS[1:], "photos/0.png", "photos/0.tif"], MASKS, "several photos at hand could be 0.jpg"),
        (PHOTOS, MASKS[:2], "another set of masks: its set has 8 and there are 2, and .*png"),
        (PHOTOS, [*MASKS, "irregular_masks/more.png"], "its set has 8 and there are 9, and some names differ"),
    ],
)
def test_photos_or_masks_that_are_not_the_lists_are_refused(photos: list[str], masks: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match(drawn(), photos, masks)


@pytest.mark.parametrize(("photos", "message"), [(["a\tb.jpg"], "a tab"), (["1.jpg", "1.jpg"], "the photo 1.jpg comes twice")])
def test_names_that_no_list_can_hold(photos: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_pair_list(photos, MASKS, draw_pairs(len(photos), 8, 0), "")


SHIPPED = {
    "celeba": ("bb883c67dc87069707fba4ba9deba2c3d334ddcbaeceeb57a094643243303f1c", [f"{i}.jpg" for i in range(182638, 194638)]),
    "places2": (
        "d59ceba7a21cc2d0b40f4c85e1207d1291774744718b12cb0bfdd13dfa6bd563",
        [f"Places365_val_{i:08d}.jpg" for i in range(1, 12_001)],
    ),
    "celebahq": ("bacba4f24ad48fc0aeaef55adc9782bc2b820ec40af817ac55f7763ea3ba8b8d", [f"{i}.jpg" for i in range(27200, 30000)]),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_lists_of_the_papers_test_sets_ship_and_never_change(name: str) -> None:
    sha256, names = SHIPPED[name]
    shipped = open_pair_list(name, [], [])
    assert shipped.sha256 == sha256 and shipped.photos == tuple(names)
    found = match(shipped, [f"img/{name}" for name in names], PAPER_MASKS)
    np.testing.assert_array_equal(found.masks, draw_pairs(len(names), 12_000, seed=0))
    assert len(set(shipped.masks)) == len(names)


def test_every_protocol_is_tested() -> None:
    assert SHIPPED.keys() == pairs.PROTOCOLS.keys()

"""Masks: one meaning (1 = hole) whatever the file, and drawn strokes that fill every bin of hole
share.
"""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax.config import Config, DataConfig
from spn_jax.data.images import prepare_photo
from spn_jax.data.masks import MASKS_PER_TENTH, TENTHS, draw_strokes, open_masks, open_test_masks, open_train_masks
from spn_jax.errors import InputError

SETTING = "data.train_masks"
HOLE = np.zeros((8, 8), np.uint8)
HOLE[2:5, 3:7] = 1


def open_at(path: Path, size=8, invert=False):
    return open_masks(str(path), size, invert, 0, SETTING)


def load_saved(tmp_path: Path, image: Image.Image, name="m.png", **options) -> np.ndarray:
    image.save(tmp_path / name)
    return open_at(tmp_path, **options).load(0)


def png(hole: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(hole.astype(bool)).save(data, "png")
    return data.getvalue()


def many_masks(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 2, (32, 32), np.uint8) for i in range(count)]


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "LA"])
def test_white_is_the_hole_in_every_mode(tmp_path, mode):
    image = Image.fromarray(HOLE.astype(bool)).convert("L").convert(mode)
    np.testing.assert_array_equal(load_saved(tmp_path, image), HOLE[..., None])


def test_sixteen_bit_mask(tmp_path):
    np.testing.assert_array_equal(load_saved(tmp_path, Image.fromarray(HOLE.astype(np.uint16) * 65535)), HOLE[..., None])


def test_mask_is_uint8_with_one_channel(tmp_path):
    mask = load_saved(tmp_path, Image.fromarray(HOLE * 255))
    assert (mask.dtype, mask.shape) == (np.uint8, (8, 8, 1))


def test_threshold_is_half_of_the_range(tmp_path):
    pixels = np.array([[0, 127], [128, 255]], np.uint8)
    np.testing.assert_array_equal(load_saved(tmp_path, Image.fromarray(pixels), size=2)[..., 0], [[0, 0], [1, 1]])


def test_threshold_is_half_of_a_sixteen_bit_range(tmp_path):
    pixels = np.array([[0, 32767], [32768, 65535]], np.uint16)
    np.testing.assert_array_equal(load_saved(tmp_path, Image.fromarray(pixels), size=2)[..., 0], [[0, 0], [1, 1]])


def test_invert_takes_black_as_the_hole(tmp_path):
    np.testing.assert_array_equal(load_saved(tmp_path, Image.fromarray((1 - HOLE) * 255), invert=True), HOLE[..., None])


@pytest.mark.parametrize("invert", [False, True])
def test_transparent_parts_are_no_hole(tmp_path, invert):
    painted = np.where(HOLE, 0 if invert else 255, 100)
    layer = np.dstack([painted, painted, painted, HOLE * 255]).astype(np.uint8)
    np.testing.assert_array_equal(load_saved(tmp_path, Image.fromarray(layer), invert=invert), HOLE[..., None])


def test_resize_is_nearest_neighbour(tmp_path):
    large = Image.fromarray(np.kron(HOLE, np.ones((4, 4), np.uint8)) * 255)
    np.testing.assert_array_equal(load_saved(tmp_path, large), HOLE[..., None])


def test_black_mask_is_an_error_with_its_name(tmp_path):
    with pytest.raises(
        InputError,
        match=r"data\.train_masks: mask .*m\.png has no hole: no pixel is white, the brightest has 0 of 255; .*data\.invert_masks=true",
    ):
        load_saved(tmp_path, Image.new("L", (8, 8)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.uint8(1), "the brightest has 1 of 255; if 1 marks the hole, save the masks with 255 in its place"),
        (np.uint8(100), "the brightest has 100 of 255; take it out of the set"),
        (np.uint16(255), "the brightest has 255 of 65535; if 255 marks the hole, save the masks with 65535 in its place"),
    ],
)
def test_masks_of_other_values_are_told_what_their_values_are(tmp_path, values, said):
    with pytest.raises(InputError, match=rf"m\.png has no hole: no pixel is white, {said}"):
        load_saved(tmp_path, Image.fromarray(HOLE * values))


def test_white_mask_is_an_error_when_inverted(tmp_path):
    with pytest.raises(InputError, match=r"no pixel is black, the darkest has 255 of 255; .*data\.invert_masks=false"):
        load_saved(tmp_path, Image.new("L", (8, 8), 255), invert=True)


def test_another_aspect_ratio_is_an_error_with_both_sizes(tmp_path):
    with pytest.raises(InputError, match=r"m\.png is 12 x 8 pixels, the photos are 8 x 8"):
        load_saved(tmp_path, Image.new("L", (12, 8), 255))


WIDE = np.zeros((8, 16), np.uint8)
WIDE[2:5, 5:9] = 1


@pytest.mark.parametrize(
    ("crop", "rule", "expected"),
    [
        ("none", "as_photos", WIDE[:, 1::2]),
        ("center", "as_photos", WIDE[:, 4:12]),
        ("random", "as_photos", WIDE[:, 4:12]),
        ("center", "squeeze", WIDE[:, 1::2]),
        ("none", "center", WIDE[:, 4:12]),
    ],
)
def test_masks_that_are_not_square_are_fitted_by_the_named_rule(tmp_path, crop, rule, expected):
    Image.fromarray(WIDE * 255).save(tmp_path / "m.png")
    data = DataConfig(train_masks=str(tmp_path), test_masks=str(tmp_path), image_size=8, crop=crop, mask_fit=rule)
    for masks in open_train_masks(Config(data=data)), open_test_masks(Config(data=data)):
        np.testing.assert_array_equal(masks.load(0)[..., 0], expected)


def test_masks_are_cut_where_the_photos_are(tmp_path):
    photo = np.repeat(WIDE[..., None], 3, axis=2) * 255
    Image.fromarray(WIDE * 255).save(tmp_path / "m.png")
    masks = open_masks(str(tmp_path), 8, False, 0, SETTING, "center")
    np.testing.assert_array_equal(masks.load(0) * 255, prepare_photo(photo, 8, "center", "bicubic")[..., :1])


def test_a_hole_that_the_cut_loses_is_an_error(tmp_path):
    hole = np.zeros((8, 16), np.uint8)
    hole[:, 0] = 255
    Image.fromarray(hole).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png has its hole outside the centred square .* 16 x 8 pixels; .*data\.mask_fit=squeeze"):
        open_masks(str(tmp_path), 8, False, 0, SETTING, "center").load(0)
    assert open_masks(str(tmp_path), 16, False, 0, SETTING, "squeeze").load(0).any()


def test_the_refusal_names_the_rule(tmp_path):
    data = DataConfig(train_masks=str(tmp_path), image_size=8, mask_fit="refuse")
    Image.fromarray(WIDE * 255).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png is 16 x 8 pixels, .* set data\.mask_fit=as_photos"):
        open_train_masks(Config(data=data)).load(0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_fingerprint_is_of_names_and_sizes(tmp_path, kind):
    files = {"a.png": png(HOLE), "b.png": png(1 - HOLE)}

    def fingerprint(files: dict[str, bytes]) -> str:
        if kind == "zip":
            return open_at(write_zip(tmp_path / "m.zip", files)).fingerprint()
        (tmp_path / "m").mkdir(exist_ok=True)
        for name, data in files.items():
            (tmp_path / "m" / name).write_bytes(data)
        return open_at(tmp_path / "m").fingerprint()

    before = fingerprint(files)
    assert fingerprint(files) == before
    assert fingerprint(files | {"b.png": png(HOLE) + b"more"}) != before


def test_broken_mask_is_an_error_with_its_name(tmp_path):
    (tmp_path / "m.png").write_bytes(png(HOLE)[:40])
    with pytest.raises(InputError, match=r"m\.png cannot be read as an image"):
        open_at(tmp_path).load(0)


def test_folder_without_masks_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"data\.train_masks: folder .* holds no mask; looked there and below for \.png"):
        open_at(tmp_path)


def test_missing_masks_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"data\.train_masks: .*nowhere\.zip does not exist"):
        open_at(tmp_path / "nowhere.zip")


def test_misspelt_strokes_is_an_error_at_once():
    with pytest.raises(InputError, match="stroke does not exist"):
        open_at(Path("stroke"))


def test_missing_entries_of_a_list_are_counted_at_opening(tmp_path):
    (tmp_path / "m.flist").write_text("a.png\nb.png\n")
    with pytest.raises(InputError, match="2 of the 2 files listed do not exist"):
        open_at(tmp_path / "m.flist")


def test_list_keeps_its_order(tmp_path):
    (tmp_path / "b.png").write_bytes(png(HOLE))
    (tmp_path / "a.png").write_bytes(png(1 - HOLE))
    (tmp_path / "m.flist").write_text("b.png\na.png\n")
    np.testing.assert_array_equal(open_at(tmp_path / "m.flist").load(0)[..., 0], HOLE)


def test_zip_with_folders_is_sorted_by_name_and_leaves_out_what_is_no_mask(tmp_path):
    path = write_zip(
        tmp_path / "m.zip",
        {"set/00001.png": png(HOLE), "set/00000.png": png(1 - HOLE), "set/readme.txt": b"x", "__MACOSX/set/._00000.png": b"x"},
    )
    masks = open_at(path)
    assert list(masks.names) == ["set/00000.png", "set/00001.png"]
    np.testing.assert_array_equal(masks.load(1)[..., 0], HOLE)


def test_zip_can_be_read_from_several_threads(tmp_path):
    expected = many_masks(40)
    masks = open_at(write_zip(tmp_path / "m.zip", {f"{i:02d}.png": png(m) for i, m in enumerate(expected)}), size=32)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(masks.load, list(range(40)) * 5))
    np.testing.assert_array_equal(np.stack(loaded)[..., 0], expected * 5)


def test_zip_without_masks_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"m\.zip holds no mask"):
        open_at(write_zip(tmp_path / "m.zip", {"readme.txt": b"x"}))


def test_truncated_zip_is_an_error(tmp_path):
    path = write_zip(tmp_path / "m.zip", {"a.png": png(HOLE)})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"m\.zip cannot be read as a zip archive"):
        open_at(path)


def test_damaged_file_in_a_zip_is_an_error_with_its_name(tmp_path):
    path = write_zip(tmp_path / "m.zip", {"a.png": png(HOLE)})
    data = bytearray(path.read_bytes())
    data[50] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"mask a\.png in .*m\.zip cannot be unpacked"):
        open_at(path).load(0)


@pytest.mark.parametrize("size", [8, 32, 64, 256])
@pytest.mark.parametrize("tenth", range(TENTHS))
def test_drawn_masks_are_in_their_tenth(size, tenth):
    masks = open_masks("strokes", size, False, 5, SETTING)
    indices = np.arange(tenth * MASKS_PER_TENTH, (tenth + 1) * MASKS_PER_TENTH, 67)
    pixels = [np.count_nonzero(masks.load(i)) for i in indices.tolist()]
    assert tenth * size**2 < 10 * min(pixels) and 10 * max(pixels) <= (tenth + 1) * size**2
    assert set(masks.tenths(indices)) == {tenth}


@pytest.mark.parametrize("tenth", range(TENTHS))
def test_drawn_hole_shares_spread_over_the_tenth(tenth):
    shares = [draw_strokes(tenth * MASKS_PER_TENTH + i, 64, 0).mean() for i in range(300)]
    quarters = np.histogram(shares, 4, (tenth / 10, (tenth + 1) / 10))[0]
    assert quarters.min() > 40  # 75 expected


def test_drawn_mask_is_a_function_of_seed_and_index():
    np.testing.assert_array_equal(draw_strokes(7000, 64, 1), draw_strokes(7000, 64, 1))


def test_another_seed_draws_other_masks():
    assert (draw_strokes(7000, 64, 1) != draw_strokes(7000, 64, 2)).any()


def test_masks_of_one_tenth_differ():
    assert len({draw_strokes(i, 64, 0).tobytes() for i in range(50)}) == 50


def test_drawn_masks_are_strokes_and_not_rectangles():
    # A stroke fills only part of the rectangle around it.
    filled = []
    for i in range(100):
        hole = draw_strokes(i, 128, 0)[..., 0]
        rows, columns = np.nonzero(hole.any(1))[0], np.nonzero(hole.any(0))[0]
        filled.append(hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean())
    assert np.median(filled) < 0.5


def test_invert_leaves_drawn_masks_alone():
    inverted, plain = (open_masks("strokes", 32, invert, 0, SETTING).load(0) for invert in (True, False))
    np.testing.assert_array_equal(inverted, plain)


def test_there_are_as_many_drawn_masks_as_in_the_papers_set():
    assert len(open_masks("strokes", 32, False, 0, SETTING)) == 12000


def test_the_number_tells_the_tenth_in_the_papers_set(tmp_path):
    names = {f"irregular/{i:05d}.png": b"" for i in range(TENTHS * MASKS_PER_TENTH)}
    masks = open_at(write_zip(tmp_path / "m.zip", names))
    assert list(masks.tenths(np.array([0, 1999, 2000, 11_999]))) == [0, 0, 1, 5]


def test_the_number_tells_nothing_in_any_other_set(tmp_path):
    (tmp_path / "00000.png").write_bytes(png(HOLE))
    assert open_at(tmp_path).tenths(np.array([0])) is None


def test_a_hole_too_thin_for_the_photos_size_leaves_a_mask_of_zeros(tmp_path):
    thin = np.zeros((64, 64))
    thin[0] = 1  # nearest neighbour takes other rows
    assert not load_saved(tmp_path, Image.fromarray(thin.astype(bool))).any()


@pytest.mark.parametrize("kind", ["objects", "drawn"])
def test_every_drawn_kind_fills_its_tenth_and_follows_from_the_seed(kind):
    drawn, again, other = (open_masks(kind, 32, False, seed, SETTING) for seed in (0, 0, 1))
    assert drawn.ordered and len(drawn) == TENTHS * MASKS_PER_TENTH
    for i in range(0, len(drawn), 397):
        mask = drawn.load(i)
        assert (mask.dtype, mask.shape) == (np.uint8, (32, 32, 1)) and set(np.unique(mask)) <= {0, 1}
        assert i // MASKS_PER_TENTH / 10 < mask.mean() <= (i // MASKS_PER_TENTH + 1) / 10
        np.testing.assert_array_equal(mask, again.load(i))
    assert any((drawn.load(i) != other.load(i)).any() for i in range(0, len(drawn), 397))


def test_objects_are_solid_and_strokes_are_not():
    def edge_share(mask: np.ndarray) -> float:
        return float(np.mean(np.diff(mask[..., 0].astype(int), axis=0) != 0))

    middle = range(5 * MASKS_PER_TENTH // 2, 7 * MASKS_PER_TENTH // 2, 100)
    objects, strokes = (
        np.mean([edge_share(open_masks(kind, 64, False, 0, SETTING).load(i)) for i in middle]) for kind in ("objects", "strokes")
    )
    assert objects < 0.6 * strokes


def test_drawn_takes_strokes_and_objects_in_turn():
    both, strokes, objects = (open_masks(kind, 32, False, 3, SETTING) for kind in ("drawn", "strokes", "objects"))
    for i in (100, 101, 4000, 4001):
        np.testing.assert_array_equal(both.load(i), (objects if i % 2 else strokes).load(i))

"""Reading photos: what is found, in what order, what every kind of file becomes, and what is said
when one is broken.
"""

import dataclasses
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from spn_jax.config import Config, DataConfig, TeacherConfig
from spn_jax.data.images import SelectedPhotos, open_photos, prepare_photo, teacher_photo
from spn_jax.errors import InputError

SETTING = "data.train_photos"


def noise(height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray, mode=None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def load_only(folder: Path) -> np.ndarray:
    return open_photos(str(folder), SETTING).load(0)


def write_records(path: Path, photos: list[bytes]) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for photo in photos:
        writer.write(photo)
    writer.close()
    return path


def encoded(folder: Path, count: int) -> list[bytes]:
    return [save(folder / "encoded" / f"{i}.png", noise(seed=i)).read_bytes() for i in range(count)]


def test_folder_is_searched_through_in_order_of_relative_paths(tmp_path):
    for name in ("b.png", "a/2.JPG", "a/10.png", "c.webp"):
        save(tmp_path / name, noise())
    assert list(open_photos(str(tmp_path), SETTING).names) == ["a/10.png", "a/2.JPG", "b.png", "c.webp"]


def test_folder_may_hold_other_and_hidden_files(tmp_path):
    save(tmp_path / "a.png", noise())
    (tmp_path / "list.txt").write_text("x")
    (tmp_path / "._a.png").write_bytes(b"not an image")
    assert list(open_photos(str(tmp_path), SETTING).names) == ["a.png"]


def test_linked_folders_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "a.png", noise())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    assert list(open_photos(str(tmp_path / "photos"), SETTING).names) == ["link/a.png"]


@pytest.mark.parametrize(("link", "target"), [("self", "."), ("b/up", ".."), ("a_link_to_b", "b")])
def test_links_to_folders_searched_anyway_give_no_copies(tmp_path, link, target):
    for name in ("a.png", "b/c.png"):
        save(tmp_path / name, noise())
    (tmp_path / link).symlink_to(target)
    assert list(open_photos(str(tmp_path), SETTING).names) == ["a.png", "b/c.png"]


def test_png_comes_back_bit_identical(tmp_path):
    save(tmp_path / "a.png", noise(7, 9))
    np.testing.assert_array_equal(load_only(tmp_path), noise(7, 9))


def test_grey_photo_has_three_equal_channels(tmp_path):
    grey = noise()[..., 0]
    save(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(load_only(tmp_path), np.repeat(grey[..., None], 3, 2))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    save(tmp_path / "a.png", np.array([[0, 257, 257 * 100, 65535]], np.uint16))
    np.testing.assert_array_equal(load_only(tmp_path)[0, :, 0], [0, 1, 100, 255])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_rounded_to_eight_in_grey_and_colour_alike(tmp_path, channels, suffix):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    if channels == 4:
        deep[..., 3] = 65535
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep[..., [2, 1, 0, 3][:channels]] if channels > 1 else deep)
    expected = np.rint(deep[..., :3] / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_only(tmp_path), np.broadcast_to(expected, (9, 7, 3)))


def test_sixteen_bit_colours_are_upright(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    data = (tmp_path / "deep.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    (tmp_path / "deep.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    np.testing.assert_array_equal(load_only(tmp_path), np.rot90(np.rint(deep / 257).astype(np.uint8), -1))


def test_transparent_parts_become_white(tmp_path):
    pixels = np.concatenate([noise(), np.full((8, 8, 1), 255, np.uint8)], 2)
    pixels[0, 0, 3] = 0
    save(tmp_path / "a.png", pixels)
    expected = pixels[..., :3].copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(load_only(tmp_path), expected)


def test_transparent_palette_colour_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(load_only(tmp_path), [[[255, 255, 255], [40, 50, 60]]])


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    save(tmp_path / "a.png", noise(4, 6), exif=exif)
    np.testing.assert_array_equal(load_only(tmp_path), np.rot90(noise(4, 6), -1))


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    save(tmp_path / "a.jpg", np.full((16, 16, 3), (200, 40, 90), np.uint8), mode="CMYK", quality=100)
    assert np.abs(load_only(tmp_path).astype(int) - (200, 40, 90)).max() <= 4


def test_floating_point_photo_is_refused(tmp_path):
    save(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"a\.tif has floating-point pixels"):
        load_only(tmp_path)


def test_text_named_as_photo_is_an_error_with_its_name(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(InputError, match=r"data\.train_photos: photo .*a\.jpg cannot be read as an image.*replace it"):
        load_only(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_photo_is_an_error_with_its_name(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"a\.{suffix} cannot be read as an image"):
        load_only(tmp_path)


def test_photo_deleted_after_opening_is_an_error_with_its_name(tmp_path):
    photos = open_photos(str(save(tmp_path / "a.png", noise()).parent), SETTING)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        photos.load(0)


def test_folder_without_photo_says_what_was_looked_for(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(InputError, match=r"data\.train_photos: folder .* holds no photo; looked .* \.png \.jpg"):
        open_photos(str(tmp_path), SETTING)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.train_photos: .*nowhere does not exist"):
        open_photos(str(tmp_path / "nowhere"), SETTING)


def test_empty_setting_says_how_to_set_it():
    with pytest.raises(InputError, match=r"data\.train_photos is not set; add data\.train_photos=PATH"):
        open_photos("", SETTING)


def test_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.png is none of these: a folder, a \.flist"):
        open_photos(str(save(tmp_path / "a.png", noise())), SETTING)


def test_flist_keeps_its_order_and_takes_relative_and_absolute_paths(tmp_path):
    save(tmp_path / "photos" / "a.png", noise(seed=1))
    other = save(tmp_path / "z.png", noise(seed=2))
    (tmp_path / "photos.flist").write_text(f"{other}\n\nphotos/a.png\n")
    photos = open_photos(str(tmp_path / "photos.flist"), SETTING)
    np.testing.assert_array_equal(np.stack([photos.load(0), photos.load(1)]), [noise(seed=2), noise(seed=1)])


def test_missing_entries_of_a_flist_are_counted_at_opening(tmp_path):
    save(tmp_path / "a.png", noise())
    (tmp_path / "l.flist").write_text("a.png\n" + "\n".join(f"no{i}.png" for i in range(5)))
    with pytest.raises(InputError, match=r"5 of the 6 files listed do not exist: .*no0\.png, .*no1\.png, .*no2\.png, \.\.\.;"):
        open_photos(str(tmp_path / "l.flist"), SETTING)


def test_flist_from_windows_is_read(tmp_path):
    for name in ("a.png", "b c.png", "d.png"):
        save(tmp_path / name, noise())
    (tmp_path / "l.flist").write_bytes("\ufeffa.png\r\n\"b c.png\"\r\n'd.png'\r\n".encode())
    assert list(open_photos(str(tmp_path / "l.flist"), SETTING).names) == ["a.png", "b c.png", "d.png"]
    (tmp_path / "l.flist").write_text("sub\\a.png\n")
    with pytest.raises(InputError, match=r"1 of the 1 file listed does not exist: .*separated by / here"):
        open_photos(str(tmp_path / "l.flist"), SETTING)


def test_flist_that_names_a_folder_says_so(tmp_path):
    save(tmp_path / "photos" / "a.png", noise())
    (tmp_path / "l.flist").write_text("photos\n")
    with pytest.raises(InputError, match=r"1 of the 1 path listed is a folder: .*/photos; .* set data\.train_photos to the folder itself"):
        open_photos(str(tmp_path / "l.flist"), SETTING)


def test_pictures_beside_records_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    write_records(tmp_path / "set" / "p.array_record", encoded(tmp_path, 2))
    save(tmp_path / "set" / "previews" / "1.png", noise())
    with pytest.raises(InputError, match=r"holds 1 ArrayRecord file and 1 picture, such as previews/1\.png, .* move one kind"):
        open_photos(str(tmp_path / "set"), SETTING)
    # what the message proposes
    assert len(open_photos(f"{tmp_path}/set/*.array_record*", SETTING)) == 2


def test_empty_flist_is_an_error(tmp_path):
    (tmp_path / "l.flist").write_text("\n")
    with pytest.raises(InputError, match=r"l\.flist lists no file"):
        open_photos(str(tmp_path / "l.flist"), SETTING)


def test_records_of_several_files_come_in_order(tmp_path):
    photos = encoded(tmp_path, 5)
    write_records(tmp_path / "p.array_record-00000-of-00002", photos[:3])
    write_records(tmp_path / "p.array_record-00001-of-00002", photos[3:])
    source = open_photos(str(tmp_path / "p.array_record*"), SETTING)
    np.testing.assert_array_equal(np.stack([source.load(i) for i in range(len(source))]), [noise(seed=i) for i in range(5)])


def test_folder_of_records_is_the_same_as_their_glob(tmp_path):
    (tmp_path / "records").mkdir()
    write_records(tmp_path / "records" / "p.array_record", encoded(tmp_path, 2))
    folder, pattern = str(tmp_path / "records"), str(tmp_path / "records" / "*")
    assert open_photos(folder, SETTING).fingerprint() == open_photos(pattern, SETTING).fingerprint()


def test_records_can_be_read_from_several_threads(tmp_path):
    source = open_photos(str(write_records(tmp_path / "p.array_record", encoded(tmp_path, 8))), SETTING)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(source.load, list(range(8)) * 8))
    np.testing.assert_array_equal(np.stack(loaded), [noise(seed=i) for i in range(8)] * 8)


def test_undecodable_record_is_named(tmp_path):
    source = open_photos(str(write_records(tmp_path / "p.array_record", [*encoded(tmp_path, 1), b"no image"])), SETTING)
    with pytest.raises(InputError, match=r"record 1 of .*p\.array_record cannot be read as an image"):
        source.load(1)


def test_truncated_record_file_is_an_error_at_opening(tmp_path):
    path = write_records(tmp_path / "p.array_record", encoded(tmp_path, 2))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"p\.array_record cannot be read as ArrayRecord"):
        open_photos(str(path), SETTING)


def test_pattern_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no file matches .*p\.array_record\*"):
        open_photos(str(tmp_path / "p.array_record*"), SETTING)


def test_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path):
    save(tmp_path / "a" / "x.png", noise())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_photos(str(tmp_path / "a"), SETTING).fingerprint() == open_photos(str(tmp_path / "b"), SETTING).fingerprint()


def test_fingerprint_notices_a_photo_of_another_size(tmp_path):
    save(tmp_path / "x.png", noise())
    before = open_photos(str(tmp_path), SETTING).fingerprint()
    save(tmp_path / "x.png", noise(9, 9))
    assert open_photos(str(tmp_path), SETTING).fingerprint() != before


def test_fingerprint_notices_a_renamed_photo(tmp_path):
    save(tmp_path / "x.png", noise())
    before = open_photos(str(tmp_path), SETTING).fingerprint()
    (tmp_path / "x.png").rename(tmp_path / "y.png")
    assert open_photos(str(tmp_path), SETTING).fingerprint() != before


def test_photo_of_the_wanted_size_is_untouched():
    np.testing.assert_array_equal(prepare_photo(noise(16, 16), 16, "none", "bicubic"), noise(16, 16))


def test_center_crop_takes_the_middle_square():
    photo = noise(21, 16)
    np.testing.assert_array_equal(prepare_photo(photo, 16, "center", "bicubic"), photo[2:18])


def test_box_filter_averages():
    photo = noise(8, 8)
    means = photo.reshape(4, 2, 4, 2, 3).mean((1, 3))
    # Pillow rounds after each axis
    assert np.abs(prepare_photo(photo, 4, "none", "box") - means).max() <= 1


def settings(photo: str) -> Config:
    return Config(data=DataConfig(image_size=16), teacher=dataclasses.replace(TeacherConfig(), photo=photo))  # type: ignore[arg-type]


def test_teacher_sees_the_original_at_twice_the_size():
    np.testing.assert_array_equal(teacher_photo(noise(32, 32), settings("original")), noise(32, 32))


def test_upsampled_teacher_photo_knows_no_more_than_the_small_one():
    small = prepare_photo(noise(32, 32), 16, "none", "bicubic")
    np.testing.assert_array_equal(teacher_photo(noise(32, 32), settings("upsampled")), teacher_photo(small, settings("upsampled")))


def test_photos_can_be_selected_in_another_order(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", noise(seed=i))
    photos = open_photos(str(tmp_path), SETTING)
    selected = SelectedPhotos(photos, np.array([2, 0]))
    assert selected.names == ["2.png", "0.png"] and len(selected) == 2
    np.testing.assert_array_equal(selected.load(0), noise(seed=2))
    assert len({source.fingerprint() for source in (photos, selected, SelectedPhotos(photos, [0, 2]))}) == 3

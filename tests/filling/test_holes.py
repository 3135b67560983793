"""Where a mask has its hole: the border between black and white, values of all types, and what is
taken for a mistake.
"""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from spn_jax.errors import InputError
from spn_jax.filling.holes import hole_of_array, hole_of_picture, notes_on_size
from spn_jax.filling.photos import as_mask, examine_mask


def both(low: float, high: float, dtype: Any) -> np.ndarray:
    return np.array([[low, high]], dtype)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    "array",
    [
        both(0, 1, bool),
        both(0, 1, np.uint8),
        both(127, 128, np.uint8),
        both(0, 1, np.uint16),
        both(32767, 32768, np.uint16),
        both(0, 1, np.int64),
        both(127, 128, np.int64),
        both(32767, 32768, np.int32),
        both(0.499, 0.5, np.float32),
        both(0, 1, float),
    ],
    ids=lambda array: f"{array.dtype} {array.max()}",
)
def test_half_of_the_range_is_white(array: np.ndarray, invert: bool) -> None:
    for given in array, array[..., None], array[..., None].repeat(3, 2):
        hole, _ = hole_of_array(given, "it", invert, "white")
        np.testing.assert_array_equal(hole, [[invert, not invert]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_transparent_is_no_hole_or_the_hole(dtype: Any) -> None:
    most = np.iinfo(dtype).max
    values, opacity = np.array([[0, most, 0, most]], dtype), np.array([[most, most, 0, 0]], dtype)
    for array in np.stack([values, opacity], -1), np.stack([values, values, values, opacity], -1):
        for invert, wanted in (False, [[0, 1, 0, 0]]), (True, [[1, 0, 0, 0]]):
            np.testing.assert_array_equal(hole_of_array(array, "it", invert, "white")[0], wanted)
            if dtype == np.uint8:
                image = Image.fromarray(array)
                np.testing.assert_array_equal(hole_of_picture(image, "it", invert, "white")[0], wanted)
        for invert in False, True:
            np.testing.assert_array_equal(hole_of_array(array, "it", invert, "alpha")[0], [[invert, invert, not invert, not invert]])


def test_colours_are_weighed_as_eyes_do() -> None:
    primaries = np.diag([255, 255, 255]).astype(np.uint8)[None]
    np.testing.assert_array_equal(hole_of_array(primaries, "it", False, "white")[0], [[False, True, False]])
    np.testing.assert_array_equal(hole_of_picture(Image.fromarray(primaries), "it", False, "white")[0], [[False, True, False]])


@pytest.mark.parametrize(
    ("brightest", "dtype", "refused"),
    [
        (0, np.uint8, False),
        (2, np.uint8, False),  # as JPEG makes of black
        (15, np.uint8, False),
        (16, np.uint8, True),
        (127, np.uint8, True),
        (255, np.uint16, True),
        (254, np.uint16, False),
        (2000, np.uint16, False),
        (4096, np.uint16, True),
    ],
)
def test_a_dark_mask_is_empty_and_a_grey_one_a_mistake(brightest: int, dtype: Any, refused: bool) -> None:
    array = np.array([[0, brightest, 0, 0, 0, 0]], dtype)
    for invert in False, True:
        if refused:
            with pytest.raises(InputError, match=f"it marks no hole: its brightest value is {brightest} of {np.iinfo(dtype).max}"):
                hole_of_array(array, "it", invert, "white")
        else:
            hole, notes = hole_of_array(array, "it", invert, "white")
            assert (hole == invert).all() and not notes


def test_a_mask_of_0_and_1_is_one_as_an_array_and_a_mistake_as_a_picture() -> None:
    array = both(0, 1, np.uint8)
    np.testing.assert_array_equal(as_mask(array, (1, 2))[..., 0], [[0, 1]])
    with pytest.raises(InputError, match="its brightest value is 1 of 255, .* a mask of 0 and 1, so multiply its values by 255"):
        as_mask(Image.fromarray(array), (1, 2))


@pytest.mark.parametrize(("grey", "noted"), [(25, False), (26, True)])
def test_many_grey_pixels_have_a_note(grey: int, noted: bool) -> None:
    array = np.zeros((10, 10), np.uint8)
    array[5:] = 255
    array.ravel()[:grey] = 100
    _, notes = hole_of_array(array, "it", False, "white")
    assert notes == (("26% of it is neither black nor white; the brighter half of the range counts as white",) if noted else ())
    array.ravel()[:grey] = 31  # nearly black
    assert not hole_of_array(array, "it", False, "white")[1]
    array.ravel()[:grey] = 224  # nearly white
    assert not hole_of_array(array, "it", False, "white")[1]


@pytest.mark.parametrize(("share", "noted"), [(0, True), (0.01, False), (0.8, False), (0.81, True), (1, True)])
def test_a_hole_that_is_nothing_or_nearly_all_has_a_note(share: float, noted: bool) -> None:
    mask = (np.arange(100) < 100 * share).astype(np.uint8).reshape(10, 10, 1)
    for invert, hint in (False, "use --invert-mask if the hole is black"), (True, "leave out --invert-mask if the hole is white"):
        notes = notes_on_size(mask, "it", invert)
        assert len(notes) == noted and all(hint in note for note in notes)
    if share > 0.8:
        assert f"the hole in it is {share:.0%} of the photo" in notes[0]


def test_an_erased_photo_is_no_mask_but_its_transparency_is() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 4), np.uint8)
    photo[..., 3] = 255
    photo[5:10, 5:10, 3] = 0
    for source in photo, Image.fromarray(photo):
        with pytest.raises(InputError, match="looks like a photo whose transparent part is the hole"):
            examine_mask(source, "it", (20, 20))
        mask = as_mask(source, (20, 20), mask_from="alpha")
        assert mask.sum() == 25 and mask[5:10, 5:10].all()
        assert as_mask(source, (20, 20), mask_from="alpha", dilate=1).sum() == 45
    with pytest.raises(InputError, match="it has no transparent part"):
        examine_mask(photo[..., :3], "it", (20, 20), mask_from="alpha")

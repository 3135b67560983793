"""The depth of an AVIF file, from the settings of its codec (AV1's ISO binding, section 2.3.3)."""

import io
from types import SimpleNamespace

import pytest

from spn_jax.filling.formats import bits_of

AVIF = SimpleNamespace(format="AVIF")
# bits of the third byte: more than 8 bits a channel, and then 12 instead of 10
HIGH, TWELVE = 0x40, 0x20


def settings(third: int, first: int = 0x81) -> bytes:
    return b"av1C" + bytes([first, 0, third, 0])


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize(
    ("third", "bits"), [(0, 8), (HIGH, 10), (HIGH | TWELVE, 12), (TWELVE, 8), (0x80, 8), (0x80 | HIGH, 10), (0xFF, 12), (0x9F, 8)]
)
def test_depth_is_told_by_two_bits_wherever_the_settings_lie(third: int, bits: int, before: int) -> None:
    assert bits_of(AVIF, io.BytesIO(bytes(before) + settings(third) + b"pixels")) == bits


def test_the_deepest_of_colours_and_opacity_counts_and_pixels_that_look_like_settings_do_not() -> None:
    for parts in (settings(0) + settings(HIGH), settings(HIGH) + settings(0)):
        assert bits_of(AVIF, io.BytesIO(parts)) == 10
    assert bits_of(AVIF, io.BytesIO(settings(HIGH, first=0x80) + settings(HIGH, first=0x01))) == 8


@pytest.mark.parametrize("length", range(len(settings(HIGH)) + 1))
def test_settings_that_are_cut_off_are_none(length: int) -> None:
    assert bits_of(AVIF, io.BytesIO(settings(HIGH)[:length])) == (10 if length >= 7 else 8)

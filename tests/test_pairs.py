import numpy as np

from spn_jax.pairs import draw_pairs


def test_a_mask_comes_twice_only_when_all_have_come() -> None:
    pairs = draw_pairs(photos=25, masks=10, seed=0)
    assert pairs.dtype == np.int32
    assert sorted(pairs[:10]) == sorted(pairs[10:20]) == list(range(10))
    assert len(set(pairs[20:])) == 5
    assert list(pairs[:10]) != list(pairs[10:20])


def test_pairs_are_published_numbers() -> None:
    assert list(draw_pairs(photos=8, masks=12_000, seed=0)) == [4069, 3851, 10228, 4539, 2521, 1598, 1497, 4386]


def test_first_pairs_do_not_depend_on_the_number_of_photos() -> None:
    np.testing.assert_array_equal(draw_pairs(7, 20, seed=3), draw_pairs(50, 20, seed=3)[:7])


def test_pairs_depend_on_the_seed() -> None:
    assert list(draw_pairs(20, 20, seed=0)) != list(draw_pairs(20, 20, seed=1))

"""Training steps of the full-size probabilistic model; a file of its own, so that it runs beside
the other parity tests.
"""

from pathlib import Path

import pytest

from tests.training.test_parity import assert_first_step_is_exact, assert_three_steps_are_exact, steps_in_float64


def test_first_training_step_in_float64(tmp_path: Path) -> None:
    """Tiling, posterior, hinge, feature matching, perceptual, diversity and KL loss, in their
    released forms.
    """
    assert_first_step_is_exact(steps_in_float64("PROBABILISTIC", 1, tmp_path))


@pytest.mark.long
def test_three_training_steps_in_float64(tmp_path: Path) -> None:
    """What the first cannot show: the updates, and what the next steps make of them."""
    assert_three_steps_are_exact(steps_in_float64("PROBABILISTIC", 3, tmp_path))

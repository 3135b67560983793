"""Training steps of the full-size probabilistic model; a file of its own, so that it runs beside the other parity tests."""

from pathlib import Path

from tests.test_parity import assert_exact, three_steps_in_float64


def test_three_training_steps_in_float64(tmp_path: Path) -> None:
    """Tiling, posterior, hinge, feature matching, perceptual, diversity and KL loss, in their released forms."""
    assert_exact(three_steps_in_float64("PROBABILISTIC", tmp_path))

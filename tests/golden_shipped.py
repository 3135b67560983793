"""A program: writes what the shipped model makes of a small photo to tests/golden/shipped.

`python -m tests.golden_shipped`, after other weights were packed. Photo and hole are cut from the
model's own scenes.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from spn_jax.checkpoints.store import checkpoint_sha256
from spn_jax.filling.inpainter import Inpainter
from spn_jax.pretrained.catalogue import DEFAULT, pretrained_file

FOLDER = Path(__file__).parent / "golden" / "shipped"
SCENES = pretrained_file(DEFAULT).parent / "scenes"
BOX = (380, 230, 508, 326)  # of the scene fields2: two trees in the mist


def photo_and_hole() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (96, 128, 3) and bool (96, 128)."""
    photo, hole = (np.asarray(Image.open(FOLDER / name)) for name in ("photo.png", "hole.png"))
    return photo, hole > 0


def weights_sha256() -> str:
    """Of the model file that ships."""
    return checkpoint_sha256(pretrained_file(DEFAULT))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    Image.open(SCENES / "photos" / "fields2.jpg").crop(BOX).save(FOLDER / "photo.png")
    Image.open(SCENES / "masks" / "fields2.png").convert("L").crop(BOX).save(FOLDER / "hole.png")
    filled = Inpainter.load()(*photo_and_hole())[0]
    Image.fromarray(filled).save(FOLDER / "filled.png")
    (FOLDER / "weights.sha256").write_text(f"{weights_sha256()}\n")
    print(f"written: {FOLDER}")


if __name__ == "__main__":
    main()

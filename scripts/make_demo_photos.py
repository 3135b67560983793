"""Cuts natural photos that ship inside scikit-image into training and test tiles, for the demo.

    python scripts/make_demo_photos.py --output runs/demo/photos --size 128

The split is by scene: the photos of the test scenes are held out whole, and the two views of the stereo pair are one scene.
Training tiles overlap and come at two scales, test tiles do neither. `scenes.json` tells where every tile was cut.
"""

import argparse
import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from spn_jax.errors import InputError, run_command

TEST_EDGE = 100  # pixels of the source photo


@dataclasses.dataclass(frozen=True)
class Scene:
    """Photos that show the same thing, and the edges, in pixels of the photo, of the squares cut from them."""

    name: str
    photos: tuple[str, ...]
    split: str
    edges: tuple[int, ...] = (TEST_EDGE,)


SCENES = (
    Scene("motorcycle", ("motorcycle_left.png", "motorcycle_right.png"), "train", (128, 160, 256)),
    Scene("hubble_deep_field", ("hubble_deep_field.jpg",), "train", (256, 400)),
    Scene("rocket", ("rocket.jpg",), "train", (128, 160, 256)),
    Scene("coffee", ("coffee.png",), "train", (128, 160, 256)),
    Scene("camera", ("camera.png",), "train", (256,)),
    Scene("coins", ("coins.png",), "train", (256,)),
    Scene("grass", ("grass.png",), "train", (256,)),
    Scene("astronaut", ("astronaut.png",), "test"),
    Scene("chelsea", ("chelsea.png",), "test"),
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, makes the tiles, says what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make, with train/, test/ and scenes.json")
    parser.add_argument("--size", type=int, default=128, help="edge of the tiles in pixels (default 128)")
    options = parser.parse_args(arguments)
    counts = make_demo_photos(options.output, options.size)
    print(f"{options.output}: {counts['train']} training tiles, {counts['test']} test tiles, {options.size} x {options.size} pixels")


def make_demo_photos(output: Path, size: int) -> dict[str, int]:
    """Writes the tiles to `output`, which appears only when complete and replaces what an earlier call made; returns tiles by split.

    Raises:
        InputError: scikit-image is missing, `size` is not positive, or `output` is something else than demo photos.
    """
    if size <= 0:
        raise InputError(f"--size {size} must be greater than 0")
    if output.exists() and not (output / "scenes.json").is_file():
        raise InputError(f"--output {output} exists and was not made by this program; choose another folder")
    photos = photo_folder()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as work:
        made = Path(work, "made")
        tiles = _write_tiles(photos, made, size)
        (made / "scenes.json").write_text(json.dumps(tiles, indent=1) + "\n")
        if output.exists():
            output.rename(Path(work, "replaced"))
        made.rename(output)
    return {split: sum(tile["split"] == split for tile in tiles.values()) for split in ("train", "test")}


def photo_folder() -> Path:
    """The folder with scikit-image's own photos."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise InputError("the demo's photos ship inside scikit-image, which is not installed; run: pip install scikit-image")
    return Path(package.origin).parent / "data"


def _write_tiles(photos: Path, output: Path, size: int) -> dict[str, dict]:
    """Where each tile was cut, by the tile's path in `output`."""
    tiles = {}
    for scene in SCENES:
        (output / scene.split).mkdir(parents=True, exist_ok=True)
        for photo in scene.photos:
            with Image.open(photos / photo) as file:
                image = file.convert("RGB")
            for number, box in enumerate(_boxes(image.size, scene)):
                name = f"{scene.split}/{Path(photo).stem}_{number:03d}.png"
                image.crop(box).resize((size, size), Image.Resampling.LANCZOS).save(output / name)
                tiles[name] = {"scene": scene.name, "split": scene.split, "photo": photo, "box": box}
    return tiles


def _boxes(photo: tuple[int, int], scene: Scene) -> Iterator[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the squares, side by side in the middle of the photo; half overlapping for training."""
    for edge in scene.edges:
        step = edge // 2 if scene.split == "train" else edge
        columns, rows = ((length - edge) // step + 1 for length in photo)
        left, top = ((length - edge - (n - 1) * step) // 2 for length, n in zip(photo, (columns, rows), strict=True))
        for row in range(rows):
            for column in range(columns):
                x, y = left + column * step, top + row * step
                yield x, y, x + edge, y + edge


if __name__ == "__main__":
    run_command(main)

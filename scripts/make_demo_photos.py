"""Cuts natural photos that ship inside scikit-image into training and test tiles, for the demo.

    python scripts/make_demo_photos.py --output runs/demo/photos --size 128

The split is by scene: the photos of the test scenes are held out whole, and the two views of the
stereo pair are one scene. Training tiles overlap and come at two scales; test tiles do neither.
`scenes.json` records where every tile was cut. If the folder holds these tiles already, nothing is
done. Files that this program did not make are never deleted.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from spn_jax.errors import InputError, run_command

TEST_EDGE = 100  # in pixels of the source photo


@dataclasses.dataclass(frozen=True)
class Scene:
    """Photos that show the same thing, and the edges of the squares cut from them, in pixels."""

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
    """Parses the command line, makes the tiles, and reports on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make, with train/, test/ and scenes.json")
    parser.add_argument("--size", type=int, default=128, help="edge of the tiles in pixels (default 128)")
    options = parser.parse_args(arguments)
    counts = make_demo_photos(options.output, options.size)
    print(f"{options.output}: {counts['train']} training tiles, {counts['test']} test tiles, {options.size} x {options.size} pixels")


def make_demo_photos(output: Path, size: int) -> dict[str, int]:
    """Writes the tiles to `output`, which appears only when it is complete, and returns the number
    of tiles by split.

    Tiles of an earlier call are replaced if they differ from the wanted ones, and stay otherwise.

    Args:
        output: the folder; it may be absent, empty or made by an earlier call.
        size: edge of a tile in pixels, at least 1.

    Raises:
        InputError: scikit-image is missing, `size` is not positive, or `output` holds something
            that this program did not make.
    """
    if size <= 0:
        raise InputError(f"--size {size} must be greater than 0")
    photos = photo_folder()
    tiles = wanted_tiles(photos, size)
    if not is_made(output, tiles):
        check_that_nothing_is_lost(output)
        _write(output, photos, tiles, size)
    return {split: sum(tile["split"] == split for tile in tiles.values()) for split in ("train", "test")}


def is_made(output: Path, tiles: dict[str, dict]) -> bool:
    """Returns whether `output` describes these tiles and has all of them."""
    return listed(output) == tiles and all((output / name).is_file() for name in tiles)


def listed(output: Path) -> dict[str, dict]:
    """Returns the content of the folder's scenes.json; empty if this program wrote none."""
    try:
        tiles = json.loads((output / "scenes.json").read_text())
    except (OSError, ValueError):
        return {}
    return tiles if isinstance(tiles, dict) and all(isinstance(tile, dict) for tile in tiles.values()) else {}


def check_that_nothing_is_lost(output: Path) -> None:
    """Raises InputError if `output` exists and holds anything but listed tiles: replacing it would
    delete a user's files.
    """
    if not output.exists():
        return
    if not output.is_dir() or output.is_symlink():
        raise InputError(f"--output {output} is not a folder of its own; choose another one")
    tiles = listed(output)
    known = {output / name for name in (*tiles, "scenes.json")} if tiles else set()
    foreign = sorted(path for path in output.rglob("*") if path not in known and (path.is_symlink() or not path.is_dir()))
    if foreign:
        first, others = foreign[0].relative_to(output), f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(f"--output {output} holds {first}{others}, not made by this program; move that away, or choose another folder")


def _write(output: Path, photos: Path, tiles: dict[str, dict], size: int) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as work:
        made = Path(work, "made")
        _write_tiles(photos, made, tiles, size)
        (made / "scenes.json").write_text(json.dumps(tiles, indent=1) + "\n")
        if output.exists():
            output.rename(Path(work, "replaced"))
        made.rename(output)


def photo_folder() -> Path:
    """Returns the folder with scikit-image's own photos."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise InputError("the demo's photos ship inside scikit-image, which is not installed; run: pip install scikit-image")
    return Path(package.origin).parent / "data"


def wanted_tiles(photos: Path, size: int) -> dict[str, dict]:
    """Returns where each tile is cut and its size, by the tile's path in the output."""
    tiles = {}
    for scene in SCENES:
        for photo in scene.photos:
            with Image.open(photos / photo) as file:
                boxes = list(_boxes(file.size, scene))
            for number, box in enumerate(boxes):
                name = f"{scene.split}/{Path(photo).stem}_{number:03d}.png"
                tiles[name] = {"scene": scene.name, "split": scene.split, "photo": photo, "box": list(box), "size": size}
    return tiles


def _write_tiles(photos: Path, output: Path, tiles: dict[str, dict], size: int) -> None:
    for photo, names in itertools.groupby(tiles, lambda name: tiles[name]["photo"]):
        with Image.open(photos / photo) as file:
            image = file.convert("RGB")
        for name in names:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            image.crop(tiles[name]["box"]).resize((size, size), Image.Resampling.LANCZOS).save(output / name)


def _boxes(photo: tuple[int, int], scene: Scene) -> Iterator[tuple[int, int, int, int]]:
    """Yields (left, top, right, bottom) of the squares, side by side in the middle of the photo;
    half overlapping for training.
    """
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

"""Packs the published irregular mask set of Liu et al. (ECCV 2018) into one zip for the trainer."""

import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from spn_jax.data.images import decode_image
from spn_jax.data.masks import MASKS_PER_TENTH, TENTHS
from spn_jax.data.official import Photo, files
from spn_jax.data.sources import Source
from spn_jax.errors import InputError, counted
from spn_jax.runtime.files import write_atomically
from spn_jax.runtime.progress import Progress

NAME = "irregular_masks.zip"
# how far a hole's share may lie outside its tenth: the files were made at another size than they
# are published in
TOLERANCE = 0.01
SHOWN = 5


def prepare_masks(sources: Sequence[Source], output: Path, threads: int, invert: bool, per_tenth: int = MASKS_PER_TENTH) -> None:
    """Writes OUTPUT/irregular_masks.zip with one 1-bit PNG a mask, white = hole, in the published
    order and size.

    Args:
        sources: contain the files 00000.png ... 11999.png, in any folder.
        output: the folder of the zip.
        threads: number of threads that decode and check.
        invert: holes are black in the sources.
        per_tenth: masks in each of the six tenths of hole share, 2,000 in the published set.

    Raises:
        InputError: masks are missing, broken or not in the tenth that their number says. Nothing is
            written then.
    """
    found = files(sources, r"(\d{5})\.png", lambda match: f"{match[1]}.png")
    names = [f"{number:05d}.png" for number in range(TENTHS * per_tenth)]
    if missing := [name for name in names if name not in found]:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise InputError(f"{len(missing):,} of {len(names):,} masks are missing: {shown}; pass the test masks of Liu et al.")
    progress = Progress(0, len(names), unit="masks")

    def load(name: str) -> tuple[bytes, float]:
        content, share = one_bit(found[name], invert)
        progress.add(1)
        return content, share

    with ThreadPoolExecutor(threads) as pool:
        contents, shares = zip(*pool.map(load, names), strict=True)
    check_tenths(names, np.asarray(shares), per_tenth, invert)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as entries:
        for name, content in zip(names, contents, strict=True):
            # without a time stamp, so that equal masks make equal files
            entries.writestr(zipfile.ZipInfo(name), content)
    write_atomically(output / NAME, archive.getvalue())
    print(f"{output / NAME} is complete: {len(names):,} masks, white is the hole", flush=True)


def one_bit(mask: Photo, invert: bool) -> tuple[bytes, float]:
    """Encodes a mask as a 1-bit PNG with white holes and returns it with the hole's share. Raises
    InputError for a picture of more than two values.
    """
    image = decode_image(io.BytesIO(mask.source.read(mask.path)), f"mask {mask.path}")
    grey = np.asarray(image.convert("L"))
    between = (grey > 25) & (grey < 230)
    if between.mean() > 0.01:  # the borders of strokes may be smooth
        raise InputError(f"mask {mask.path} in {mask.source.label} is not black and white; a photo is in its place")
    hole = (grey > 127) != invert
    file = io.BytesIO()
    Image.fromarray(hole).save(file, "PNG")
    return file.getvalue(), float(hole.mean())


def check_tenths(names: Sequence[str], shares: np.ndarray, per_tenth: int, invert: bool) -> None:
    """Raises InputError unless every mask's hole has the share that its number says."""
    tenths = np.arange(len(names)) // per_tenth

    def outside(shares: np.ndarray) -> np.ndarray:
        return (shares <= tenths / 10 - TOLERANCE) | (shares > (tenths + 1) / 10 + TOLERANCE)

    wrong = np.flatnonzero(outside(shares))
    if not len(wrong):
        return
    if not outside(1 - shares).any():
        flag = "leave --invert-masks out" if invert else "pass --invert-masks"
        raise InputError(f"the masks have their holes in {'white' if invert else 'black'}; {flag}")
    first = wrong[0]
    raise InputError(
        f"{counted(len(wrong), 'mask')} outside the tenth of hole share of the number, such as {names[first]} with {shares[first]:.1%} "
        f"in {tenths[first] * 10}-{tenths[first] * 10 + 10} %; this is another set: use it as it is, as data.train_masks"
    )

"""Which parts of a photo the network is shown, at which size, and how its predictions are put together. NumPy and OpenCV only."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

Strategy = Literal["auto", "original", "resize", "crop"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

# Of the size that the model was trained at.
LARGEST = 2  # side of what the network is shown, times that size; at full size 512 pixels and 1.6 GB of memory

FEATHER = 1 / 32  # depth of the seam inside the hole, in sides of the window


class Shown(NamedTuple):
    """What the network sees of a window."""

    image: np.ndarray  # uint8 (h, w, 3)
    mask: np.ndarray  # uint8 (h, w, 1)


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of the photo, and the part of the hole that is filled from it.

    top, left, height, width: in pixels of the photo.
    limit: the longer side is brought down to this, None if it is shown as it is.
    part: float32 (height, width), the weight of this window in each pixel; above 0 in those that are filled from it.
    """

    top: int
    left: int
    height: int
    width: int
    limit: int | None
    part: np.ndarray

    @property
    def place(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of what the network is shown."""
        longer = max(self.height, self.width)
        if self.limit is None or longer <= self.limit:
            return self.height, self.width
        return max(1, round(self.height * self.limit / longer)), max(1, round(self.width * self.limit / longer))


def choose_strategy(strategy: Strategy, size: tuple[int, int], trained: int) -> Strategy:
    """The strategy for a photo of this height and width, where it was left open. ValueError: an unknown one."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if strategy != "auto":
        return strategy
    return "original" if max(size) <= LARGEST * trained else "crop"


def plan(mask: np.ndarray, strategy: Strategy, trained: int) -> list[Window]:
    """The windows that fill a hole.

    Args:
        mask: uint8 (h, w, 1), 1 = hole.
        strategy: any but "auto".
        trained: side of the photos that the model was trained on, P.
    """
    hole = mask[..., 0] > 0
    if strategy != "crop":
        height, width = hole.shape
        return [Window(0, 0, height, width, None if strategy == "original" else LARGEST * trained, hole.astype(np.float32))]
    return list(_crops(hole, trained))


def _crops(hole: np.ndarray, trained: int) -> Iterator[Window]:
    """A window around each connected part of the hole, or several where a part is long and thin.

    Parts that are nearer to each other than P / 8 count as connected.
    """
    near = trained // 8
    kernel = np.ones((near + 1, near + 1), np.uint8)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(cv2.dilate(hole.astype(np.uint8), kernel), connectivity=8)
    depth = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 3)
    for label in range(1, count):
        left, top, width, height = (int(n) for n in boxes[label, :4])
        box = slice(top, top + height), slice(left, left + width)
        part = hole[box] & (labels[box] == label)
        thin = depth[box][part].max() <= trained / 8
        cell = (LARGEST * trained - trained // 2) if thin else max(height, width)
        for rows, down in _overlapping(height, cell, near):
            for columns, across in _overlapping(width, cell, near):
                piece = part[rows, columns] * np.outer(down, across)
                if piece.any():
                    yield _around(piece, (top + rows.start, left + columns.start), hole.shape, trained)


def _overlapping(length: int, cell: int, overlap: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Pieces of a length, `cell` long but for the last, and how much each counts: where two overlap, one fades into the other."""
    count = -(-max(length - overlap, 1) // (cell - overlap)) if length > cell else 1
    for i in range(count):
        start = i * (cell - overlap)
        weights = np.ones(min(cell, length - start), np.float32)
        ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)
        if i > 0:
            weights[:overlap] *= ramp[: len(weights)]
        if i < count - 1:
            weights[-overlap:] *= ramp[::-1]
        yield slice(start, start + len(weights)), weights


def _around(piece: np.ndarray, corner: tuple[int, int], size: tuple[int, ...], trained: int) -> Window:
    """A window with margins, of a quarter of the trained size or more, around pixels to fill.

    `piece` holds their weights; `corner` is its place in the photo.
    """
    rows, columns = (np.flatnonzero(piece.any(axis)) for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    extent = max(bottom - top, right - left)
    side = max(extent + trained // 2, extent * 4 // 3)
    side = trained if side <= trained else max(side, LARGEST * trained)
    height, width = min(side, size[0]), min(side, size[1])
    first = _placed(corner[0] + top, corner[0] + bottom, height, size[0])
    begin = _placed(corner[1] + left, corner[1] + right, width, size[1])
    part = np.zeros((height, width), np.float32)
    part[
        corner[0] + top - first : corner[0] + bottom - first,
        corner[1] + left - begin : corner[1] + right - begin,
    ] = piece[top:bottom, left:right]
    return Window(first, begin, height, width, LARGEST * trained, part)


def _placed(low: int, high: int, length: int, size: int) -> int:
    """Where a window of this length begins that has low..high in its middle, as far as the photo allows."""
    return min(max((low + high - length) // 2, 0), size - length)


def show(image: np.ndarray, mask: np.ndarray, window: Window) -> Shown:
    """What the network sees of a window of a photo uint8 (h, w, 3) and its mask uint8 (h, w, 1).

    A pixel of the smaller picture is part of the hole as soon as one of the pixels that it is the mean of is.
    """
    inside, hole = image[window.place], mask[window.place]
    height, width = window.shown_size
    if (height, width) == inside.shape[:2]:
        return Shown(inside, hole)
    smaller = cv2.resize(inside, (width, height), interpolation=cv2.INTER_AREA)
    share = cv2.resize(hole[..., 0].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return Shown(smaller, (share > 0).astype(np.uint8)[..., None])


def assemble(image: np.ndarray, mask: np.ndarray, windows: Sequence[Window], predictions: Sequence[np.ndarray]) -> np.ndarray:
    """The completion of a photo.

    Args:
        image: uint8 (h, w, 3).
        mask: uint8 (h, w, 1), 1 = hole.
        predictions: uint8 (h', w', 3), of what each window shows, hole and known pixels alike.

    Returns:
        uint8 (h, w, 3), the photo itself outside the hole.
    """
    total, weight = np.zeros(image.shape, np.float32), np.zeros(mask.shape, np.float32)
    for window, prediction in zip(windows, predictions, strict=True):
        whole = cv2.resize(prediction, (window.width, window.height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        if window.limit is not None:
            whole = with_feathered_seam(whole, image[window.place], mask[window.place])
        total[window.place] += window.part[..., None] * whole
        weight[window.place] += window.part[..., None]
    completion, filled = image.copy(), weight[..., 0] > 0
    completion[filled] = np.rint(np.clip(total[filled] / weight[filled], 0, 255)).astype(np.uint8)
    return completion


def with_feathered_seam(prediction: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A prediction float32 (h, w, 3) that meets the known pixels without an edge.

    What it lacks of the known pixels, on average over those near by, is added along the border of the hole and less and less
    inwards, down to nothing at a depth of FEATHER.
    """
    radius = max(1, round(max(mask.shape) * FEATHER))
    known = (1 - mask[..., 0]).astype(np.float32)
    lacking = (image - prediction) * known[..., None]
    for _ in range(2):  # twice, because the mean over a square alone would show its corners
        lacking, known = (np.asarray(cv2.blur(x, (2 * radius + 1, 2 * radius + 1)), np.float32) for x in (lacking, known))
    depth = cv2.distanceTransform(mask[..., 0], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    fading = np.clip(1 - depth / radius, 0, 1) / np.maximum(known, 1e-6)
    return prediction + lacking * fading[..., None]

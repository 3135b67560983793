"""Chooses the windows of a photo that the network sees, and merges its predictions, without JAX."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

Strategy = Literal["auto", "original", "resize", "crop"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

# largest side shown to the network, in units of the trained size; at full size 512 pixels and 1.6
# GB of memory
LARGEST = 2

FEATHER = 1 / 32  # depth of the feathered seam inside the hole, in sides of the window
# so many windows of the trained size, or more, are shown together in one of LARGEST times its side
SEVERAL = 3


class Shown(NamedTuple):
    """What the network sees of a window."""

    image: np.ndarray  # uint8 (h, w, 3)
    mask: np.ndarray  # uint8 (h, w, 1)


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of the photo, and the part of the hole that is filled from it.

    top, left, height, width: in pixels of the photo.
    limit: the longer side is reduced to this; None: the window is shown as it is.
    weights: float32, the blending weight of this window in each pixel of a box inside it; above 0
        in those that are filled from it.
    corner: row and column of that box in the window.
    """

    top: int
    left: int
    height: int
    width: int
    limit: int | None
    weights: np.ndarray
    corner: tuple[int, int] = (0, 0)

    @property
    def in_photo(self) -> tuple[slice, slice]:
        """The window's slices of the photo."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def box_in_window(self) -> tuple[slice, slice]:
        """The weight box's slices of the window."""
        return tuple(slice(start, start + length) for start, length in zip(self.corner, self.weights.shape, strict=True))  # type: ignore

    @property
    def box_in_photo(self) -> tuple[slice, slice]:
        """The weight box's slices of the photo."""
        rows, columns = self.box_in_window
        return slice(self.top + rows.start, self.top + rows.stop), slice(self.left + columns.start, self.left + columns.stop)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the picture that the network is shown."""
        longer = max(self.height, self.width)
        if self.limit is None or longer <= self.limit:
            return self.height, self.width
        return max(1, round(self.height * self.limit / longer)), max(1, round(self.width * self.limit / longer))


def choose_strategy(strategy: Strategy, size: tuple[int, int], trained: int) -> Strategy:
    """Resolves "auto" to the strategy for a photo of this height and width. Raises ValueError if it
    is unknown.

    A photo of up to LARGEST times the trained size is shown as it is by "resize" as by "original",
    but the former corrects the prediction along the border of the hole.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if strategy != "auto":
        return strategy
    return "resize" if max(size) <= LARGEST * trained else "crop"


def plan(mask: np.ndarray, strategy: Strategy, trained: int) -> list[Window]:
    """Plans the windows that fill a hole.

    Args:
        mask: uint8 (h, w, 1), 1 = hole.
        strategy: any except "auto".
        trained: side of the photos that the model was trained on, P.
    """
    hole = mask[..., 0] > 0
    if strategy != "crop":
        height, width = hole.shape
        return [Window(0, 0, height, width, None if strategy == "original" else LARGEST * trained, hole.astype(np.float32))]
    return _crops(hole, trained)


def most_tiles(size: tuple[int, ...], trained: int) -> int:
    """Returns how many of the largest windows, with margins of a quarter of the trained size, cover
    a photo of this height and width.
    """
    cell, near = _cell_and_near(trained)
    rows, columns = (_pieces(side, cell, near) for side in size[:2])
    return rows * columns


def _cell_and_near(trained: int) -> tuple[int, int]:
    """Returns the longest side that a window shown as it is fills, and the distance up to which
    pixels belong together.
    """
    return LARGEST * trained - trained // 2, trained // 8


def _crops(hole: np.ndarray, trained: int) -> list[Window]:
    """Plans windows around the connected components of the hole; components nearer to each other
    than P / 8 count as one.

    Parts that fit into a window together share it. A part that is too large for one is shown
    smaller, or cut into pieces if it is thin. If that would take many more windows than cover the
    photo, the photo is tiled with windows instead.
    """
    cell, near = _cell_and_near(trained)
    most = most_tiles(hole.shape, trained)
    labels, boxes = _parts(hole, near)
    extents = (boxes[:, 1] - boxes[:, 0]).max(1, initial=0)
    small, large = np.flatnonzero(extents <= cell), np.flatnonzero(extents > cell)
    thick = large[_depths(hole, labels, large) > trained / 8]
    if len(thick) > most:
        thick = thick[:0]
    thin = np.setdiff1d(large, thick)

    windows = [_window_of(labels, boxes, group, trained) for group in _groups(boxes, small, trained)]
    windows += [window for part in thin for window in _tiles(labels, boxes, np.array([part]), trained)]
    if len(windows) > 2 * most:
        windows = list(_tiles(labels, boxes, np.concatenate([small, thin]), trained))
    return windows + [_window_of(labels, boxes, np.array([part]), trained) for part in thick]


def _parts(hole: np.ndarray, near: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels the connected components of a hole (h, w) from 1 on, 0 elsewhere. Also returns their
    bounding boxes [[top, left], [bottom, right]] (n, 2, 2); bottom and right are exclusive.
    """
    kernel = np.ones((near + 1, near + 1), np.uint8)
    count, labels = cv2.connectedComponents(cv2.dilate(hole.astype(np.uint8), kernel), connectivity=8, ltype=cv2.CV_32S)
    labels[~hole] = 0
    return labels, _boxes_of(labels, count - 1)


def _boxes_of(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the bounding boxes of the parts 1 to `count` for `_parts`, without SciPy, whose
    import takes a fifth of a second.
    """
    pixels = np.nonzero(labels)
    parts = labels[pixels] - 1
    boxes = np.zeros((count, 2, 2), np.int64)
    for axis, places in enumerate(pixels):
        first, last = np.full(count, labels.shape[axis], np.int64), np.zeros(count, np.int64)
        np.minimum.at(first, parts, places)
        np.maximum.at(last, parts, places)
        boxes[:, 0, axis], boxes[:, 1, axis] = first, last + 1
    return boxes


def _depths(hole: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Returns the distance of each part's innermost pixel from the known pixels."""
    if not len(parts):
        return np.zeros(0)
    depth = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 3)
    deepest = np.zeros(int(labels.max()) + 1, np.float32)
    np.maximum.at(deepest, labels[hole], depth[hole])
    return deepest[parts + 1]


def _groups(boxes: np.ndarray, parts: np.ndarray, trained: int) -> Iterator[np.ndarray]:
    """Yields groups of parts that share a window: of the trained size, or of LARGEST times its side
    if that replaces SEVERAL or more of these.
    """
    cell, _ = _cell_and_near(trained)
    for group in _boxes_within(boxes, parts, cell):
        fine = list(_boxes_within(boxes, group, trained - trained // 2))
        yield from fine if len(fine) < SEVERAL else [group]


def _boxes_within(boxes: np.ndarray, parts: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Yields groups of parts whose bounding boxes lie in a square of this side together; a larger
    part is a group of its own, or with those inside it.

    It works row by row. A strip begins at the uppermost part left, and a square at the leftmost
    part left in the strip.
    """
    while len(parts):
        tops, bottoms = boxes[parts, 0, 0], boxes[parts, 1, 0]
        inside = bottoms <= tops.min() + side
        inside[tops.argmin()] = True
        strip, parts = parts[inside], parts[~inside]
        while len(strip):
            lefts, rights = boxes[strip, 0, 1], boxes[strip, 1, 1]
            together = rights <= lefts.min() + side
            together[lefts.argmin()] = True
            yield strip[together]
            strip = strip[~together]


def _window_of(labels: np.ndarray, boxes: np.ndarray, parts: np.ndarray, trained: int) -> Window:
    """Returns the window that shows these parts."""
    corner, piece = _picked(labels, boxes, parts)
    return _around(piece.astype(np.float32), corner, labels.shape, trained)


def _tiles(labels: np.ndarray, boxes: np.ndarray, parts: np.ndarray, trained: int) -> Iterator[Window]:
    """Yields overlapping windows that together show these parts, each a piece, blended where they
    overlap.
    """
    cell, near = _cell_and_near(trained)
    (top, left), picked = _picked(labels, boxes, parts)
    for rows, down in _overlapping(picked.shape[0], cell, near):
        for columns, across in _overlapping(picked.shape[1], cell, near):
            piece = picked[rows, columns] * np.outer(down, across)
            if piece.any():
                yield _around(piece, (top + rows.start, left + columns.start), labels.shape, trained)


def _picked(labels: np.ndarray, boxes: np.ndarray, parts: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Returns the upper left corner of the bounding box of these parts, and where in it they are,
    bool.
    """
    (top, left), (bottom, right) = boxes[parts, 0].min(0), boxes[parts, 1].max(0)
    chosen = np.zeros(len(boxes) + 1, bool)
    chosen[parts + 1] = True
    return (int(top), int(left)), chosen[labels[top:bottom, left:right]]


def _pieces(length: int, cell: int, overlap: int) -> int:
    """Returns the number of pieces into which `_overlapping` cuts a length."""
    return -(-max(length - overlap, 1) // (cell - overlap)) if length > cell else 1


def _overlapping(length: int, cell: int, overlap: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields pieces of a length, `cell` long but for the last, and their blending weights, which
    fade where two overlap.
    """
    count = _pieces(length, cell, overlap)
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
    """Returns a window around pixels to fill, with margins of a quarter of the trained size or
    more.

    `piece` holds their weights, and `corner` is its place in the photo.
    """
    rows, columns = (np.flatnonzero(piece.any(axis)) for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    extent = max(bottom - top, right - left)
    side = max(extent + trained // 2, extent * 4 // 3)
    side = trained if side <= trained else max(side, LARGEST * trained)
    height, width = min(side, size[0]), min(side, size[1])
    first = _placed(corner[0] + top, corner[0] + bottom, height, size[0])
    begin = _placed(corner[1] + left, corner[1] + right, width, size[1])
    begins = corner[0] + top - first, corner[1] + left - begin
    return Window(first, begin, height, width, LARGEST * trained, piece[top:bottom, left:right], begins)


def _placed(low: int, high: int, length: int, size: int) -> int:
    """Returns the start of a window of this length with low..high in its middle, as far as the
    photo allows.
    """
    return min(max((low + high - length) // 2, 0), size - length)


def at_least(window: Window, side: int, size: tuple[int, int]) -> Window:
    """Returns the window, or a larger one around it whose sides are `side` as far as a photo of
    this height and width allows.
    """
    height, width = max(window.height, min(side, size[0])), max(window.width, min(side, size[1]))
    if (height, width) == (window.height, window.width):
        return window
    top = _placed(window.top, window.top + window.height, height, size[0])
    left = _placed(window.left, window.left + window.width, width, size[1])
    corner = window.corner[0] + window.top - top, window.corner[1] + window.left - left
    return dataclasses.replace(window, top=top, left=left, height=height, width=width, corner=corner)


def show(image: np.ndarray, mask: np.ndarray, window: Window) -> Shown:
    """Cuts a window from a photo uint8 (h, w, 3) and its mask uint8 (h, w, 1), at the size that the
    network sees.

    A pixel of the reduced picture is part of the hole if any of the pixels that it averages is.
    """
    inside, hole = image[window.in_photo], mask[window.in_photo]
    height, width = window.shown_size
    if (height, width) == inside.shape[:2]:
        return Shown(inside, hole)
    smaller = cv2.resize(inside, (width, height), interpolation=cv2.INTER_AREA)
    share = cv2.resize(hole[..., 0].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return Shown(smaller, (share > 0).astype(np.uint8)[..., None])


class Canvas:
    """Accumulates the windows of a hole. Its memory grows with the hole, not with the number of
    windows.

    Args:
        mask: uint8 (h, w, 1), 1 = hole.
        samples: number of completions that are kept separately.
    """

    def __init__(self, mask: np.ndarray, samples: int = 1):
        hole = mask[..., 0] > 0
        # number of each pixel of the hole, row by row
        self._numbers = np.cumsum(hole, dtype=np.int32).reshape(hole.shape) - 1
        count = int(np.count_nonzero(hole))
        self._total, self._weight = np.zeros((samples, count, 3), np.float32), np.zeros((samples, count, 1), np.float32)

    def add(self, window: Window, colours: np.ndarray, sample: int = 0) -> None:
        """Adds a window's prediction, float32 (height, width, 3)."""
        counts = window.weights > 0
        pixels, weights = self._numbers[window.box_in_photo][counts], window.weights[counts][:, None]
        self._total[sample, pixels] += weights * colours[window.box_in_window][counts]
        self._weight[sample, pixels] += weights

    def colours(self, sample: int = 0) -> np.ndarray:
        """Returns float32 (n, 3), from 0 to 255, of the hole's n pixels row by row."""
        return np.clip(self._total[sample] / np.maximum(self._weight[sample], np.finfo(np.float32).tiny), 0, 255)


def enlarged(prediction: np.ndarray, image: np.ndarray, mask: np.ndarray, window: Window) -> np.ndarray:
    """Enlarges the prediction for a window to the size of the photo.

    Args:
        prediction: (h', w', 3), from 0 to 255, for the whole window, hole and known pixels alike.
        image: uint8 (h, w, 3), the photo.
        mask: uint8 (h, w, 1), 1 = hole.

    Returns:
        float32 (height, width, 3).
    """
    whole = cv2.resize(prediction.astype(np.float32), (window.width, window.height), interpolation=cv2.INTER_CUBIC)
    if window.limit is None:
        return whole
    return with_feathered_seam(whole, image[window.in_photo], mask[window.in_photo])


def with_feathered_seam(prediction: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Makes a prediction float32 (h, w, 3) meet the known pixels without a visible edge.

    The difference from the known pixels, averaged over those near by, is added along the border of
    the hole: fully in the hole's first row of pixels, and less inwards, down to nothing at a depth
    of FEATHER.
    """
    height, width = mask.shape[:2]
    # The depth is limited by the window's shorter side: a mean that reaches far beyond it would
    # need more memory than there is.
    radius = max(1, min(round(max(height, width) * FEATHER), height, width))
    known = (1 - mask[..., 0]).astype(np.float32)
    lacking = (image - prediction) * known[..., None]
    for _ in range(2):  # twice, because a single mean over a square would show its corners
        lacking, known = (np.asarray(cv2.blur(x, (2 * radius + 1, 2 * radius + 1)), np.float32) for x in (lacking, known))
    # 1 in the hole's first row
    depth = cv2.distanceTransform(mask[..., 0], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    fading = np.clip(1 - (depth - 1) / radius, 0, 1) / np.maximum(known, 1e-6)
    return prediction + lacking * fading[..., None]

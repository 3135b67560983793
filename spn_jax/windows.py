"""Which parts of a photo the network is shown, at which size, and how its predictions are put together. NumPy and OpenCV only."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

Strategy = Literal["auto", "original", "resize", "crop"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

LARGEST = 2  # side of what the network is shown, in sizes that it was trained at; at full size 512 pixels and 1.6 GB of memory


class Shown(NamedTuple):
    """What the network sees of a window."""

    image: np.ndarray  # uint8 (h, w, 3)
    mask: np.ndarray  # uint8 (h, w, 1)


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of the photo, and the part of the hole that is filled from it.

    top, left, height, width: in pixels of the photo.
    limit: the longer side is brought down to this, None if it is shown as it is.
    part: bool (height, width), the pixels that are filled from this window.
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
        return [Window(0, 0, height, width, None if strategy == "original" else LARGEST * trained, hole)]
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
        cell = (LARGEST * trained - trained // 2) if thin else max(height, width)  # leaves P / 4 of surroundings at each side
        for i in range(0, height, cell):
            for j in range(0, width, cell):
                piece = np.zeros_like(part)
                piece[i : i + cell, j : j + cell] = part[i : i + cell, j : j + cell]
                if piece.any():
                    yield _around(piece, (top, left), hole.shape, trained)


def _around(piece: np.ndarray, corner: tuple[int, int], size: tuple[int, ...], trained: int) -> Window:
    """A window with margins around pixels to fill; `corner` is the place of the array `piece` in the photo."""
    rows, columns = (np.flatnonzero(piece.any(axis)) for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    extent = max(bottom - top, right - left)
    side = max(extent + trained // 2, extent * 4 // 3)
    side = trained if side <= trained else max(side, LARGEST * trained)
    height, width = min(side, size[0]), min(side, size[1])
    first = _placed(corner[0] + top, corner[0] + bottom, height, size[0])
    begin = _placed(corner[1] + left, corner[1] + right, width, size[1])
    part = np.zeros((height, width), bool)
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
    """The completion, uint8 (h, w, 3), from predictions uint8 (h', w', 3) of what the windows show; the photo itself outside the hole."""
    completion = image.copy()
    for window, prediction in zip(windows, predictions, strict=True):
        whole = cv2.resize(prediction, (window.width, window.height), interpolation=cv2.INTER_CUBIC)
        completion[window.place][window.part] = whole[window.part]
    return completion

"""Draws grids, k-means maps of features and curves of metrics as pictures uint8 (h, w, 3)."""

import json
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spn_jax.errors import InputError

# These are the eight colours of Okabe and Ito (2008), which colour-blind readers can distinguish.
# Black comes last, for the smallest cluster.
PALETTE = np.array(
    [[86, 180, 233], [230, 159, 0], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167], [0, 0, 0]], np.uint8
)


def cluster_map(features: np.ndarray, clusters: int = 8, seed: int = 0) -> np.ndarray:
    """Draws the k-means clusters of a feature map (h, w, c) as a picture (h, w, 3), as in the
    paper's Fig. 10, the largest first.

    Args:
        clusters: K, at most 8; fewer are used where the map has fewer distinct features.
    """
    from scipy.cluster.vq import kmeans2  # a fifth of a second to import, which filling photos does without

    height, width, channels = features.shape
    points = features.reshape(-1, channels).astype(np.float64)
    k = min(clusters, len(PALETTE), len(np.unique(points, axis=0)))
    with warnings.catch_warnings():
        # one colour fewer is harmless
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        _, labels = kmeans2(points, k, minit="++", rng=np.random.default_rng(seed))
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return PALETTE[np.argsort(by_size)[labels]].reshape(height, width, 3)


def image_grid(rows: Mapping[str, Sequence[np.ndarray]], cell: int | None = None) -> np.ndarray:
    """Draws pictures in labelled rows.

    Args:
        rows: {label: pictures (h, w, 3)}, as many in each row; smaller pictures are enlarged by
            nearest neighbour.
        cell: height of a cell in pixels; by default the largest picture's.

    Returns:
        The grid, white between the cells.
    """
    largest = max((picture.shape[:2] for pictures in rows.values() for picture in pictures), key=lambda size: size[0])
    height = cell or largest[0]
    width = round(height * largest[1] / largest[0])
    margin, font = 4, ImageFont.load_default(size=14)
    indent = margin + int(max(font.getlength(label) for label in rows)) + 1
    columns = max(len(pictures) for pictures in rows.values())
    size = (indent + margin + columns * (width + margin), margin + len(rows) * (height + margin))
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for r, (label, pictures) in enumerate(rows.items()):
        top = margin + r * (height + margin)
        draw.text((margin, top + height // 2), label, fill="black", font=font, anchor="lm")
        for c, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
            grid.paste(tile, (indent + margin + c * (width + margin), top))
    return np.asarray(grid)


def masked_input(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draws the photo (h, w, 3) with white holes, as the network sees it; mask (h, w, 1), 1 =
    hole.
    """
    return np.where(mask > 0, np.uint8(255), image)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics.jsonl, except a last line that a killed run left unfinished.

    Raises:
        InputError: the file cannot be read, or another line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}, for the curves, cannot be read ({error}); repair it or move it away") from error


def curves(lines: Sequence[Mapping[str, Any]], columns: int = 4) -> np.ndarray:
    """Draws a panel for each metric over the steps, in the order of first appearance, without
    timing (`time/...`).

    Metrics that differ only in the middle of their name, as eval/psnr and eval/20-40/psnr do, share
    a panel.

    Args:
        lines: each {"step": n, "generator/reconstruction": x, ...}; values that are not finite
            numbers leave a gap.

    Raises:
        ValueError: no line has a metric.
    """
    panels = _panels(lines)
    if not panels:
        raise ValueError("there are no metrics to draw")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(columns, rows)
    for i, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
            marker = "." if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True), label="/".join(name.split("/")[1:-1]) or "all", linewidth=1, marker=marker)
        if len(names) > 1:
            axes.legend(fontsize=6)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step", fontsize=7)
    return render(figure)


def _panels(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns {title: metrics} of every panel with at least one number."""
    names = dict.fromkeys(key for line in lines for key, value in line.items() if isinstance(value, int | float))
    panels: dict[str, list[str]] = {}
    for name in names:
        first, *_, last = name.split("/") if "/" in name else (name, "")
        if name != "step" and first != "time":
            panels.setdefault(f"{first}/{last}".rstrip("/"), []).append(name)
    return panels


def png(picture: np.ndarray) -> bytes:
    """Encodes the picture as a PNG file."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def new_figure(columns: int, rows: int, panel: tuple[float, float] = (3.2, 2.4)) -> Any:
    """Makes an empty matplotlib figure for so many panels of the given width and height, in
    hundreds of pixels.
    """
    from matplotlib.figure import Figure  # imported here because it takes half a second, and grids do not need it

    return Figure(figsize=(panel[0] * columns, panel[1] * rows), dpi=100, layout="constrained")


def render(figure: Any) -> np.ndarray:
    """Renders a matplotlib figure as a picture (h, w, 3)."""
    # Agg is used directly, without a global backend or a window
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

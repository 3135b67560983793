"""Draws pages of pictures with labels, headings, notes, a legend and a caption."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 8, 6  # pixels around the page, and between its parts
SIZES = {"heading": 14, "note": 12, "caption": 13}  # font sizes in pixels
# smallest height of a picture in pixels; smaller ones are enlarged by a whole factor
SMALLEST_CELL = 128
NARROWEST = 560  # smallest width of a page, so that its caption can be read


@dataclasses.dataclass(frozen=True)
class Cell:
    """A picture uint8 (h, w, 3), or an empty place, with its note of one or more lines."""

    picture: np.ndarray | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of cells."""

    cells: Sequence[Cell]
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of the legend: a small picture (h, w, 3) and its meaning."""

    picture: np.ndarray
    meaning: str


def swatch(colour: Sequence[int] | np.ndarray) -> np.ndarray:
    """Makes a small square of one colour, for a legend."""
    return np.broadcast_to(np.asarray(colour, np.uint8), (14, 14, 3)).copy()


def sheet(rows: Sequence[Row], headings: Sequence[str], caption: str, legend: Sequence[Key] = (), cell: int | None = None) -> np.ndarray:
    """Draws a page, uint8 (h, w, 3).

    Args:
        rows: rows of any number of cells. Pictures are brought to one height by nearest neighbour
            and keep their shapes.
        headings: the columns' headings, from the left; none, or as many as the longest row has
            cells.
        caption: what the reader has to know, in sentences; a line break starts a new line.
        legend: its entries, drawn between pictures and caption.
        cell: height of a picture in pixels; by default that of the tallest, or a whole multiple of
            it of at least SMALLEST_CELL.
    """
    tallest = max((c.picture.shape[0] for row in rows for c in row.cells if c.picture is not None), default=1)
    height = cell or tallest * max(1, -(-SMALLEST_CELL // tallest))
    pictures = [[None if c.picture is None else _scaled(c.picture, height) for c in row.cells] for row in rows]
    widths = _column_widths(pictures, headings)
    indent = max((_width(line, "heading") for row in rows for line in row.label.splitlines()), default=0)
    indent += MARGIN + (GAP if indent else 0)
    width = max(indent + sum(widths) + GAP * (len(widths) - 1) + MARGIN, NARROWEST)
    lines = _wrapped(caption, width - 2 * MARGIN)
    keys = _legend_lines(legend, width - 2 * MARGIN)
    notes = [max((len(c.note.splitlines()) for c in row.cells), default=0) * _line("note") for row in rows]
    parts = [max((len(text.splitlines()) for text in headings), default=0) * _line("heading")]
    parts += [height + note + GAP for note in notes]
    parts += [len(keys) * _line("caption") + (GAP if keys else 0), len(lines) * _line("caption")]

    page = Image.new("RGB", (width, 2 * MARGIN + sum(parts)), "white")
    draw = ImageDraw.Draw(page)
    lefts = [indent + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    top = MARGIN
    for text, left, room in zip(headings, lefts, widths, strict=False):
        _write(draw, text, (left + room // 2, top), "heading", anchor="ma")
    top += parts[0]
    for row, images, part in zip(rows, pictures, parts[1:], strict=False):
        middle = top + (height - _line("heading") * len(row.label.splitlines())) // 2
        _write(draw, row.label, (MARGIN, middle), "heading")
        for entry, image, left, room in zip(row.cells, images, lefts, widths, strict=False):
            if image is not None:
                page.paste(image, (left + (room - image.width) // 2, top))
            _write(draw, entry.note, (left + room // 2, top + height + 1), "note", anchor="ma")
        top += part
    for line in keys:
        left = MARGIN
        for key in line:
            image = Image.fromarray(key.picture)
            page.paste(image, (left, top + (_line("caption") - image.height) // 2))
            _write(draw, key.meaning, (left + image.width + 4, top), "caption")
            left += _key_width(key)
        top += _line("caption")
    top += GAP if keys else 0
    _write(draw, "\n".join(lines), (MARGIN, top), "caption")
    return np.asarray(page)


def _scaled(picture: np.ndarray, height: int) -> Image.Image:
    """Scales a picture by nearest neighbour, which shows its own pixels."""
    width = round(height * picture.shape[1] / picture.shape[0])
    return Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)


def _column_widths(pictures: Sequence[Sequence[Image.Image | None]], headings: Sequence[str]) -> list[int]:
    columns = max([len(headings), *(len(row) for row in pictures)])
    widths = [0] * columns
    for row in pictures:
        for column, image in enumerate(row):
            widths[column] = max(widths[column], image.width if image else 0)
    for column, text in enumerate(headings):
        widths[column] = max([widths[column], *(_width(line, "heading") for line in text.splitlines())])
    return widths


def _legend_lines(legend: Sequence[Key], width: int) -> list[list[Key]]:
    """Splits the entries into lines of at most so many pixels."""
    lines: list[list[Key]] = []
    left = width + 1
    for key in legend:
        if left + _key_width(key) > width:
            lines.append([])
            left = 0
        lines[-1].append(key)
        left += _key_width(key)
    return lines


def _key_width(key: Key) -> int:
    return key.picture.shape[1] + 4 + _width(key.meaning, "caption") + 2 * MARGIN


def _font(kind: str) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=SIZES[kind])
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _line(kind: str) -> int:
    """Returns the height of a line of text in pixels."""
    return round(1.35 * SIZES[kind])


def _width(text: str, kind: str) -> int:
    return int(_font(kind).getlength(text)) + 1


def _write(draw: ImageDraw.ImageDraw, text: str, place: tuple[int, int], kind: str, anchor: str = "la") -> None:
    for i, line in enumerate(text.splitlines()):
        draw.text((place[0], place[1] + i * _line(kind)), line, fill="black", font=_font(kind), anchor=anchor)


def _wrapped(text: str, width: int) -> list[str]:
    """Wraps text to lines of at most so many pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and _width(longer, "caption") > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines

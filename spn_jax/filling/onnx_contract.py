"""Describes an inpainting network's inputs and outputs: value ranges, the mask's values, sizes.

Four kinds of files need no description: the two that `spn_jax.export` writes, by their metadata;
LaMa as it is published as ONNX (`image` float (1, 3, 512, 512) in [0, 1], `mask` 1 in the hole,
output 0 to 255); and MI-GAN's pipeline (`image` and `mask` uint8, mask 255 where the photo is
known). Any other needs a JSON file of the same name beside it, NAME.json for NAME.onnx:

    {
     "image": {"name": "input", "range": [-1, 1]},
     "mask": {"name": "mask", "hole": 1, "known": 0},
     "output": {"name": "output", "range": [-1, 1]},
     "multiple": 8,
     "trained_size": 256
    }

`range`: the values of black and white, [0, 1] if left out. `layout` (of each of the three; letters
of b c h w): found from the shape if left out. An image and a mask of one name are one input of four
channels. `multiple` (1): height and width are padded to multiples of it. `trained_size` (half of a
fixed size, or 256): side of the pictures that the network was trained on; it is shown up to twice
that. `erased` (128): the 8-bit value that pixels of the hole are given.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spn_jax.errors import InputError

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
USUAL_SIZE = 256  # assumed trained size of networks that take any size
MIDDLE_GREY = 128
CHANNELS = {"image": 3, "mask": 1, "output": 3}
KEYS: dict[str, set[str]] = {
    "image": {"name", "range", "layout"},
    "mask": {"name", "hole", "known", "layout"},
    "output": {"name", "range", "layout"},
}
SETTINGS = ("multiple", "trained_size", "erased")

Shape = tuple[int | None, ...]  # None: any length


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a file, as the file declares it."""

    name: str
    type: str  # as ONNX Runtime spells it, "tensor(float)"
    shape: Shape

    def __str__(self) -> str:
        return f"{self.name} {self.type} ({', '.join('?' if side is None else str(side) for side in self.shape)})"


@dataclasses.dataclass(frozen=True)
class Value:
    """The representation of pictures in an input or output.

    layout: letters of b c h w; a mask may lack c, and any may lack b.
    low, high: the values of black and white in an image or output; of known pixels and of the hole
    in a mask.
    """

    name: str
    dtype: str
    layout: str
    low: float
    high: float

    def encode(self, picture: np.ndarray) -> np.ndarray:
        """Converts (h, w, c) float32 in [0, 1] to an array for the input."""
        scaled = self.low + (self.high - self.low) * picture
        if self.dtype == "uint8":
            scaled = np.rint(scaled)
        array = scaled.astype(self.dtype)
        array = array if "c" in self.layout else array[..., 0]
        present = [letter for letter in "hwc" if letter in self.layout]
        array = array.transpose([present.index(letter) for letter in self.layout if letter != "b"])
        return np.expand_dims(array, self.layout.index("b")) if "b" in self.layout else array

    def decode(self, array: np.ndarray) -> np.ndarray:
        """Converts the output to (h, w, c) float32, 0 for black and 255 for white. Raises
        ValueError if it is not such a picture.
        """
        if array.ndim != len(self.layout) or ("b" in self.layout and array.shape[self.layout.index("b")] != 1):
            raise ValueError(f"it has the shape {array.shape} instead of {' '.join(self.layout)}")
        if "b" in self.layout:
            array = array.squeeze(self.layout.index("b"))
        rest = self.layout.replace("b", "")
        picture = array.transpose([rest.index(letter) for letter in "hwc"]).astype(np.float32)
        return (picture - np.float32(self.low)) * np.float32(255 / (self.high - self.low))


@dataclasses.dataclass(frozen=True)
class Contract:
    """How to call a network.

    latent: channels of the input `noise` of a probabilistic model of ours, None without one.
    ours: whether the network is ours, and padded as in JAX.
    fixed: height and width, if it takes no others.
    trained_size: the network is shown pictures of up to twice this side.
    words: a description for people.
    """

    words: str
    image: Value
    mask: Value
    output: Value
    trained_size: int
    multiple: int = 1
    fixed: tuple[int, int] | None = None
    latent: int | None = None
    ours: bool = False
    erased: int = MIDDLE_GREY


def find_contract(path: Path, inputs: Sequence[Port], outputs: Sequence[Port], about: Mapping[str, Any] | None) -> Contract:
    """Finds the contract of a file: its own, that of the JSON file beside it, or that of a
    published network that it looks like.

    Args:
        path: the .onnx file.
        about: the metadata of a file that `spn_jax.export` wrote; None for any other.

    Raises:
        InputError: it is none of these, or the description does not fit the file.
    """
    if about is not None:  # complete, while a JSON file beside it may describe something else
        return own_contract(path, inputs, outputs, about)
    described = path.with_suffix(".json")
    if described.is_file():
        return from_description(described, inputs, outputs)
    try:
        known = published_contract(inputs, outputs)
    except ValueError as error:
        raise InputError(f"{path} looks like a published inpainting network, but {error}") from error
    if known is None:
        raise InputError(
            f"{path} is no inpainting network that this program knows (its inputs are {listed(inputs)}; its outputs {listed(outputs)}): "
            f"describe them in {described}, as the documentation of spn_jax.filling.onnx_contract shows"
        )
    return known


def listed(ports: Sequence[Port]) -> str:
    return ", ".join(map(str, ports)) or "none"


def own_contract(path: Path, inputs: Sequence[Port], outputs: Sequence[Port], about: Mapping[str, Any]) -> Contract:
    """Returns the contract of a file that `spn_jax.export` wrote. Raises InputError if an
    incompatible version wrote it.
    """
    ports = {port.name: port for port in (*inputs, *outputs)}
    try:
        photo = about["contract"] == "photo"
        output = ports["completed" if photo else "prediction"]
        peak = 255.0 if photo else 1.0
        return Contract(
            words=f"{about['model']}, trained at {about['trained_size']} x {about['trained_size']} pixels",
            image=value(ports["image"], "image", 0, peak),
            mask=value(ports["mask"], "mask", 0, peak),
            output=value(output, "output", 0, peak),
            trained_size=int(about["trained_size"]),
            multiple=int(about["stride"]),
            latent=ports["noise"].shape[1] if "noise" in ports else None,
            ours=True,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} says that spn_jax wrote it, but not what this version reads ({error!r}); export it again") from error


def published_contract(inputs: Sequence[Port], outputs: Sequence[Port]) -> Contract | None:
    """Returns LaMa's or MI-GAN's contract for a file with the same inputs, else None."""
    ports = {port.name: port for port in inputs}
    if set(ports) != {"image", "mask"} or len(outputs) != 1:
        return None
    image, mask, output = ports["image"], ports["mask"], outputs[0]
    types = {image.type, mask.type}
    if types == {"tensor(float)"} and image.shape[1:] == (3, 512, 512) and mask.shape[1:] == (1, 512, 512):
        values = value(image, "image", 0, 1), value(mask, "mask", 0, 1), value(output, "output", 0, 255, "bchw")
        return Contract("LaMa", *values, trained_size=256, multiple=8, fixed=(512, 512))
    if types == {"tensor(uint8)"} and len(image.shape) == len(mask.shape) == 4 and image.shape[1] == 3 and mask.shape[1] == 1:
        values = value(image, "image", 0, 255), value(mask, "mask", 255, 0), value(output, "output", 0, 255, "bchw")
        return Contract("MI-GAN", *values, trained_size=256, fixed=fixed_size(image, "bchw"))
    return None


def value(port: Port, role: str, low: float, high: float, layout: str | None = None) -> Value:
    """Makes the value of a port. Raises ValueError for a type or shape that no picture has."""
    if port.type not in TYPES:
        raise ValueError(f"{port.name} is {port.type}, and pictures are {', '.join(TYPES)}")
    layout = layout or layout_of(port.shape, CHANNELS[role])
    if layout is None:
        raise ValueError(f'{port} does not show where its {CHANNELS[role]} channels are; give it a layout such as "bchw"')
    if port.shape and len(port.shape) != len(layout):
        raise ValueError(f"{port} has {len(port.shape)} axes, and the layout {layout} has {len(layout)}")
    batch = port.shape[layout.index("b")] if port.shape and "b" in layout else 1
    if batch not in (1, None):
        raise ValueError(f"{port} takes {batch} pictures at a time; only files for one are supported")
    return Value(port.name, TYPES[port.type], layout, float(low), float(high))


def layout_of(shape: Shape, channels: int) -> str | None:
    """Infers the layout from where the channels are, judged by their number."""
    if len(shape) == 4:
        return "bchw" if shape[1] == channels else "bhwc" if shape[3] == channels else None
    if len(shape) == 3:
        return "hwc" if shape[2] == channels else "chw" if shape[0] == channels else None
    return "hw" if len(shape) == 2 and channels == 1 else None


def fixed_size(port: Port, layout: str) -> tuple[int, int] | None:
    """Returns height and width if the file takes no others. Raises ValueError if it fixes only one
    of them.
    """
    if not port.shape:
        return None
    height, width = (port.shape[layout.index(letter)] for letter in "hw")
    if (height is None) != (width is None):
        raise ValueError(f"{port} fixes one side and leaves the other free; only files that fix both or none are supported")
    return None if height is None or width is None else (height, width)


# --- the JSON file ---


def from_description(path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> Contract:
    """Reads the JSON file. Raises InputError if it cannot be read, has unknown keys, or does not
    fit the network beside it.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return described_contract(given, {port.name: port for port in inputs}, {port.name: port for port in outputs}, path.stem)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}, which describes the network beside it, cannot be read ({error})") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} does not describe the network beside it: {error}") from error


def described_contract(given: Any, inputs: Mapping[str, Port], outputs: Mapping[str, Port], words: str) -> Contract:
    """Builds the contract from the JSON content. Raises ValueError, which says what is wrong."""
    check_keys("it", given, {*KEYS, *SETTINGS}, required=set(KEYS))
    for role, keys in KEYS.items():
        check_keys(repr(role), given[role], keys, required={"name"})
    image, mask, output = (given[role] for role in KEYS)
    joined = image["name"] == mask["name"]
    ports = {"image": port_called(inputs, image["name"]), "mask": port_called(inputs, mask["name"])}
    ports["output"] = port_called(outputs, output["name"])
    left = set(inputs) - {image["name"], mask["name"]}
    if left:
        raise ValueError(f"the network has further inputs, {', '.join(sorted(left))}, which nothing here could fill")
    layouts = {role: given[role].get("layout") for role in KEYS}
    for role, layout in layouts.items():
        if layout is not None and (
            not isinstance(layout, str) or not set("hw") <= set(layout) <= set("bchw") or len(set(layout)) != len(layout)
        ):
            raise ValueError(f"the layout of {role!r} is {layout!r}; it consists of the letters b, c, h and w, each once")
    if joined:  # four channels
        layouts["image"] = layouts["mask"] = layouts["image"] or layout_of(ports["image"].shape, 4)
    image_value = value(ports["image"], "image", *bounds(image, "image"), layouts["image"])
    mask_value = value(ports["mask"], "mask", number(mask, "known", 0), number(mask, "hole", 1), layouts["mask"])
    output_value = value(ports["output"], "output", *bounds(output, "output"), layouts["output"])
    if mask_value.low == mask_value.high:
        raise ValueError("'hole' and 'known' are the same value")
    fixed = fixed_size(ports["image"], image_value.layout)
    usual = min(fixed) // 2 if fixed else USUAL_SIZE
    sizes = {
        name: whole(given, name, default, least)
        for name, default, least in (("multiple", 1, 1), ("trained_size", usual, 16), ("erased", MIDDLE_GREY, 0))
    }
    if sizes["erased"] > 255:
        raise ValueError(f"'erased' is {sizes['erased']}; it is a value of 8 bits")
    if fixed:
        sizes["trained_size"] = min(sizes["trained_size"], usual)
    return Contract(
        words,
        image_value,
        mask_value,
        output_value,
        trained_size=sizes["trained_size"],
        multiple=sizes["multiple"],
        fixed=fixed,
        erased=sizes["erased"],
    )


def check_keys(what: str, given: Any, known: set[str], required: set[str]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{what} is {given!r} instead of an object of {', '.join(sorted(known))}")
    if missing := sorted(required - set(given)):
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    if foreign := sorted(set(given) - known):
        raise ValueError(f"{what} has {', '.join(foreign)}, which mean nothing here; known are {', '.join(sorted(known))}")


def port_called(ports: Mapping[str, Port], name: Any) -> Port:
    if not isinstance(name, str) or name not in ports:
        raise ValueError(f"the network has no {name!r}; it has {listed(list(ports.values()))}")
    return ports[name]


def bounds(given: Mapping[str, Any], role: str) -> tuple[float, float]:
    ends = given.get("range", [0, 1])
    if not isinstance(ends, list) or len(ends) != 2 or not all(is_number(end) for end in ends) or ends[0] == ends[1]:
        raise ValueError(f"the range of {role!r} is {ends!r}; it is two numbers, what black and what white is")
    return float(ends[0]), float(ends[1])


def number(given: Mapping[str, Any], name: str, default: float) -> float:
    found = given.get(name, default)
    if not is_number(found):
        raise ValueError(f"{name!r} is {found!r}, which is no number")
    return float(found)


def whole(given: Mapping[str, Any], name: str, default: int, least: int) -> int:
    found = given.get(name, default)
    if not is_number(found) or found != int(found) or found < least:
        raise ValueError(f"{name!r} is {found!r}; it is a whole number of at least {least}")
    return int(found)


def is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and np.isfinite(found)

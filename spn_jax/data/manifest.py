"""Defines a feature cache: the manifest that describes it, and the records in its shards.

A record is a header and the arrays (h, w, c) of all levels, one after the other, in ascending
level, C order, little endian. The header holds two little-endian 32-bit words: the number r = photo
* orientations + flipped, and the checksum of the photo's file. Shapes and type are in the manifest.
In 8 bits a level is preceded by `low` and `step` (c,) in float32: value = low + step * code, per
photo and channel.
"""

import dataclasses
import json
import math
import shlex
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from spn_jax.errors import InputError

VERSION = 2
MANIFEST = "manifest.json"
PLAN = "plan.json"

HEADER = struct.Struct("<II")  # number of the record, checksum of the photo
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "uint8": np.dtype(np.uint8),
}
# unsigned types with the same bits, whose byte order is explicit
_RAW: dict[str, np.dtype[Any]] = {"float32": np.dtype("<u4"), "bfloat16": np.dtype("<u2")}
_SCALE = np.dtype("<f4")
COMPRESSIONS = ("zstd", "none")

# (h, w, c), or in 8 bits {"codes": (h, w, c), "low": (c,), "step": (c,)}
Features = np.ndarray | dict[str, np.ndarray]


class Record(NamedTuple):
    """The decoded parts of one record."""

    number: int
    checksum: int
    features: dict[int, Features]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One scale of the teacher, with its stored size. Level l is distilled at P / 2^(l-1)."""

    level: int
    name: str  # the teacher's layer
    channels: int
    height: int
    width: int
    # how the export resized it, for example "area 75x75 to 64x64"; empty if it is as the teacher
    # gave it
    resized: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file."""

    file: str
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Describes what a cache holds. A plan is a manifest without shards."""

    version: int = VERSION
    teacher: str
    # "file NAME", "timm:NAME (ImageNet-1k, not OpenImages)" or "random(seed=N)"
    weights_origin: str
    weights_sha256: str
    photos_sha256: str  # the photos' names and sizes, in order
    photo_count: int
    orientations: int  # 1: photos as they are; 2: mirrored as well
    image_size: int  # P; the teacher saw 2P
    preparation: dict[str, str]  # crop, resize_filter, photo
    dtype: str
    compression: str  # of the shards: zstd or none
    compute_dtype: str  # of the teacher's forward passes
    photos_per_shard: int
    levels: tuple[Level, ...]  # ascending
    shards: tuple[Shard, ...] = ()

    @property
    def record_bytes(self) -> int:
        """Bytes of one record before compression."""
        scales = 2 * _SCALE.itemsize * sum(level.channels for level in self.levels) if self.dtype == "uint8" else 0
        return HEADER.size + scales + sum(_values(level) for level in self.levels) * DTYPES[self.dtype].itemsize

    @property
    def given_dtype(self) -> np.dtype[Any]:
        """The type in which `encode` takes features."""
        return np.dtype(np.float32) if self.dtype == "uint8" else DTYPES[self.dtype]

    @property
    def record_count(self) -> int:
        """Records in the whole cache."""
        return self.photo_count * self.orientations

    @property
    def shard_count(self) -> int:
        """Shards of a finished cache."""
        return math.ceil(self.photo_count / self.photos_per_shard)

    def shard_file(self, index: int) -> str:
        """Returns the file name of shard `index`."""
        return f"features-{index:05d}-of-{self.shard_count:05d}.array_record"

    def shard_photos(self, index: int) -> range:
        """Returns the photos in shard `index`, which holds both orientations of each."""
        start = index * self.photos_per_shard
        return range(start, min(start + self.photos_per_shard, self.photo_count))

    def encode(self, number: int, checksum: int, features: Mapping[int, np.ndarray]) -> bytes:
        """Encodes record `number` from {level: (h, w, c)} in `given_dtype`.

        Args:
            number: photo * orientations + flipped.
            checksum: that of the photo's file (`spn_jax.data.images.checksum`).

        Raises:
            ValueError: shapes or type are not the manifest's.
        """
        expected = {level.level: (level.height, level.width, level.channels) for level in self.levels}
        given = {level: array.shape for level, array in features.items()}
        if given != expected or any(array.dtype != self.given_dtype for array in features.values()):
            raise ValueError(f"features {given} do not fit the cache's {expected} in {self.dtype}")
        parts = [HEADER.pack(number, checksum)]
        for level in self.levels:
            array = np.ascontiguousarray(features[level.level])
            if self.dtype == "uint8":
                low, step, codes = quantise(array)
                parts += [low.astype(_SCALE).tobytes(), step.astype(_SCALE).tobytes(), codes.tobytes()]
            else:
                raw = _RAW[self.dtype]
                parts.append(array.view(raw.newbyteorder("=")).astype(raw, copy=False).tobytes())
        return b"".join(parts)

    def decode(self, record: bytes) -> Record:
        """Decodes a record; its arrays are read-only. Raises ValueError if its length is wrong."""
        if len(record) != self.record_bytes:
            raise ValueError(f"a record has {len(record)} bytes instead of {self.record_bytes}")
        number, checksum = HEADER.unpack_from(record)
        features: dict[int, Features] = {}
        offset = HEADER.size

        def take(dtype: np.dtype[Any], count: int) -> np.ndarray:
            nonlocal offset
            flat = np.frombuffer(record, dtype, count, offset)
            offset += flat.nbytes
            return flat.astype(dtype.newbyteorder("="), copy=False)

        for level in self.levels:
            shape = level.height, level.width, level.channels
            if self.dtype == "uint8":
                low, step = (take(_SCALE, level.channels) for _ in range(2))
                features[level.level] = {"codes": take(DTYPES["uint8"], _values(level)).reshape(shape), "low": low, "step": step}
            else:
                features[level.level] = take(_RAW[self.dtype], _values(level)).view(DTYPES[self.dtype]).reshape(shape)
        return Record(number, checksum, features)

    def to_json(self) -> str:
        """Returns the text of manifest.json and plan.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def _values(level: Level) -> int:
    return level.height * level.width * level.channels


def quantise(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantises float32 (h, w, c) to (low (c,), step (c,), codes uint8 (h, w, c)): 256 values from
    each channel's minimum to its maximum.
    """
    low, high = features.min((0, 1)), features.max((0, 1))
    step = (high - low) / np.float32(255)
    codes = np.rint((features - low) / np.where(step > 0, step, np.float32(1)))
    return low, step, codes.astype(np.uint8)


def dequantise(features: Features) -> np.ndarray:
    """Returns a level's features as an array; 8-bit codes become float32."""
    if isinstance(features, np.ndarray):
        return features
    return features["low"] + features["step"] * features["codes"]


def read_manifest(path: Path) -> Manifest:
    """Reads manifest.json or plan.json.

    Raises:
        InputError: the file is unreadable, not JSON or of another version, or has entries that are
            missing, unknown or of the wrong kind.
    """
    advice = f"delete {path.name} and run {export_command(path.parent)}: shards that are finished are kept"
    if path.name == PLAN:  # no other file describes the shards beside it
        advice = f"delete the folder and run {export_command(path.parent)}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("version", VERSION) != VERSION:
            raise InputError(
                f"{path} has version {values['version']}, this program reads {VERSION}; delete the folder and export the features again"
            )
        levels = tuple(_typed(Level, v) for v in values["levels"])
        shards = tuple(_typed(Shard, v) for v in values["shards"])
        manifest = _typed(Manifest, {**values, "levels": levels, "shards": shards})
        _check_consistent(manifest)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the folder teacher.cache") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is damaged ({reason}); {advice}") from error
    return manifest


def _typed(kind: Any, values: Any) -> Any:
    """Makes a `kind` (a dataclass) from a JSON object. Raises TypeError or KeyError if entries are
    missing, unknown or of another type.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is not an object")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise TypeError(f"entry {unknown[0]!r} is unknown")
    for name, type_ in fields.items():
        if isinstance(type_, type) and type_ in (int, str) and (type(values[name]) is not type_):
            raise TypeError(f"entry {name!r} is not {'a whole number' if type_ is int else 'text'}")
    return kind(**values)


def _check_consistent(manifest: Manifest) -> None:
    sizes = [manifest.photo_count, manifest.photos_per_shard, manifest.image_size, *(_values(level) for level in manifest.levels)]
    ascending = sorted({level.level for level in manifest.levels})
    if min(sizes) < 1 or manifest.orientations not in (1, 2) or manifest.dtype not in DTYPES or manifest.compression not in COMPRESSIONS:
        raise ValueError("its sizes, orientations or dtype make no sense")
    if not ascending or ascending != [level.level for level in manifest.levels]:
        raise ValueError("its levels do not ascend")
    preparation = manifest.preparation
    if not isinstance(preparation, dict) or not all(isinstance(v, str) for v in preparation.values()):
        raise ValueError("its preparation is not a table of texts")
    expected = [(manifest.shard_file(k), len(manifest.shard_photos(k)) * manifest.orientations) for k in range(manifest.shard_count)]
    if manifest.shards and [(shard.file, shard.records) for shard in manifest.shards] != expected:
        raise ValueError("its shards do not hold every photo once")


def plan_differences(stored: Manifest, wanted: Manifest) -> list[str]:
    """Lists how two exports differ, as lines `entry: stored -> wanted`. The label of the weights
    alone is not a difference.
    """
    lines = []
    for field in dataclasses.fields(Manifest):
        before, after = getattr(stored, field.name), getattr(wanted, field.name)
        if field.name not in ("shards", "weights_origin") and before != after:
            if field.name == "weights_sha256":
                before, after = (f"{m.weights_origin} {m.weights_sha256[:12]}" for m in (stored, wanted))
            if field.name == "levels":
                before, after = (describe_levels(m.levels) for m in (stored, wanted))
            lines.append(f"{field.name}: {before} -> {after}")
    return lines


def describe_levels(levels: Sequence[Level]) -> str:
    """Describes which map serves which level, at which size, and how it was resized."""
    return ", ".join(
        f"{level.level} ({level.name}) {level.height}x{level.width}x{level.channels}" + (f", {level.resized}" if level.resized else "")
        for level in levels
    )


def export_command(cache: str | Path, config_file: str = "configs/NAME.py") -> str:
    """Returns the command that fills the cache, for error texts."""
    return f"`python -m teacher_export --config {config_file} --weights FILE|timm:NAME|random teacher.cache={shlex.quote(str(cache))}`"

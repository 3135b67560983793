"""Runs an exported archive with JAX alone: `run_exported.py spn.zip photo.png hole.png out.png`."""

import io
import json
import sys
import zipfile

import numpy as np
from jax import export
from PIL import Image

file, photo_file, hole_file, output = sys.argv[1:]
archive = zipfile.ZipFile(file)
program = json.loads(archive.read("manifest.json"))["programs"][0]
complete = export.deserialize(bytearray(archive.read(program["file"])))
weights = dict(np.load(io.BytesIO(archive.read("weights.npz"))))

size = tuple(program["size"][::-1]), Image.Resampling.BOX  # each pixel: the mean of those below it
photo, hole = Image.open(photo_file).convert("RGB"), Image.open(hole_file).convert("L").point(lambda v: 255 * (v >= 128))
image = np.asarray(photo.resize(*size), np.float32)[None] / 255
mask = np.asarray(hole.resize(*size))[None, ..., None] > 0
random = np.random.default_rng(0)  # for a probabilistic model's noise
noise = [random.standard_normal((1, *item["shape"][1:]), np.float32) for item in program["inputs"] if item["name"] == "noise"]
completion = complete.call(weights, image, mask.astype(np.float32), *noise)
photo.paste(Image.fromarray(np.uint8(np.rint(255 * np.asarray(completion[0])))).resize(photo.size), mask=hole)
photo.save(output)

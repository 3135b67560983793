"""Runs an archive of `python -m spn_jax.export` with JAX alone: python run_exported.py spn.zip photo.png hole.png out.png"""

import io
import json
import sys
import zipfile

import numpy as np
from jax import export
from PIL import Image

file, photo, hole, output = sys.argv[1:]
archive = zipfile.ZipFile(file)
program = json.loads(archive.read("manifest.json"))["programs"][0]
complete = export.deserialize(bytearray(archive.read(program["file"])))
weights = dict(np.load(io.BytesIO(archive.read("weights.npz"))))

height, width = program["size"]
image = np.asarray(Image.open(photo).convert("RGB").resize((width, height)), np.float32)[None] / 255
mask = np.asarray(Image.open(hole).convert("L").resize((width, height)), np.float32)[None, ..., None] >= 128
random = np.random.default_rng(0)  # of a probabilistic model's noise
noise = [random.standard_normal((1, *item["shape"][1:]), np.float32) for item in program["inputs"] if item["name"] == "noise"]
completion = complete.call(weights, image, mask.astype(np.float32), *noise)
Image.fromarray(np.uint8(255 * np.asarray(completion[0]))).save(output)

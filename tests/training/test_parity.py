"""The full-size models against outputs of the released programs, on the same weights and inputs.

Slow tests go on from there: whole files of the released layout, and three steps in float64.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import Array

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import find_checkpoint, load_discriminator, load_model
from spn_jax.models.abstract import abstract_network
from spn_jax.models.convolution import AN_ACCELERATOR, compiled_for
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.generator import Generator
from spn_jax.models.spn import SPN
from teacher_export.convert import main as convert
from tests import parity_fill
from tests.golden_model import (
    DETERMINISTIC,
    PROBABILISTIC,
    SPL,
    UNTRAINABLE,
    Golden,
    compare_training,
    golden_batch,
    golden_networks,
    golden_noise,
    golden_targets,
    load,
    nchw,
    nhwc,
    relative_error,
    released_discriminator,
    released_generator,
    released_names,
)

ROOT = Path(__file__).resolve().parents[2]
PREFIXES = {DETERMINISTIC: "", PROBABILISTIC: "module.", SPL: "module."}


@jax.jit
def maps(model: SPN, discriminator: Discriminator, image: Array, mask: Array, noise: Array | None) -> dict[str, Array]:
    """Every map that the golden files hold, ours, with their choice of channels."""
    judgement, encoding, refine = discriminator(image), model.encode(image, mask), Generator.refine
    refined: list[Array] = []

    def kept(*arguments: Any) -> Array:
        refined.append(refine(*arguments))
        return refined[-1]

    with mock.patch.object(Generator, "refine", kept):
        output = model.decode(encoding, noise)
    rgb = jnp.arctanh(2 * output.image[:, 0] - 1)
    result = {"image": output.image[:, 0], "rgb_before_tanh": rgb}
    result["disc_out"] = judgement.logits if model.variational else jax.nn.sigmoid(judgement.logits)
    heads = {f"distill_{i}": output.distilled[level] for i, level in enumerate(sorted(output.distilled), 1)}
    result |= {name: head[:, 0, ..., ::8] for name, head in heads.items()}
    if output.posterior is not None:
        result |= {"mu": output.posterior.mu, "sigma": output.posterior.sigma}
    sixteenth = {"gff": encoding.trunk - encoding.skips[3], "prior_L": output.prior[3][:, 0]}
    sixteenth |= {"enc_img_L": encoding.features, "dec_img_L": refined[0]}
    sixteenth |= {f"disc_feat_{i}": features for i, features in enumerate(judgement.features)}
    return result | {name: features[..., ::16] for name, features in sixteenth.items()}


every_golden = pytest.mark.parametrize("golden", [DETERMINISTIC, PROBABILISTIC, SPL], ids=lambda golden: golden.kind)


@every_golden
def test_forward_pass(golden: Golden) -> None:
    case = f"{golden.name}_a"
    image, mask = (nhwc(values(case, 1, 64, 64)) for values in (parity_fill.image, parity_fill.mask))
    with jax.default_matmul_precision("highest"):
        ours = maps(*golden_networks(golden, jnp.float32), image, mask, golden_noise(golden, [case], 1))
    with golden.file("forward") as file:
        errors = {name: relative_error(nchw(ours[name.removeprefix(f"{case}/")]), file[name]) for name in file.files}
    assert len(errors) == len(ours)
    assert {name: error for name, error in errors.items() if error > 1e-4} == {}


def networks_from_file(golden: Golden, folder: Path) -> tuple[SPN, Discriminator]:
    """The networks on the whole way: a file of the released layout, the command that converts it,
    the checkpoint it makes.
    """
    parts = {"generator": released_generator(golden), "discriminator": released_discriminator(golden)}
    entries = {f"{part}.{PREFIXES[golden]}{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in entries.items()}
    torch.save(tensors | {"adversarial_loss.real_label": torch.tensor(1.0)}, folder / "released.pt")
    convert([str(folder / "released.pt"), str(folder / "converted")])
    discriminator = abstract_network(lambda rng: Discriminator(golden.model, rng=rng, dtype=jnp.float32))
    arrays = load_discriminator(find_checkpoint(folder / "converted"))
    assert arrays is not None
    load(discriminator, {name: np.asarray(array) for name, array in arrays.items()}, np.float32)
    return load_model(folder / "converted").model, discriminator


@pytest.mark.long
@every_golden
def test_a_converted_file_holds_the_same_networks(golden: Golden, tmp_path: Path) -> None:
    for ours, theirs in zip(networks_from_file(golden, tmp_path), golden_networks(golden, jnp.float32), strict=True):
        found, expected = (named_arrays(nnx.as_pure(nnx.state(network))) for network in (ours, theirs))
        assert found.keys() == expected.keys()
        assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []


@pytest.mark.parametrize("written_for", [AN_ACCELERATOR, pytest.param("cpu", marks=pytest.mark.long)])
def test_first_training_step_in_float32(written_for: str, tmp_path: Path) -> None:
    """The forms of convolutions that only the CPU has make the program a third larger; each of them
    has its own tests in models/test_convolution.py.
    """
    golden = DETERMINISTIC
    with jax.default_matmul_precision("highest"), compiled_for(written_for):
        batch = golden_batch(golden, golden_targets(golden, tmp_path, double=False), np.float32)
        errors = compare_training(golden, golden_networks(golden, jnp.float32), batch, steps=1)
    assert errors["losses"] < 1e-4
    # Of the norms of 449 gradients the root mean square: rounding switches a ReLU here and there,
    # which moves the smallest of them by a thousandth (plain convolutions: 1.3e-3), whatever form
    # the convolutions have. The largest is bounded in float64.
    assert errors["typical_gradient"] < 5e-4
    assert errors["untrainable"] < 1e-6


def steps_in_float64(name: str, steps: int, folder: Path) -> dict[str, float]:
    """In a process of its own, since 64 bits are a global setting."""
    program = (
        "import json, pathlib, sys\n"
        "from tests import golden_model\n"
        f"golden = golden_model.{name}\n"
        f"print(json.dumps(golden_model.compare_training_in_float64(golden, {steps}, pathlib.Path(sys.argv[1]))))\n"
    )
    environment = {**os.environ, "JAX_ENABLE_X64": "true"}
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("name", ["DETERMINISTIC", "PROBABILISTIC"])
def test_three_training_steps_in_float64(name: str, tmp_path: Path) -> None:
    """Update order, three power iterations a step and every loss; of the probabilistic model also
    tiling, posterior, hinge, feature matching, perceptual, diversity and KL loss in their released
    forms.
    """
    errors = steps_in_float64(name, 3, tmp_path)
    assert errors["losses"] < 1e-8
    assert errors["gradients"] < 1e-6
    assert errors["untrainable"] < 1e-15
    assert errors["final"] < 1e-6
    assert errors["image"] < 1e-6


@pytest.mark.parametrize("golden", [DETERMINISTIC, PROBABILISTIC], ids=lambda golden: golden.kind)
def test_23_biases_have_no_gradient_by_name(golden: Golden) -> None:
    assert len(UNTRAINABLE) == len(set(UNTRAINABLE)) == 23
    assert set(UNTRAINABLE) <= set(released_names(golden).values())

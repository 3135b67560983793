"""The full-size deterministic SPN against outputs of the released program, on the same weights and inputs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from spn_jax.config import Config
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.spn import SPN
from spn_jax.parameters import named_arrays
from spn_jax.sharding import make_mesh, replicate
from spn_jax.step import Frozen, Schedule, compile_train_step, create_state, generate
from tests import parity_fill
from tests.golden_model import (
    GOLDEN,
    UNTRAINABLE,
    golden_batch,
    golden_networks,
    golden_targets,
    nhwc,
    relative_error,
    released_names,
)

ROOT = Path(__file__).parent.parent
SCHEDULE = Schedule(length=3, learning_rate=1e-4, drops=(), drop_factor=0.1, prior_loss_until=None)
LOSSES = {
    "discriminator": "discriminator/loss",
    "adversarial": "generator/adversarial",
    "reconstruction": "generator/reconstruction",
    "prior": "generator/prior",
    "generator": "generator/loss",
}


@pytest.fixture(scope="module")
def networks() -> tuple[SPN, Discriminator]:
    return golden_networks(jnp.float32)


@pytest.fixture(scope="module")
def forward(networks: tuple[SPN, Discriminator]) -> dict[str, np.ndarray]:
    """Every map that the golden file holds, ours, in its layout and with its choice of channels."""

    @jax.jit
    def maps(model: SPN, discriminator: Discriminator, image: Array, mask: Array) -> dict[str, Array]:
        masked, output, judgement = image * (1 - mask) + mask, model(image, mask), discriminator(image)
        encoded = model.generator.encode(masked, mask)
        decoded = model.generator.refine(encoded, {3: output.prior[3][:, 0]})
        prior = model.prior_learner
        trunk, skips = prior.encode(masked, mask)
        rgb = jnp.arctanh(2 * output.image[:, 0] - 1)
        result = {"image": output.image[:, 0], "rgb_before_tanh": rgb, "disc_out": jax.nn.sigmoid(judgement.logits)}
        result |= {f"distill_{level}": maps[:, 0, ..., ::8] for level, maps in output.distilled.items()}
        sixteenth = {"gff": trunk - skips[3], "prior_L": output.prior[3][:, 0], "enc_img_L": encoded, "dec_img_L": decoded}
        sixteenth |= {f"disc_feat_{i}": features for i, features in enumerate(judgement.features)}
        return result | {name: features[..., ::16] for name, features in sixteenth.items()}

    image, mask = (nhwc(values("det_a", 1, 64, 64)) for values in (parity_fill.image, parity_fill.mask))
    with jax.default_matmul_precision("highest"):
        ours = maps(*networks, image, mask)
    return {name: np.moveaxis(np.asarray(values), -1, 1) for name, values in ours.items()}


FORWARD = [
    "image",
    "disc_out",
    "prior_L",
    "enc_img_L",
    "dec_img_L",
    *(f"distill_{i}" for i in (1, 2, 3)),
    *(f"disc_feat_{i}" for i in range(5)),
]


@pytest.mark.parametrize("name", FORWARD)
def test_forward_pass(forward: dict[str, np.ndarray], name: str) -> None:
    with np.load(GOLDEN / "det_forward.npz") as golden:
        assert relative_error(forward[name], golden[f"det_a/{name}"]) < 1e-4


def compare_training(networks: tuple[SPN, Discriminator], batch: dict[str, Any], steps: int) -> dict[str, float]:
    """Largest relative errors of some steps on the golden batch: of losses, of the first step's gradient norms, of final parameters."""
    graph, state = create_state(Config(), SCHEDULE, *networks)
    mesh = make_mesh(1)
    step, state, golden, errors = compile_train_step(mesh), replicate(state, mesh), np.load(GOLDEN / "det_train.npz"), {"losses": 0.0}
    names = released_names()
    for i in range(steps):
        if i == 2:  # the golden image is what the last of three steps sees
            output = jax.jit(lambda parameters: generate(graph, parameters, batch).image)(state.model)
            errors["image"] = relative_error(np.moveaxis(np.asarray(output[:, 0]), -1, 1), golden["image_after"])
        state, metrics = step(graph, state, Frozen(), batch)
        relative = [abs(float(metrics[ours]) / float(golden[f"loss/{theirs}"][i]) - 1) for theirs, ours in LOSSES.items()]
        errors["losses"] = max(errors["losses"], *relative)
        if i == 0:  # beta1 = 0: Adam's first moment is the gradient
            norms = {names[ours]: float(np.linalg.norm(g)) for ours, g in named_arrays(state.model_optimizer.mu).items()}
            largest = max(norms.values())
            errors["untrainable"] = max(norms.pop(name) / largest for name in UNTRAINABLE)
            errors["gradients"] = max(abs(norm / golden[f"grad_norm/{name}"] - 1) for name, norm in norms.items())
    final = {names[ours]: float(np.abs(value).mean()) for ours, value in named_arrays(state.model).items()}
    errors["final"] = max(abs(value / golden[f"final/{name}"][1] - 1) for name, value in final.items() if name not in UNTRAINABLE)
    return errors


def test_first_training_step_in_float32(networks: tuple[SPN, Discriminator], tmp_path: Path) -> None:
    with jax.default_matmul_precision("highest"):
        errors = compare_training(networks, golden_batch(golden_targets(tmp_path, double=False), np.float32), steps=1)
    assert errors["losses"] < 1e-4
    assert errors["gradients"] < 1e-3
    assert errors["untrainable"] < 1e-6


def test_three_training_steps_in_float64(tmp_path: Path) -> None:
    """Update order, three power iterations a step and every loss: in a process of its own, since 64 bits are a global setting."""
    program = (
        "import json, pathlib, sys\n"
        "import numpy as np\n"
        "from tests.test_parity import compare_training, golden_batch, golden_networks, golden_targets\n"
        "batch = golden_batch(golden_targets(pathlib.Path(sys.argv[1]), double=True), np.float64)\n"
        "print(json.dumps(compare_training(golden_networks(np.float64), batch, steps=3)))\n"
    )
    # Convolutions in float64 are loops that the compiler writes, so here its optimisations pay.
    environment = {**os.environ, "JAX_ENABLE_X64": "true", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors["losses"] < 1e-8
    assert errors["gradients"] < 1e-6
    assert errors["final"] < 1e-6
    assert errors["image"] < 1e-6
    assert errors["untrainable"] < 1e-15


def test_23_biases_have_no_gradient_by_name() -> None:
    assert len(UNTRAINABLE) == len(set(UNTRAINABLE)) == 23
    assert set(UNTRAINABLE) <= set(released_names().values())

"""Kinds of operations and networks are read from a program's text, times from profiles."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from scripts.benchmark_kinds import COLUMNS, KINDS, by_kind, instructions, kind, network, seconds_of_instructions, table

PROGRAM = """
ENTRY %main {
  %conv.1 = f32[1,8,8,4]{3,2,1,0} convolution(%x, %k), window={size=3x3}, metadata={op_name="jit(step)/jvp(generator)/conv_general_dilated"}
  %ynn_fusion.2 = f32[9]{0} fusion(%a), metadata={op_name="jit(s)/transpose(jvp(generator))/kernel_gradient/conv_general_dilated"}
  %ynn_fusion.3 = f32[9]{0} fusion(%a), metadata={op_name="jit(s)/transpose(jvp(prior_learner))/transpose()/conv_general_dilated"}
  %transpose_copy_fusion.4 = f32[9]{0} fusion(%a), kind=kLoop
  %cudnn.5 = (f32[9], u8[9]) custom-call(%a), custom_call_target="cuBackwardFilter", metadata={op_name="discriminator/conv_general_dilated"}
  %dot.6 = f32[9]{0} dot(%a, %b), metadata={op_name="jit(s)/vgg19/dot_general"}
  %fusion.7 = f32[9]{0} fusion(%a), metadata={op_name="jit(s)/jvp(generator)/norm/sub"}
  %fusion.8 = f32[9]{0} fusion(%a), metadata={op_name="jit(s)/optimizer/sqrt"}
  %while.9 = (s32[], f32[3]{0}) while(%a), condition=%d, body=%e
  %ynn_fusion.11 = f32[9]{0} fusion(%a), metadata={op_name="jit(s)/jvp(generator)/winograd/dot_general"}
  %fusion.12 = f32[9]{0} fusion(%a), metadata={op_name="jit(s)/transpose(jvp(generator))/winograd/stack"}
  ROOT %add.10 = f32[9]{0} add(%a, %b), metadata={op_name="jit(s)/jvp()/add"}
}
"""


def test_kinds_and_networks_of_instructions() -> None:
    known = instructions(PROGRAM)
    assert [(name, kind(known[name]), network(known[name])) for name in known if name != "while.9"] == [
        ("conv.1", "forward convolutions", "generator"),
        ("ynn_fusion.2", "gradients of kernels", "generator"),
        ("ynn_fusion.3", "gradients of inputs", "prior learner"),
        ("transpose_copy_fusion.4", "copies, transposes, padding", "losses, rest"),
        ("cudnn.5", "gradients of kernels", "discriminator"),
        ("dot.6", "1x1 convolutions and other matrix products", "teacher, VGG19"),
        ("fusion.7", "norms", "generator"),
        ("fusion.8", "optimisers, moving average", "updates"),
        ("ynn_fusion.11", "forward convolutions", "generator"),
        ("fusion.12", "gradients of inputs", "generator"),
        ("add.10", "other elementwise work, sums", "losses, rest"),
    ]
    assert {kind(instruction) for instruction in known.values()} == set(KINDS)


def test_times_are_added_up_and_a_loop_is_not_counted_besides_its_body() -> None:
    total = by_kind(PROGRAM, {"conv.1": 0.002, "fusion.7": 0.001, "while.9": 5.0, "unknown": 0.001})
    assert sum(total.values()) == pytest.approx(0.004)
    lines = table("title", total).splitlines()
    assert lines[0] == "title"
    assert lines[2] == "| milliseconds | all | share | generator | losses, rest |"
    assert lines[4] == "| forward convolutions | 2.0 | 50.0% | 2.0 | 0.0 |"
    assert lines[-1] == "| all | 4.0 | 100.0% | 3.0 | 1.0 |"
    assert set(network for _, network in total) <= set(COLUMNS)


def test_a_profile_names_the_instructions_of_the_program(tmp_path: Path) -> None:
    def function(x: jax.Array) -> jax.Array:
        with jax.named_scope("generator"):
            return jnp.sin(x @ x)

    x = jnp.ones((512, 512))
    program = jax.jit(function).lower(x).compile()
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        with jax.profiler.trace(folder):
            jax.block_until_ready(program(x))
    seconds = seconds_of_instructions(folders)
    alone = [seconds_of_instructions([folder]) for folder in folders]
    assert seconds == {name: min(one[name] for one in alone) for name in seconds}
    total = by_kind(program.as_text(), seconds)
    assert total["1x1 convolutions and other matrix products", "generator"] > 0

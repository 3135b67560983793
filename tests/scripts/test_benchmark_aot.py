"""Collectives are read from a program's text; what is missing for a compilation is said in
words.
"""

import importlib.util

import pytest

from scripts.benchmark_aot import Collective, collectives, tpu_mesh
from spn_jax.errors import InputError

PROGRAM = """
ENTRY %main {
  %all-reduce.1 = (f32[3,3,4,8]{3,2,1,0:T(8,128)S(1)}, /*index=1*/bf16[8]{0:T(128)}) all-reduce(%fusion.1, %fusion.2), channel_id=1
  %all-gather-start = f32[16]{0} all-gather-start(f32[4]{0} %x), dimensions={0}
  %all-gather-done = f32[16]{0} all-gather-done(%all-gather-start)
  ROOT %reduce-scatter = pred[5]{0} reduce-scatter(%y), to_apply=%add, metadata={op_name="all-reduce(of a name)"}
  %fusion = f32[] fusion(%all-reduce.1), calls=%all-reduce-fusion
}
"""


def test_collectives_of_a_program_with_their_bytes() -> None:
    assert collectives(PROGRAM) == [
        Collective("all-reduce", 2, 4 * 3 * 3 * 4 * 8 + 2 * 8),
        Collective("all-gather", 1, 64),
        Collective("reduce-scatter", 1, 5),
    ]


def test_without_libtpu_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs libtpu, which is not installed; pip install -e '\.\[tpu\]'"):
        tpu_mesh("v5e:2x4")

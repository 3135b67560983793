"""Collectives are read from a program's text; wrong names of devices, and what is missing for a
compilation, are said in words.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from scripts import absent_devices, benchmark_aot
from scripts.absent_devices import PLUGINS, mesh_of_absent
from scripts.benchmark_aot import Collective, collectives, numbers_there
from spn_jax.config import load_config
from spn_jax.errors import InputError
from spn_jax.runtime.sharding import make_mesh

JAXLIB = importlib.metadata.version("jaxlib")
BENCHMARK = str(Path(benchmark_aot.__file__).parent / "benchmark.py")

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


# as the compiler for GPUs writes it
ASYNCHRONOUS = """
  %all-reduce-start = f32[63827]{0} all-reduce-start(%concatenate), channel_id=2, replica_groups=mesh['axis_0'=2] {'axis_0'}
  %all-gather-start.1 = (f32[4,4,8,8]{2,1,0,3}, f32[4,4,8,16]{2,1,0,3}) all-gather-start(%bitcast.1), dimensions={3}
  %all-gather-start.2 = ((f32[1,4]{1,0}, f32[8]{0}), (f32[2,4]{1,0}, /*index=1*/f32[16]{0})) all-gather-start(%copy, %param)
  %reduce-scatter-start = ((f32[2,4,4,16]{3,2,1,0}), f32[1,4,4,16]{3,2,1,0}) reduce-scatter-start(%transpose), dimensions={0}
  %reduce-scatter-done = f32[1,4,4,16]{3,2,1,0} reduce-scatter-done(%reduce-scatter-start)
"""


def test_collectives_that_are_only_started_count_their_results_alone() -> None:
    assert collectives(ASYNCHRONOUS) == [
        Collective("all-reduce", 1, 4 * 63827),
        Collective("all-gather", 1, 4 * 4 * 4 * 8 * 16),
        Collective("all-gather", 2, 4 * (8 + 16)),
        Collective("reduce-scatter", 1, 4 * 4 * 4 * 16),
    ]


@pytest.mark.parametrize("wrong", ["h1000:8", "h100", "h100:0", "h100:2x4", "a100:-1", "v5e", "v5e:8", "v9e:2x4", ""])
def test_wrong_names_end_in_a_sentence_that_lists_what_there_is(wrong: str) -> None:
    with pytest.raises(InputError) as error:
        mesh_of_absent(wrong)
    listed = "a100, h100 or h200 with the number of GPUs of one machine, such as h100:8, or v2, v3, v4, v5e, v5p, v6e or tpu7x with"
    assert str(error.value).startswith(f"there is no topology {wrong!r}; pass {listed}")


def test_help_lists_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runpy.run_path(BENCHMARK)["parse"](["aot", "--help"])
    assert absent_devices.NAMES in " ".join(capsys.readouterr().out.split())


def test_without_libtpu_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs libtpu, which is not installed; pip install -e '\.\[tpu\]'"):
        mesh_of_absent("v5e:2x4")


@pytest.mark.parametrize(
    "there",
    [{}, dict.fromkeys(PLUGINS[0], "0.0.1"), {pair[0]: JAXLIB for pair in PLUGINS}],
    ids=["none", "of another version", "one of each two"],
)
def test_without_the_packages_for_gpus_the_command_says_what_to_install(there: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent_devices, "installed", there.get)
    with pytest.raises(InputError) as error:
        mesh_of_absent("h100:2")
    assert f"needs jax-cuda12-plugin and jax-cuda12-pjrt of version {JAXLIB}, which are not installed; pip install" in str(error.value)
    assert f"--target DIR jax-cuda12-plugin=={JAXLIB} jax-cuda12-pjrt=={JAXLIB} nvidia-cuda-nvcc-cu12 " in str(error.value)


@pytest.mark.parametrize("pair", PLUGINS)
def test_packages_for_either_version_of_cuda_serve(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def describe(**options: Any) -> Any:
        asked.update(options)
        return SimpleNamespace(devices=["first", "second"])

    monkeypatch.setattr(absent_devices, "installed", dict.fromkeys(pair, JAXLIB).get)
    monkeypatch.setattr(absent_devices.topologies, "get_topology_desc", describe)
    monkeypatch.setattr(absent_devices, "jax", SimpleNamespace(config=SimpleNamespace(update=lambda *setting: None)))
    monkeypatch.setattr(absent_devices, "Mesh", lambda devices, *axes, **options: devices)
    devices: Any = mesh_of_absent("h100:2")
    assert list(devices) == ["first", "second"]
    assert (asked["platform"], asked["topology"]) == ("cuda", "1x1x2")
    assert 'name: "NVIDIA H100 80GB HBM3"' in asked["target_config"]


def refuse(monkeypatch: pytest.MonkeyPatch, words: str) -> dict[str, Any]:
    """What `compile_for` says of the smallest model where the compiler refuses it."""

    def compile_timed(*arguments: Any) -> Any:
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr(benchmark_aot, "compile_timed", compile_timed)
    return benchmark_aot.compile_for(load_config(Path("configs/tiny.py"), []), make_mesh(1))


def test_without_ptxas_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"needs NVIDIA's program ptxas, which is not here; pip install .* nvidia-cuda-nvcc-cu12 brings"):
        refuse(monkeypatch, "UNAVAILABLE: No PTX compilation provider is available.")


def test_only_a_batch_that_does_not_fit_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = refuse(monkeypatch, "RESOURCE_EXHAUSTED: Out of memory")
    assert [found[name] for name in ("batch", "memory_gb", "temporary_gb", "compile_s", "collectives")] == [4, None, None, None, []]
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        refuse(monkeypatch, "INTERNAL: something else")


def absent(platform: str) -> Any:
    """Stands for a mesh of two devices."""
    return SimpleNamespace(size=2, devices=np.array([SimpleNamespace(platform=platform)] * 2))


def measured(batch: int, memory: float | None) -> dict[str, Any]:
    """What `compile_for` finds out; memory of None does not fit."""
    found = {"batch": batch, "numbers": "TF32", "rematerialise": False, "compile_s": 61.2, "memory_gb": memory, "temporary_gb": 3.21}
    talk = [("all-reduce", 1, 2_000_000), ("all-gather", 5, 900_000), ("all-reduce", 2, 400_000)]
    return found | {"fusions": 7, "collectives": [dataclasses.asdict(Collective(*each)) for each in talk]}


def test_table_names_the_largest_batch_that_fits_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    memory = {1: 4.0, 16: 84.0, 17: 86.0, 32: None}
    monkeypatch.setattr(benchmark_aot, "mesh_of_absent", lambda topology: absent("gpu"))
    monkeypatch.setattr(
        benchmark_aot, "compile_for", lambda config, mesh: measured(config.train.batch_size // 2, memory[config.train.batch_size // 2])
    )
    runpy.run_path(BENCHMARK)["main"](["aot", "h100:2", "--config", "configs/tiny.py", "--batch", *map(str, memory)])
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["topology"] for line in printed[:4]] == ["h100:2"] * 4
    assert "| 1 | TF32 | False | 61 | 4.00 | 3.21 | 7 | 2 all-reduce of 3 arrays (2.4), 1 all-gather of 5 arrays (0.9) |" in printed
    assert any(line.startswith("| 32 | TF32 | False | - | does not fit | - | - |") for line in printed)
    # 79 GiB are 84.8 GB
    assert "of these batches, the largest that fits 79 GiB: 16 photos a device" in printed
    assert printed[-1].startswith("cuDNN chooses its algorithms on a GPU")


def test_numbers_are_those_of_the_device_that_is_absent() -> None:
    default, exact, low = (
        load_config(Path("configs/tiny.py"), overrides) for overrides in ([], ["train.precision=highest"], ["train.compute_dtype=bfloat16"])
    )
    assert [numbers_there(config, absent("gpu")) for config in (default, exact, low)] == ["TF32", "float32", "bfloat16"]
    assert numbers_there(default, absent("tpu")) == "bf16 passes"

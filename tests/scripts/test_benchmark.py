"""The benchmark runs, and its shares add up."""

import json
import re
import runpy
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from scripts import benchmark_step
from spn_jax.config import Config, load_config
from spn_jax.errors import InputError
from spn_jax.runtime import compiling
from spn_jax.runtime.sharding import make_mesh
from tests.devices import memory
from tests.trainer import CONFIG_FILE, Inputs

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"


def test_shares_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["evaluation", "--config", "configs/tiny.py", "--count", "8", "eval.batch_size=4"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")][2:]
    assert printed.startswith("8 photos at 32 pixels, batches of 4")
    assert [row[0] for row in rows] == ["decoding", "model", "metrics"]
    assert sum(float(row[2].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.2)


def test_step_is_timed_with_its_arithmetic_and_memory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(
        ["step", "--config", "configs/tiny.py", "--batch", "2", "--pass", "forward", "--repeats", "2", "--json", str(tmp_path / "numbers")]
    )
    measured = json.loads((tmp_path / "numbers").read_text())
    assert (measured["what"], measured["size"], measured["batch"], measured["numbers"]) == ("forward", 32, 2, "float32")
    assert 0 < measured["least_s"] <= measured["median_s"] <= measured["largest_s"]
    assert measured["images_per_s"] == pytest.approx(2 / measured["median_s"])
    assert measured["tflop_per_s"] == pytest.approx(measured["tflop"] / measured["median_s"])
    assert min(measured["trace_s"], measured["compile_s"]) > 0
    assert "| forward | 32 | 2 | float32 |" in capsys.readouterr().out


def scan_of(length: int) -> Any:
    """Products of matrices, one after the other."""
    return jax.jit(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=length)[0])


def test_operations_are_those_of_the_program_before_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Program:
        """Compiled on a GPU: convolutions are calls that XLA does not count."""

        def cost_analysis(self) -> dict[str, float]:
            return {"flops": 1.0}

    class Lowered:
        def compile(self) -> Program:
            clock[0] += 40
            return Program()

        def cost_analysis(self) -> dict[str, float]:
            return {"flops": 5e9}

    class Function:
        def lower(self, *arguments: int) -> Lowered:
            assert arguments == (1, 2)
            clock[0] += 3
            return Lowered()

    compiled = benchmark_step.compile_program(Function(), (1, 2), load_config(Path("configs/tiny.py"), []))
    assert (compiled.operations, compiled.trace_s, compiled.compile_s) == (5e9, 3, 40)


def test_operations_of_a_convolution_are_those_worked_out_by_hand() -> None:
    image, kernel = jnp.zeros((2, 10, 9, 8)), jnp.zeros((3, 5, 8, 16))
    convolution = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    assert benchmark_step.operations_of(convolution.lower(image, kernel)) == pytest.approx(2 * (2 * 8 * 5 * 16) * (3 * 5 * 8), rel=0.01)


@pytest.mark.parametrize("what", ["forward", "step"])
def test_micro_batches_and_rematerialisation_are_no_further_work(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """XLA counts a loop's body once, and what is computed again is no progress."""
    assert benchmark_step.operations_of(scan_of(9).lower(jnp.eye(8))) == benchmark_step.operations_of(scan_of(2).lower(jnp.eye(8)))
    asked: list[Config] = []

    def program(config: Config, *_: object) -> tuple[Any, tuple[Any, ...]]:
        asked.append(config)
        return jax.jit(lambda x: x * 2), (jnp.ones(7),)

    monkeypatch.setattr(benchmark_step, f"{what}_program", program)
    mesh, plain = make_mesh(1), load_config(Path("configs/tiny.py"), [])
    for setting in "train.micro_batches=2", "train.rematerialise=true":
        assert benchmark_step.needed_operations(what, load_config(Path("configs/tiny.py"), [setting]), mesh) == 7
    assert asked == [plain, plain]


def test_products_that_winograds_form_saves_count_as_work() -> None:
    sizes = ["train.batch_size=1", "data.image_size=128", *(f"model.{name}=128" for name in ("width", "spade_hidden"))]
    config, mesh = load_config(Path("configs/tiny.py"), sizes), make_mesh(1)
    program, arguments = benchmark_step.forward_program(config, mesh)
    found = benchmark_step.needed_operations("forward", config, mesh)
    assert found is not None and found > 1.2 * benchmark_step.operations_of(program.lower(*arguments))


def test_numbers_and_devices_are_chosen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(
        ["step", "--config", "configs/tiny.py", "--pass", "forward", "--repeats", "1", "--devices", "1", "--numbers", "float32", "default"]
        + ["--trace", str(tmp_path)]
    )
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ")[3] for line in lines if line.startswith("| forward | ")]
    # of each profile a table of kinds, whose shares add up
    assert [line.split(" | ")[2] for line in lines if line.startswith("| all | ")] == ["100.0%", "100.0%"]
    assert rows == ["float32", "float32"]  # what a CPU computes by default has the same name
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["forward-default-1", "forward-float32-1"]
    assert all(list(folder.rglob("*.xplane.pb")) for folder in tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--batch", "2"], ["--numbers", "bfloat16"]])
def test_settings_may_follow_an_option_of_several_values(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As they do in docs/training.md."""
    arguments = ["step", "--config", "configs/tiny.py", "--pass", "forward", "--repeats", "1", *option, "data.image_size=64"]
    runpy.run_path(str(SCRIPT))["main"](arguments)
    assert "| forward | 64 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--devices", "999"], r"--devices 999: there are \d+ here; ask for so many at most"),
        (["--devices", "0"], "--devices 0: there must be one at least"),
        (["train.micro_batches=2"], "--batch=1 does not divide over 1 devices times 2 micro-batches; the nearest that does is 2"),
    ],
)
def test_devices_and_batches_that_do_not_fit(arguments: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        runpy.run_path(str(SCRIPT))["main"](["step", "--config", "configs/tiny.py", *arguments])


def test_devices_that_a_cpu_plays_share_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_step, "timed", lambda call: 1.0)
    config, mesh = load_config(Path("configs/tiny.py"), []), make_mesh(1)
    alone = benchmark_step.matrix_rate(config, mesh)
    assert alone == 2 * 1024**3
    assert benchmark_step.matrix_rate(config, SimpleNamespace(size=4)) == alone


OTHER = "import sys\nfor line in sys.stdin: print(0.5, flush=True)"


def test_another_program_takes_turns_with_ours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-c", OTHER])
    arguments = ["beside", "--other", command, "--config", "configs/tiny.py", "--pass", "forward", "--repeats", "3"]
    runpy.run_path(str(SCRIPT))["main"]([*arguments, "--json", str(tmp_path / "times")])
    times = json.loads((tmp_path / "times").read_text())
    assert times["other_s"] == [0.5] * 3
    ours = statistics.median(times["ours_s"])
    printed = capsys.readouterr().out
    assert "| other | 0.5000 | 0.5000 - 0.5000 |" in printed
    assert f"ratio of the medians {ours / 0.5:.3f}" in printed


@pytest.mark.parametrize(
    ("other", "repeats", "text"),
    [
        ("no-such-program", "1", "--other 'no-such-program' cannot be started"),
        ([sys.executable, "-c", "pass"], "1", "it ended or wrote no text; it has to print a number of seconds for each line it reads"),
        ([sys.executable, "-c", "input(); print('ready', flush=True); input()"], "1", "it wrote 'ready'; it has to print a number"),
        ([sys.executable, "-c", OTHER.replace("0.5", "0.0")], "1", "it wrote '0.0'; it has to print a number"),
        ([sys.executable, "-c", OTHER], "0", "--repeats 0: there must be one at least"),
    ],
)
def test_other_programs_that_take_no_turns(other: str | list[str], repeats: str, text: str) -> None:
    command = other if isinstance(other, str) else shlex.join(other)
    arguments = ["beside", "--other", command, "--config", "configs/tiny.py", "--pass", "forward", "--repeats", repeats]
    with pytest.raises(InputError, match=re.escape(text)):
        runpy.run_path(str(SCRIPT))["main"](arguments)


def test_input_alone_and_beside_the_step(inputs: Inputs, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main, file = runpy.run_path(str(SCRIPT))["main"], tmp_path / "numbers"
    main(["input", "--config", CONFIG_FILE, "--batches", "4", "--step", "--json", str(file), *inputs.arguments(tmp_path)[4:]])
    measured = {line["part"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert list(measured) == [
        *("photos: read", "photos: decoded", "photos: cropped and resized", "masks", "features"),
        *("whole batches", "steps on one batch", "steps on the data"),
    ]
    assert {line["photos"] for line in measured.values()} == {4 * 4}
    for line in measured.values():
        assert line["photos_per_s"] == pytest.approx(16 / line["seconds"])
    printed = capsys.readouterr().out
    ratio = measured["whole batches"]["photos_per_s"] / measured["steps on one batch"]["photos_per_s"]
    assert "12 photos, 12,000 masks, features in bfloat16" in printed
    assert f"The input brings {ratio:.1f} times what the step takes" in printed


def test_input_needs_a_batch() -> None:
    with pytest.raises(InputError, match="--batches 0: there must be one at least"):
        runpy.run_path(str(SCRIPT))["main"](["input", "--batches", "0"])


def test_timing_a_step_needs_no_data_loader() -> None:
    program = "import sys; sys.modules['grain'] = sys.modules['array_record'] = sys.modules['cv2'] = None; import scripts.benchmark_step"
    subprocess.run([sys.executable, "-c", program], cwd=SCRIPT.parent.parent, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("numbers", "gigabytes"), [("default", 6.0), ("bfloat16", 4.0)])
def test_the_full_size_step_of_one_photo_fits(numbers: str, gigabytes: float) -> None:
    """JAX counts 2.8 GB of kept maps in float32, before the compiler; the state takes 0.4 GB."""
    config = load_config(Path("configs/celeba.py"), ["train.batch_size=1", *benchmark_step.NUMBERS[numbers]])
    memory()  # skips where the device does not tell
    compiled, step = benchmark_step.training_step(config, make_mesh(1))
    step()
    needs = compiled.program.memory_analysis()
    held = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes + needs.temp_size_in_bytes
    assert held < 1e9 * gigabytes
    assert memory() < held  # between steps there is the state alone

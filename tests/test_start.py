"""What a command imports and compiles before it works: what is not needed costs seconds at every
start.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts.make_pretrained import pack
from spn_jax.checkpoints.weights import NETWORKS
from spn_jax.visualize import VIEWS, about
from teacher_export.weights import NAMES
from tests.tiny import corner, photo

ROOT = Path(__file__).resolve().parent.parent
SLOW = ("jax", "flax", "orbax", "scipy", "sklearn", "matplotlib", "grain", "tensorflow", "torch", "timm", "onnx")
COMMANDS = [
    *(f"-m spn_jax.{name}" for name in ("train", "evaluate", "predict", "export", "demo", "ablate", "visualize")),
    *(f"-m spn_jax.evaluate {name}" for name in ("run", "pairs", "profile")),
    *(f"-m teacher_export{name}" for name in ("", ".convert", ".weights", ".detect")),
    *(
        f"scripts/{name}.py"
        for name in ("benchmark", "compare_on_photos", "make_demo_photos", "make_pretrained", "prepare_dataset", "report")
    ),
]
FORBID = f"import sys; sys.modules.update(dict.fromkeys({SLOW}))"  # None in the place of a module makes its import fail
HELP = f"""
{FORBID}
import runpy
kind, *sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True) if kind == "-m" else runpy.run_path(sys.argv[0], run_name="__main__")
"""
PREDICT = """
import collections, sys, jax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **more: events.update([event.rpartition("/")[2]]))
from spn_jax.predict import cli
try:
    cli()
except SystemExit as end:
    assert not end.code, end.code
unused = ("orbax", "scipy", "sklearn", "matplotlib", "grain", "array_record", "tensorflow", "torch", "onnx", "onnxruntime")
print(events["compile_requests_use_cache"], events["cache_hits"], *(name for name in unused if name in sys.modules))
"""


def run(program: str, *arguments: str, **environment: str | None) -> str:
    """What a program prints last. None takes a variable out of its environment."""
    variables = {name: text for name, text in {**os.environ, "PYTHONPATH": str(ROOT), **environment}.items() if text is not None}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("\n")[2]


def test_the_package_by_itself_imports_nothing_but_the_standard_library() -> None:
    outside = "print([name for name in sys.modules if name.partition('.')[0] in ('numpy', 'PIL', 'cv2', 'jax', 'flax', 'orbax')])"
    assert run(f"import sys, spn_jax; {outside}") == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command: str) -> None:
    kind, *rest = command.split() if command.startswith("-m") else ("file", command)
    assert run(HELP, kind, *rest, "--help")


def test_a_second_call_compiles_nothing_and_a_model_file_needs_no_orbax(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The network is two programs, which the first call compiles and keeps; no calculation outside
    them is a program of its own.
    """
    pack(checkpoints["spn"], tmp_path / "model.npz", "float16")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    Image.fromarray(255 * corner(*photo().shape[:2])[..., 0]).save(tmp_path / "mask.png")
    options = [f"--{name}={tmp_path / file}" for name, file in (("image", "photo.png"), ("mask", "mask.png"), ("output", "out.png"))]

    def call() -> str:
        return run(
            PREDICT,
            f"--checkpoint={tmp_path / 'model.npz'}",
            *options,
            XDG_CACHE_HOME=str(tmp_path / "cache"),
            JAX_COMPILATION_CACHE_DIR=None,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )

    calls = [call(), call()]
    assert calls == ["2 0", "2 2"]  # programs, how many of them came from the cache, and packages that nothing needs
    assert (tmp_path / "out.png").is_file()


def test_names_that_are_known_without_jax_are_the_right_ones() -> None:
    assert sorted(NETWORKS) == list(NAMES)
    assert sorted(VIEWS) == sorted(
        path.stem for path in (ROOT / "spn_jax" / "views").glob("*.py") if "\ndef draw(" in path.read_text(encoding="utf-8")
    )
    assert all(about(view).endswith((".", ")")) for view in VIEWS)

"""What programs set up before they compute."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from spn_jax.errors import InputError
from spn_jax.runtime import device as runtime
from tests.devices import memory


def run(code: str, **environment: str) -> str:
    """What a Python program of its own prints, in an environment without settings for JAX but those
    given.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


COMPILE = (
    "from spn_jax.runtime.device import set_up; set_up(); import jax; "
    "jax.jit(lambda x: x + 1)(1); print(jax.config.jax_compilation_cache_dir)"
)


def test_compiled_programs_are_kept_in_the_users_cache_folder(tmp_path: Path) -> None:
    """And in the folder that the environment names, if it names one."""
    settings = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "home"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    folder = Path(run(COMPILE, **settings))
    assert folder.is_relative_to(tmp_path / "home" / "spn_jax")
    assert any(folder.iterdir())
    assert run(COMPILE, **settings, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    assert any((tmp_path / "own").iterdir())


def test_the_cache_of_compiled_programs_has_a_limit(tmp_path: Path) -> None:
    """The longest unused program goes; a limit or a folder of the user's own stays as it is."""
    code = """
import time, jax
from spn_jax.errors import InputError
from spn_jax.runtime import device as runtime
runtime.CACHE_BYTES = 30_000
runtime.set_up()
for size in range(1, 9):
    jax.jit(lambda x: (x @ x.T).sum())(jax.numpy.ones((size, size)))
print(jax.config.jax_compilation_cache_max_size)
"""
    settings = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert run(code, **settings) == "30000"
    sizes = [file.stat().st_size for file in tmp_path.rglob("*-cache")]
    assert 0 < sum(sizes) <= 30_000
    assert run(code, **settings, JAX_COMPILATION_CACHE_MAX_SIZE="70000") == "70000"
    assert run(code, **settings, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == "-1"


def test_without_locks_the_cache_has_no_limit_and_works(tmp_path: Path) -> None:
    code = """
import filelock, jax
from spn_jax.errors import InputError
from spn_jax.runtime import device as runtime
def refuse(self, *arguments, **options):
    raise NotImplementedError("flock")
filelock.FileLock.acquire = refuse
runtime.set_up()
jax.jit(lambda x: x + 1)(1)
print(jax.config.jax_compilation_cache_max_size)
"""
    settings = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert run(code, **settings) == "-1"
    assert list(tmp_path.rglob("*-cache"))


@pytest.mark.parametrize(("training", "calls"), [(False, 0), (True, 1)])
def test_only_training_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch, training: bool, calls: int) -> None:
    kept: list[None] = []
    monkeypatch.setattr(runtime, "keep_memory", lambda: kept.append(None))
    monkeypatch.setattr(runtime, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr(runtime, "only_cpu", lambda: True)  # which a machine with a GPU is not
    runtime.set_up(training=training)
    assert len(kept) == calls


def test_a_refused_device_leaves_the_choice_as_it_was() -> None:
    before = jax.config.values["jax_platforms"]
    with pytest.raises(InputError, match="--device abacus"):
        runtime.choose_device("abacus")
    assert jax.config.values["jax_platforms"] == before


def test_only_the_trainer_and_the_ablations_ask_for_that() -> None:
    package = Path(runtime.__file__).resolve().parent
    package = package if (package / "train.py").is_file() else package.parent
    asking = {file.name for file in package.rglob("*.py") if "set_up(training=True)" in file.read_text()}
    assert asking == {"train.py", "ablate.py"}


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_freed_memory_is_not_handed_back() -> None:
    """A thread's block of 256 MB, which is freed and taken again, costs page faults once."""
    code = """
import resource, sys, threading
from spn_jax.runtime.device import keep_memory
if sys.argv[1:] == ["keep"]:
    keep_memory()
faults = []
def work():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = b"x" * 2**28
        del block
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults[-1])
"""
    as_usual, kept = int(run(code)), int(run(code.replace("sys.argv[1:]", "['keep']")))
    assert kept < as_usual / 10


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", True), ("cuda", False), ("cuda,cpu", False)])
def test_memory_is_kept_where_only_the_cpu_computes(platforms: str, expected: bool) -> None:
    before = jax.config.values["jax_platforms"]
    try:
        jax.config.update("jax_platforms", platforms)
        assert runtime.only_cpu() is expected
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(("vendors", "expected"), [((), False), (("0x8086",), False), (("0x8086", "0x1ae0"), True)])
def test_a_tpu_is_there_where_a_chip_is_attached(tmp_path: Path, vendors: tuple[str, ...], expected: bool) -> None:
    """The compiler's package alone does not make a machine one with an accelerator."""
    for i, vendor in enumerate(vendors):
        (tmp_path / f"0000:00:0{i}").mkdir()
        (tmp_path / f"0000:00:0{i}" / "vendor").write_text(f"{vendor}\n")
    assert runtime.has_tpu(tmp_path) is expected


def test_arrays_may_be_made_in_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime.on_host():
        assert {device.platform for device in jax.numpy.zeros(3).devices()} == {"cpu"}

    def refuse(backend: str) -> None:
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", refuse)
    with runtime.on_host():  # JAX was told to use an accelerator alone
        assert jax.numpy.zeros(3).devices() == {jax.devices()[0]}


@pytest.mark.gpu
def test_arrays_made_in_the_hosts_memory_take_none_of_a_gpus() -> None:
    before = memory()
    with runtime.on_host():
        array = jax.numpy.ones(2**20)
    assert memory() == before
    assert array.size == 2**20

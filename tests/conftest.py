"""What holds for every test: the device it runs on, the cache of compiled programs, and skips that
count under CI=true.
"""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from tests.trainer import Inputs

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    # Environment variables, set before jax is imported, because tests start subprocesses that have
    # to see the same.
    if not _asks_for_gpu(config):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        # Most of a test is compilation of a program that runs for milliseconds. LLVM without
        # optimisation, XLA's older and simpler way to write kernels, and one module for all of them
        # make that a sixth as long.
        flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ.setdefault("XLA_FLAGS", flags)
    # Several tests run at a time, and threads of one would wait for those of the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cache = Path(__file__).resolve().parent.parent / ".cache" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


LONGEST = ("test_parity", "test_train", "test_distributed", "test_step", "test_page", "test_web")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The longest files first: processes that share the work end together then. Of the others the
    # size tells how long they take.
    sizes = {path: path.stat().st_size for path in {item.path for item in items}}
    items.sort(key=lambda item: (not item.path.name.startswith(LONGEST), -sizes[item.path], str(item.path)))
    if _asks_for_gpu(config):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an accelerator; run pytest -m gpu"))


def _asks_for_gpu(config: pytest.Config) -> bool:
    expression = config.getoption("markexpr") or ""
    return "gpu" in expression and "not gpu" not in expression


def pytest_collection_finish(session: pytest.Session) -> None:
    """Lets the search for garbage leave out what collection has imported, and come less often.
    Tracing makes millions of short-lived objects; a tenth of the tests' time went into the search.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    may_skip = item.get_closest_marker("gpu") is not None or hasattr(report, "wasxfail")
    return report if may_skip else _fail_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _fail_if_skipped(report)


def _fail_if_skipped(report: Report) -> Report:
    if report.skipped and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"CI=true allows no skipped test except those marked gpu; this one said: {reason}"
    return report


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs() -> Generator[None]:
    """Frees what a file compiled at its end: a process that keeps it all comes to seven gigabytes,
    and every profile and every search for garbage gets slower.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Returns the folder `name`, which the first test process that asks for it makes; the others
    wait, and read it.
    """
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    made = folder.with_suffix(".made")
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed to make it
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> "Inputs":
    """Photos and a teacher's cache for runs of the trainer. Not to be changed."""
    # here, because it imports jax, which has to see the variables set above
    from tests import trainer

    return trainer.Inputs.of(made_once(tmp_path_factory, "inputs", trainer.make_inputs))


@pytest.fixture(scope="session")
def reference(inputs: "Inputs", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of an uninterrupted run that kept the checkpoint of every step. Not to be
    changed.
    """
    from tests import trainer

    return made_once(
        tmp_path_factory,
        "reference",
        lambda workdir: trainer.run_here(inputs.arguments(workdir, *trainer.EVERY_STEP)),
    )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's folder with one checkpoint of the tiny model, by kind. Not to be changed."""
    from tests import tiny

    return tiny.save_checkpoints(tmp_path_factory.mktemp("runs"))

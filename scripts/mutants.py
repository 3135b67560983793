"""Makes mistakes in a copy of the code, and lists those that the tests do not notice.

`python scripts/mutants.py [--sample N] [--seed S] [MODULE ...]` has cosmic-ray change one operator,
number, condition, exception or decorator at a time, and runs the tests of that module. A change
that no test notices has survived and is printed: either it has no visible effect, or a test is
missing. All changes of all modules take most of a day; a sample takes some seconds for each.
"""

import argparse
import ast
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# makes the script run from a copy that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spn_jax.errors import InputError, counted, run_command  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("spn_jax", "teacher_export", "configs", "scripts", "tests")
# time limit of a changed module's tests, as a multiple of the unchanged tests' time; tests that
# hang have noticed the change, too
PATIENCE = 6
PHOTO_TESTS = "tests/filling/test_photos.py tests/filling/test_photo_readers.py"
# {module: the tests that have to notice its changes, as arguments of pytest}
MODULES = {
    "spn_jax/filling/photos.py": PHOTO_TESTS,
    "spn_jax/filling/formats.py": f"tests/filling/test_formats.py {PHOTO_TESTS}",
    "spn_jax/filling/metadata.py": "tests/filling/test_photos.py",
    "spn_jax/filling/windows.py": "tests/filling/test_windows.py",
    "spn_jax/demo/guard.py": "tests/demo/test_app.py",
    "spn_jax/runtime/files.py": "tests/runtime/test_files.py",
    "spn_jax/evaluation/resume.py": "tests/evaluation/test_resume.py",
    "spn_jax/evaluation/pairs.py": "tests/evaluation/test_pairs.py",
    "spn_jax/checkpoints/store.py": "tests/checkpoints/test_store.py tests/checkpoints/test_reading.py",
    "spn_jax/checkpoints/reading.py": "tests/checkpoints/test_reading.py",
    "spn_jax/checkpoints/model_file.py": "tests/checkpoints/test_model_file.py",
    "spn_jax/training/resume.py": "tests/training/test_resume.py",
}


def main(arguments: Sequence[str]) -> None:
    """Runs the command line. Raises InputError for wrong input."""
    parser = argparse.ArgumentParser(prog="python scripts/mutants.py", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"one of {', '.join(MODULES)}; all of them if not given")
    parser.add_argument("--sample", type=int, metavar="N", help="changes a module, drawn by chance; all of them if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the chance")
    options = parser.parse_args(arguments)
    if unknown := [module for module in options.modules if module not in MODULES]:
        raise InputError(f"{unknown[0]} has no tests in the table of scripts/mutants.py; it has {', '.join(MODULES)}")
    if options.sample is not None and options.sample < 1:
        raise InputError(f"--sample {options.sample} must be at least 1")
    tried = survived = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = copy_of_repository(Path(folder) / "copy")
        for module in options.modules or MODULES:
            outcomes = list(run_module(module, copy, Path(folder), options.sample, options.seed))
            left = [text for is_killed, text in outcomes if not is_killed]
            print("\n".join([f"{module}: {counted(len(outcomes), 'change')}, {len(left)} survived", *left]), flush=True)
            tried, survived = tried + len(outcomes), survived + len(left)
    print(f"{tried} changes, {tried - survived} noticed, {survived} survived")


def copy_of_repository(folder: Path) -> Path:
    """Copies the code and its tests."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", folder)
    return folder


def run_module(module: str, copy: Path, folder: Path, sample: int | None, seed: int) -> Iterator[tuple[bool, str]]:
    """Yields (whether a test noticed, the change as a diff) for each change of one module. Raises
    InputError if its tests fail without a change.
    """
    from cosmic_ray.config import serialize_config
    from cosmic_ray.work_db import WorkDB, use_db

    session, config = (folder / f"{module.replace('/', '-')}{suffix}" for suffix in (".sqlite", ".toml"))
    command = shlex.join([sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *shlex.split(MODULES[module])])
    start = time.monotonic()
    if subprocess.run(shlex.split(command), cwd=copy, env=environment(), stdout=subprocess.DEVNULL).returncode:
        raise InputError(f"the tests of {module} fail without a change; run {MODULES[module]} and mend them first")
    settings = {
        "module-path": module,
        "timeout": PATIENCE * (time.monotonic() - start) + 10,
        "excluded-modules": [],
        "test-command": command,
        "distributor": {"name": "local"},
    }
    config.write_text(serialize_config(settings))
    cosmic_ray(copy, "init", config, session)
    with use_db(session, WorkDB.Mode.open) as database:
        types = set(annotations((copy / module).read_text()))
        items = [item for item in database.work_items if not is_in(types, item.mutations[0].start_pos)]
        items.sort(key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence, str(item.mutations[0].operator_args)))
        random.Random(f"{seed} {module}").shuffle(items)
        database.clear()
        database.add_work_items(items[:sample])
    cosmic_ray(copy, "exec", config, session)
    with use_db(session, WorkDB.Mode.open) as database:
        for _, result in database.results:
            yield result.is_killed, result.diff or ""


def annotations(source: str) -> Iterator[tuple[int, int, int, int]]:
    """Yields the places of type annotations, which tests cannot notice: first and last line and
    column.
    """
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            if (place := getattr(node, name, None)) is not None:
                yield place.lineno, place.col_offset, place.end_lineno, place.end_col_offset


def is_in(places: set[tuple[int, int, int, int]], position: tuple[int, int]) -> bool:
    """Returns whether a line and column lie within one of the places."""
    return any(place[:2] <= position <= place[2:] for place in places)


def cosmic_ray(copy: Path, command: str, *files: Path) -> None:
    """Runs one of cosmic-ray's commands in the copy."""
    subprocess.run([sys.executable, "-m", "cosmic_ray.cli", command, *map(str, files)], cwd=copy, env=environment(), check=True)


def environment() -> dict[str, str]:
    """Returns the environment of the tests, which share the repository's compiled programs."""
    return {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), **os.environ}


if __name__ == "__main__":
    run_command(main)

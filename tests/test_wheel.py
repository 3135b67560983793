"""The built wheel holds the whole package, and works where nothing else of the repository is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("spn_jax", "teacher_export")
SHIPPED = ROOT / "tests" / "golden" / "shipped"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would otherwise put what an earlier build left into it."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*tracked(), "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip("wheel", "--no-deps", "--wheel-dir", str(output), str(source))
    (path,) = output.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and its commands. What it needs is this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def tracked() -> list[str]:
    """The files of the packages that git knows of, and those that are new."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


def run(folder: Path, *command: str) -> str:
    """A command where the installed packages are found before those of the repository."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith(PACKAGES)}
        held = {name for name in held if ".dist-info/" not in name}
    assert held == set(tracked())
    assert "spn_jax/pretrained/open_scenes/weights.npz" in held


def test_the_installed_packages_are_the_wheels(installed: Path) -> None:
    for package in PACKAGES:
        assert run(installed, sys.executable, "-c", f"import {package}; print({package}.__file__)").startswith(str(installed))


def test_its_command_fills_a_photo_with_the_model_that_comes_along(installed: Path, tmp_path: Path) -> None:
    photo, hole, output = SHIPPED / "photo.png", SHIPPED / "hole.png", tmp_path / "filled.png"
    command = [sys.executable, str(installed / "bin" / "spn-predict")]
    said = run(installed, *command, "--image", str(photo), "--mask", str(hole), "--output", str(output))
    assert f"({installed}/spn_jax/pretrained/open_scenes/MODEL_CARD.md describes it)" in said
    filled, stored = (np.asarray(Image.open(path)).astype(int) for path in (output, SHIPPED / "filled.png"))
    assert np.abs(filled - stored).max() <= 1

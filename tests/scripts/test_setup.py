"""The set-up script keeps an environment that it did not make, with a Python that only writes down
what it is asked for.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"
MARKER = ".made-by-spn-setup"

# It knows the arguments that the script uses; `pip install` is written down and fails if the
# environment says so.
PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"pip --version"*) [ -z "$NO_PIP" ] ;;
    *"-m pip"*) echo "$*" >>"$LOG"; [ -z "$FAIL" ] ;;
    *"%d.%d"*) echo 3.11 ;;
    *urllib*) exit 1 ;;
    *version_info*) exit ${OLD:-0} ;;
    --version) echo "Python 3.11.9" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and the fake Python."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def set_up(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"PYTHON": str(project / "python"), "LOG": str(project / "log")} | environment
    return subprocess.run(["bash", "scripts/setup.sh", ".venv"], cwd=project, env=settings, capture_output=True, text=True, timeout=60)


def own_environment(project: Path) -> Path:
    """An environment that a user made, with a file that only the user has."""
    venv = project / ".venv"
    (venv / "bin").mkdir(parents=True)
    shutil.copy(project / "python", venv / "bin" / "python")
    (venv / "mine.txt").write_text("mine")
    return venv


def test_a_new_environment_is_made_and_marked(project: Path) -> None:
    done = set_up(project)
    assert done.returncode == 0, done.stderr
    assert (project / ".venv" / MARKER).read_text() == "finished\n"
    assert "--editable .[all]" in (project / "log").read_text()


def test_an_environment_of_the_users_own_keeps_its_files(project: Path) -> None:
    venv = own_environment(project)
    done = set_up(project)
    assert done.returncode == 0, done.stderr
    assert (venv / "mine.txt").read_text() == "mine" and not (venv / MARKER).exists()
    assert "--editable .[all]" in (project / "log").read_text() and "keeps what it holds" in done.stdout


def test_a_finished_environment_is_not_made_anew(project: Path) -> None:
    set_up(project)
    (project / ".venv" / "later.txt").write_text("installed later")
    assert set_up(project).returncode == 0
    assert (project / ".venv" / "later.txt").exists()
    assert (project / "log").read_text().count(".[all]") == 2


def test_an_unfinished_environment_is_made_anew(project: Path) -> None:
    assert set_up(project, FAIL="1").returncode != 0
    venv = project / ".venv"
    assert (venv / MARKER).read_text() == "unfinished\n"
    (venv / "half").mkdir()
    (venv / "half" / "package.py").write_text("")
    assert set_up(project).returncode == 0
    assert not (venv / "half").exists() and (venv / MARKER).read_text() == "finished\n"


@pytest.mark.parametrize(
    ("environment", "sentence"), [({"OLD": "1"}, "holds no bin/python of Python 3.11 or newer"), ({"NO_PIP": "1"}, "has no pip; run ")]
)
def test_an_environment_that_does_not_serve_is_one_sentence(project: Path, environment: dict[str, str], sentence: str) -> None:
    venv = own_environment(project)
    done = set_up(project, **environment)
    assert done.returncode == 2 and done.stderr.startswith("error: .venv ") and sentence in done.stderr
    assert done.stderr.count("\n") == 1 and (venv / "mine.txt").exists()


def test_a_file_in_the_environments_place_stays(project: Path) -> None:
    (project / ".venv").write_text("x")
    assert set_up(project).returncode == 2
    assert (project / ".venv").read_text() == "x"

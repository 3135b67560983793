"""How a command reports wrong input, and that its own faults keep their traceback."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from spn_jax.errors import InputError, counted, find_input_error, first_few, first_line, run_command


def exit_status(main: Callable[[Sequence[str]], int | None]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    return stop.value.code


def test_arguments_are_those_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--config", "x"])
    seen: list[str] = []
    assert exit_status(lambda arguments: seen.extend(arguments)) == 0
    assert seen == ["--config", "x"]


@pytest.mark.parametrize(("status", "code"), [(None, 0), (0, 0), (3, 3)])
def test_status_of_main_is_the_exit_status(status: int | None, code: int) -> None:
    assert exit_status(lambda arguments: status) == code


def test_wrong_input_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: Sequence[str]) -> None:
        print("progress")
        raise InputError("folder x is empty; put photos there")

    assert exit_status(main) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: folder x is empty; put photos there\n"
    assert printed.out == "progress\n"


def test_wrong_input_is_found_behind_other_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: Sequence[str]) -> None:
        try:
            raise InputError("photo x is broken; remove it")
        except InputError as error:
            raise RuntimeError("worker thread failed") from error

    assert exit_status(main) == 2
    assert capsys.readouterr().err == "error: photo x is broken; remove it\n"


def test_interrupt_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: Sequence[str]) -> None:
        raise KeyboardInterrupt

    assert exit_status(main) == 130
    assert capsys.readouterr().err == ""


def test_other_exceptions_pass() -> None:
    def main(arguments: Sequence[str]) -> None:
        raise ZeroDivisionError("a fault of the program")

    with pytest.raises(ZeroDivisionError, match="a fault of the program"):
        run_command(main)


def test_as_a_program() -> None:
    program = """
import sys
from spn_jax.errors import InputError, run_command

def main(arguments):
    raise {"input": InputError("no photos"), "fault": TypeError("a fault")}[arguments[0]]

run_command(main)
"""
    wrong, fault = (subprocess.run([sys.executable, "-c", program, kind], capture_output=True, text=True) for kind in ("input", "fault"))
    assert (wrong.returncode, wrong.stderr) == (2, "error: no photos\n")
    assert fault.returncode == 1
    assert "Traceback" in fault.stderr and "TypeError: a fault" in fault.stderr


def raised_from(error: Exception, cause: Exception | None, context: Exception | None = None) -> Exception:
    error.__cause__, error.__context__ = cause, context
    error.__suppress_context__ = cause is not None
    return error


def test_search_follows_causes_and_ends() -> None:
    wanted = InputError("wanted")
    assert find_input_error(wanted) is wanted
    assert find_input_error(raised_from(ValueError(), raised_from(KeyError(), wanted))) is wanted
    assert find_input_error(ValueError("no InputError anywhere")) is None
    assert find_input_error(None) is None
    circle = ValueError()
    circle.__cause__ = raised_from(KeyError(), circle)
    assert find_input_error(circle) is None


def test_contexts_are_followed_through_wrappers_alone() -> None:
    wanted = InputError("wanted")
    wrapper = type("PyGrainInternalError", (Exception,), {"__module__": "grain._src.core.exceptions"})
    assert find_input_error(raised_from(wrapper(), None, context=wanted)) is wanted
    assert find_input_error(raised_from(ValueError(), None, context=wanted)) is None
    hidden = raised_from(wrapper(), None, context=wanted)
    hidden.__suppress_context__ = True
    assert find_input_error(hidden) is None


def test_a_fault_while_wrong_input_is_handled_keeps_its_traceback() -> None:
    def main(arguments: Sequence[str]) -> int:
        try:
            raise InputError("optional.txt is not there")
        except InputError:
            return {"right": 0}["typo"]

    with pytest.raises(KeyError, match="typo"):
        run_command(main)


def test_numbers_and_lists_in_sentences() -> None:
    assert [counted(n, "photo") for n in (0, 1, 12_000)] == ["0 photos", "1 photo", "12,000 photos"]
    assert counted(2, "process", "processes") == "2 processes"
    assert first_few(["a"]) == "a" and first_few(list("abcd")) == "a, b, c, ..."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n first, with its reason \nsecond\n"), "first, with its reason"),
        (ValueError(), "ValueError"),
        (OSError("x" * 300), "x" * 200),
    ],
)
def test_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error).strip() == line


def test_no_text_has_anybody_install_the_package_from_a_registry_that_does_not_have_it() -> None:
    root = Path(__file__).resolve().parent.parent
    files = [file for folder in ("spn_jax", "teacher_export", "scripts") for file in (root / folder).rglob("*.py")]
    wrong = re.compile(r"pip install '?spn_jax")
    assert files and not [str(file) for file in files if wrong.search(file.read_text())]

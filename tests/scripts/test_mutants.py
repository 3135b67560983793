"""Changes are made to code and not to types, in modules whose tests are there."""

import shlex
from pathlib import Path

import pytest

from scripts import mutants
from spn_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("module", mutants.MODULES)
def test_modules_and_their_tests_are_there(module: str) -> None:
    assert (ROOT / module).is_file()
    tests = [word for word in shlex.split(mutants.MODULES[module]) if word.startswith("tests/")]
    assert tests and all((ROOT / test).is_file() for test in tests)


def test_types_are_left_alone() -> None:
    places = set(mutants.annotations("def f(a: int | None = 1 | 2) -> str | None:\n    b: bytes | str = a or 3\n    return None\n"))
    assert places == {(1, 9, 1, 19), (1, 32, 1, 42), (2, 7, 2, 18)}
    assert mutants.is_in(places, (1, 13)) and mutants.is_in(places, (2, 7))
    assert not mutants.is_in(places, (1, 24)) and not mutants.is_in(places, (2, 21)) and not mutants.is_in(places, (3, 9))


def test_a_copy_has_the_code_and_its_tests(tmp_path: Path) -> None:
    copy = mutants.copy_of_repository(tmp_path / "copy")
    for name in ("pyproject.toml", "spn_jax/filling/photos.py", "tests/conftest.py"):
        assert (copy / name).read_bytes() == (ROOT / name).read_bytes()
    assert not list(copy.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["spn_jax/nothing.py"], "spn_jax/nothing.py has no tests in the table"), (["--sample", "0"], "--sample 0 must be at least 1")],
)
def test_wrong_input_is_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        mutants.main(arguments)

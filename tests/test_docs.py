"""README.md and docs/*.md say what is there: their commands, options, settings, links and files
exist, and their form is kept.

No command is run: programs are only asked for their --help, each once and in this process.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import itertools
import re
import runpy
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spn_jax.config import Config, load_config
from spn_jax.settings import to_dict

ROOT = Path(__file__).resolve().parent.parent
GUIDE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*GUIDE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
README_LINES, PROSE_COLUMNS = 200, 100
OURS = ("spn_jax", "teacher_export")
FOLDERS = ("configs", "constraints", "docs", "scripts", "spn_jax", "teacher_export", "tests")
# Words of commands that need a cluster, a TPU, a GPU or a program of the reader's own, so that
# nobody here runs them.
FOREIGN = re.compile(r"\b(srun|sbatch|torchrun|gcloud|kubectl|nsys|TWIN\.py --device|benchmark_gpu\.sh|JOB_COMPLETION_INDEX)\b")
SETTINGS = to_dict(Config())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, text, paragraph before it) of every fenced block."""
    parts = re.split(r"^```", page.read_text(), flags=re.MULTILINE)
    assert len(parts) % 2, f"{name(page)}: a fence is not closed"
    found = []
    for before, block in zip(parts[::2], parts[1::2], strict=False):
        language, _, text = block.partition("\n")
        found.append((language.strip(), text, before.rstrip().rpartition("\n\n")[2]))
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return "".join(re.split(r"^```", page.read_text(), flags=re.MULTILINE)[::2])


def code_spans(page: Path) -> list[str]:
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> Iterator[list[str]]:
    """Every shell command of the page as words, those in the text too; one for each part of
    `a && b`.
    """
    lines = [text for language, text, _ in blocks(page) if language == "sh"]
    lines += [span for span in code_spans(page) if re.match(r"(python |make |bash |pip |spn-)", span)]
    for text in lines:
        for line in text.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                # gcloud and the like take a whole command as one word.
                words = [inner for word in shlex.split(part, comments=True) for inner in (shlex.split(word) if " -m " in word else [word])]
                if words:
                    yield words


def python_programs(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(module or script of ours, its arguments) in a command, also where another program
    starts it.
    """
    if re.match(r"spn-[a-z]", words[0]):
        target = PROJECT.get("scripts", {}).get(words[0])
        assert target, f"pyproject.toml has no command {words[0]}"
        yield target.partition(":")[0], words[1:]
    for i, (word, after) in enumerate(itertools.pairwise(words)):
        is_module = word == "-m" and after.split(".")[0] in OURS
        is_script = word == "python" and after.startswith("scripts/")
        if is_module or is_script:
            yield after, words[i + 2 :]


PROGRAMS = [(page, program, arguments) for page in PAGES for words in commands(page) for program, arguments in python_programs(words)]


@functools.cache
def entry(program: str) -> Callable[[list[str]], object] | None:
    """`main` of a module or script; None of one that reads no options. Fails if it does not
    exist.
    """
    if program.startswith("scripts/"):
        assert (ROOT / program).is_file(), f"{program} does not exist"
        return runpy.run_path(str(ROOT / program)).get("main") if "argparse" in (ROOT / program).read_text() else None
    spec = importlib.util.find_spec(program)
    assert spec, f"module {program} does not exist"
    return importlib.import_module(f"{program}.__main__" if spec.submodule_search_locations else program).main


@functools.cache
def options(program: str, first: str | None) -> frozenset[str]:
    """The --options of a program, of its part `first` where it has parts. Fails if there is no such
    part.
    """
    main = entry(program)
    if main is None:
        return frozenset()
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main([*([first] if first else []), "--help"])
    assert not ended.value.code, f"{program} {first} --help: {errors.getvalue()}"
    return frozenset(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", output.getvalue()))


def test_there_are_commands_to_check() -> None:
    assert len(GUIDE) > 10
    assert len(PROGRAMS) > 50


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_programs_and_their_options_exist(page: Path) -> None:
    wrong = []
    for program, arguments in [(program, arguments) for of, program, arguments in PROGRAMS if of == page]:
        first = arguments[0] if arguments and re.fullmatch(r"[a-z][a-z0-9-]*", arguments[0]) else None
        known = options(program, first)
        asked = [word.partition("=")[0] for word in arguments if re.match(r"--[a-z]", word)]
        wrong += [f"{program} {first or ''}: {option}" for option in asked if option not in known]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_of_commands_exist_and_are_valid(page: Path) -> None:
    for program, arguments in [(program, arguments) for of, program, arguments in PROGRAMS if of == page]:
        overrides = [word for word in arguments if re.match(r"[a-z]+\.[a-z_0-9]+=", word)]
        for override in overrides:
            section, _, key = override.partition("=")[0].partition(".")
            assert key in SETTINGS.get(section, {}), f"{program}: {override}"
        if "--config" in arguments[:-1]:
            # InputError if they do not fit each other
            load_config(ROOT / arguments[arguments.index("--config") + 1], overrides)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_named_in_the_text_exist(page: Path) -> None:
    mentioned = set(re.findall(rf"(?<![\w./])({'|'.join(SETTINGS)})\.([a-z_0-9]+)\b(?!\.|/|\()", page.read_text()))
    unknown = sorted(f"{section}.{key}" for section, key in mentioned if key not in {*SETTINGS[section], "py", "txt", "flist", "md"})
    assert not unknown


def test_make_targets_and_shell_scripts_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = [words for page in PAGES for words in commands(page)]
    made = {word for words in asked if words[0] == "make" for word in words[1:] if "=" not in word}
    assert made >= {"setup", "demo", "test"}
    assert not made - targets
    assert not [words[1] for words in asked if words[0] == "bash" and not (ROOT / words[1]).is_file()]


def test_extras_exist() -> None:
    asked = {extra for page in PAGES for group in re.findall(r"-e '\.\[([a-z0-9,-]+)\]'", page.read_text()) for extra in group.split(",")}
    assert asked
    assert not asked - PROJECT["optional-dependencies"].keys()
    # Whatever has that name in a package registry is not this project.
    assert not [name(page) for page in PAGES if re.search(r"pip install '?spn_jax", page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (heading and heading not in anchors(linked)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The names by which links reach the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it names what was
    paths = [span for span in code_spans(page) if span.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and " " not in span]
    assert not [path for path in paths if "*" not in path and not (ROOT / path).exists()]


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert not [name(page) for page in PAGES if page.name != "README.md" and f"({name(page)})" not in text]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_prose_are_short(page: Path) -> None:
    long = [line for line in prose(page).splitlines() if len(line) > PROSE_COLUMNS and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_nobody_runs_here_says_so(page: Path) -> None:
    shell = [(text, before) for language, text, before in blocks(page) if language == "sh" and FOREIGN.search(text)]
    assert not [text for text, before in shell if "not run" not in before + text]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_pages_is_python_and_imports_what_exists(page: Path) -> None:
    for language, text, _ in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]

"""What --help says about settings, and that it says so at once; tests/test_config.py has what
becomes of their values.
"""

import dataclasses
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spn_jax.config import EXPORT, MASKS, SCORING, TRAINING, Config, load_config
from spn_jax.settings import OnResume, as_typed, chosen_settings, help_text, replace_settings, settings_of

ROOT = Path(__file__).resolve().parent.parent
KEYS = [of.key for of in settings_of(Config)]
COMMANDS = {  # and what they take
    "spn_jax.train": TRAINING,
    "spn_jax.evaluate run": SCORING,
    "spn_jax.evaluate pairs": MASKS,
    "spn_jax.ablate": ("*",),
    "teacher_export": EXPORT,
}


def listed(text: str) -> list[str]:
    return re.findall(r"^[* ] ([a-z]+\.[a-z_0-9]+)=", text.partition("settings, as section.key=value")[2], re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_what_the_command_takes_without_jax(command: str) -> None:
    module, *part = command.split()
    program = "import sys, runpy; sys.modules['jax'] = None; module = sys.argv.pop(1); runpy.run_module(module, run_name='__main__')"
    asked = subprocess.run(
        [sys.executable, "-c", program, module, *part, "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    expected = [key for key in KEYS if any(fnmatch.fnmatchcase(key, pattern) for pattern in COMMANDS[command])]
    assert listed(asked.stdout) == expected
    assert max(map(len, asked.stdout.splitlines())) <= 100


def test_every_setting_belongs_to_a_task_and_every_pattern_means_some() -> None:
    patterns = {*TRAINING, *EXPORT, *SCORING, *MASKS}
    assert [key for key in KEYS if not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(KEYS, pattern)] == []


def test_which_settings_decide_scores() -> None:
    """An unfinished evaluation is continued with these as they were; threads, sizes of batches and
    the like change no score.
    """
    decide = [of.name for of in chosen_settings(Config, SCORING) if of.declared.on_resume is not OnResume.SAME_NUMBERS]
    of_data = ["test_photos", "test_masks", "invert_masks", "mask_fit", "image_size", "crop", "resize_filter", "seed"]
    assert decide == [*of_data, "samples", "quantise", "seed"]


def test_every_setting_has_a_meaning_and_its_default_can_be_typed() -> None:
    for of in settings_of(Config):
        assert of.declared.meaning and not of.declared.meaning.endswith("."), of.key
        assert of.of(replace_settings(Config(), [f"{of.key}={as_typed(of.default)}"])) == of.default, of.key


def test_a_line_has_default_meaning_choices_and_whether_a_continued_run_may_change_it() -> None:
    lines = help_text(Config, "*", resumable=True).splitlines()
    assert "* data.prefetch=4                 batches read ahead" in lines
    assert "  data.flip=together              mirroring: photo and mask alike (released) or each by itself" in lines
    assert f"{'':34}(paper) [none | together | independent]" in lines
    starred = [line.partition("=")[0].removeprefix("* ") for line in lines if line.startswith("* ")]
    assert starred == [of.key for of in settings_of(Config) if of.declared.on_resume is not OnResume.ANOTHER_RUN]


# --- pages ---

PAPER = (ROOT / "docs" / "paper_and_program.md").read_text()


def test_the_defaults_in_the_table_of_paper_and_program() -> None:
    """A row tells the default, or what the probabilistic configs have instead; where each config
    has its own, it says so.
    """
    rows = [line.strip("|").split("|") for line in PAPER.splitlines() if line.startswith("|") and line.count("|") == 6]
    cells = {key: cell for *_, keys, cell in rows for key in re.findall(r"`([a-z]+\.[a-z_]+)`", keys)}
    known = {of.key: of for of in settings_of(Config)}
    assert len(cells) > 15 and cells.keys() <= known.keys()
    probabilistic = load_config(ROOT / "configs" / "celebahq_probabilistic.py")
    for key, cell in cells.items():
        said = re.findall(r"[a-z_]+|\d+(?:\.\d+)?", cell)
        has = {as_typed(known[key].default), as_typed(known[key].of(probabilistic))}
        assert has & set(said) or "as released, in each config" in cell, f"{key}: {cell}"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.batch_size = 4  # type: ignore[misc]

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

from spn_jax.config import EXPORT_KEYS, MASK_KEYS, SCORING_KEYS, TRAINING_KEYS, Config, load_config
from spn_jax.settings import OnResume, as_typed, chosen_settings, help_text, replace_settings, settings_of

ROOT = Path(__file__).resolve().parent.parent
KEYS = [entry.key for entry in settings_of(Config)]
COMMANDS = {  # and what they take
    "spn_jax.train": TRAINING_KEYS,
    "spn_jax.evaluate run": SCORING_KEYS,
    "spn_jax.evaluate pairs": MASK_KEYS,
    "spn_jax.ablate": ("*",),
    "teacher_export": EXPORT_KEYS,
}


def listed(text: str) -> list[str]:
    return re.findall(r"^[*+ ] ([a-z]+\.[a-z_0-9]+)=", text.partition("settings, as section.key=value")[2], re.MULTILINE)


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
    patterns = {*TRAINING_KEYS, *EXPORT_KEYS, *SCORING_KEYS, *MASK_KEYS}
    assert [key for key in KEYS if not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(KEYS, pattern)] == []


def test_which_settings_decide_scores() -> None:
    """An unfinished evaluation is continued with these as they were; threads, sizes of batches and
    the like change no score.
    """
    decide = [entry.name for entry in chosen_settings(Config, SCORING_KEYS) if entry.declared.on_resume is not OnResume.SAME_NUMBERS]
    of_data = ["test_photos", "test_masks", "invert_masks", "mask_fit", "image_size", "crop", "resize_filter", "seed"]
    assert decide == [*of_data, "samples", "quantise", "seed"]


def test_every_setting_has_a_meaning_and_its_default_can_be_typed() -> None:
    for entry in settings_of(Config):
        assert entry.declared.meaning and not entry.declared.meaning.endswith("."), entry.key
        assert entry.value_in(replace_settings(Config(), [f"{entry.key}={as_typed(entry.default)}"])) == entry.default, entry.key


def test_a_line_has_default_meaning_choices_and_whether_a_continued_run_may_change_it() -> None:
    lines = help_text(Config, "*", resumable=True).splitlines()
    assert "* data.prefetch=4                 batches read ahead" in lines
    assert "  data.flip=together              mirroring: photo and mask alike (released) or each by itself" in lines
    assert f"{'':34}(paper) [none | together | independent]" in lines
    starred = [line.partition("=")[0].removeprefix("* ") for line in lines if line.startswith("* ")]
    safe = (OnResume.SAME_NUMBERS, OnResume.ANOTHER_BEST)
    assert starred == [entry.key for entry in settings_of(Config) if entry.declared.on_resume in safe]


def test_what_names_weights_or_features_is_not_marked_as_free_to_change() -> None:
    """The trainer compares their contents, so another seed of random weights stops the run."""
    text = help_text(Config, *TRAINING_KEYS, resumable=True)
    marked = re.findall(r"^\+ ([a-z_.]+)=", text, re.MULTILINE)
    assert marked == ["teacher.weights", "teacher.levels", "teacher.seed", "loss.vgg"]
    assert "those with a plus too, if weights and features stay the same" in text
    assert "+" not in help_text(Config, "teacher.*")


# --- pages ---

PAPER = (ROOT / "docs" / "paper_and_program.md").read_text()


def test_the_defaults_in_the_table_of_paper_and_program() -> None:
    """A row tells the default, or what the probabilistic configs have instead; where each config
    has its own, it says so.
    """
    rows = [line.strip("|").split("|") for line in PAPER.splitlines() if line.startswith("|") and line.count("|") == 6]
    cells = {key: cell for *_, keys, cell in rows for key in re.findall(r"`([a-z]+\.[a-z_]+)`", keys)}
    known = {entry.key: entry for entry in settings_of(Config)}
    assert len(cells) > 15 and cells.keys() <= known.keys()
    probabilistic = load_config(ROOT / "configs" / "celebahq_probabilistic.py")
    for key, cell in cells.items():
        said = re.findall(r"[a-z_]+|\d+(?:\.\d+)?", cell)
        has = {as_typed(known[key].default), as_typed(known[key].value_in(probabilistic))}
        assert has & set(said) or "as released, in each config" in cell, f"{key}: {cell}"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.batch_size = 4  # type: ignore[misc]

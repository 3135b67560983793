"""Sweeps through their command line: forms of all tables, runs that are skipped, continued and
shared, wrong input in one sentence.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spn_jax import ablate, evaluate
from spn_jax.ablations import conduct
from spn_jax.ablations import plans as sweeps
from spn_jax.ablations.plans import Run
from spn_jax.config import load_config
from spn_jax.errors import InputError, run_command
from spn_jax.evaluation import bins, tables
from spn_jax.training import loop
from spn_jax.training.processes import Stopped
from tests import trainer
from tests.models.test_models import abstract_spn, parameter_count
from tests.trainer import Inputs

TWO_STEPS = ("schedule.length=2", "schedule.learning_rate_drops=1", "train.checkpoint_every=1", "train.ema_decay=none")


def arguments(inputs: Inputs, workdir: Path, table: str, *more: str) -> list[str]:
    paths = [f"data.train_photos={inputs.train}", f"data.test_photos={inputs.test}", f"teacher.cache={inputs.cache}"]
    return ["--config", trainer.CONFIG_FILE, "--table", table, "--workdir", str(workdir), *paths, *TWO_STEPS, *more]


def rows(text: str) -> list[list[str]]:
    """Cells of the first table of a report, without its header."""
    table = text.partition("\n\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][1:]


@pytest.fixture(scope="module")
def sweep(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of two runs of Table 3, trained by steps that only count, and evaluated.
    Not to be changed.
    """
    workdir = tmp_path_factory.mktemp("sweep") / "runs"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "compile_train_step", trainer.idle_step)
        ablate.main(arguments(inputs, workdir, "3", "--only", "scales-1", "spl"))
    return workdir


def test_a_sweep_leaves_runs_and_the_papers_table(inputs: Inputs, sweep: Path) -> None:
    text = (sweep / "table3.md").read_text()
    of = {row[4]: row for row in rows(text)}
    assert list(of) == ["spl", "scales-1", "scales-2", "spn"]
    channels = {level.level: level.channels for level in trainer.LEVELS}
    base = load_config(trainer.CONFIG_FILE)
    for run in sweeps.plan("3", base, sweeps.Choices(sweep)).runs:
        if run.name not in ("spl", "scales-1"):
            assert of[run.name][5:7] == ["-", "not yet"]
            continue
        evaluated = json.loads((sweep / run.name / "evaluation" / "results.json").read_text())
        scores = evaluated["rows"][run.name][-1]
        assert of[run.name][5] == f"{parameter_count(abstract_spn(run.config(base).model, channels)):,}"
        assert of[run.name][7].split()[0] == f"{scores['psnr']:.2f}" and of[run.name][8].split()[0] == f"{10 * scores['mae']:.4f}"
        assert evaluated["about"]["methods"][run.name]["step"] == 2
    pairs = {(sweep / name / "evaluation" / "results.json").read_text().partition('"pair_list"')[2][:100] for name in ("spl", "scales-1")}
    assert len(pairs) == 1 and (sweep / "pairs.tsv").is_file()
    assert "trained for 2 steps of 4 photos: spl, scales-1" in text and "the spread of seeds is not known" in text
    assert "64 x 64 (SPL)" in text and tables.NOT_COMPARABLE in text and "6 images, the paper 100" in text
    assert {path.name for path in sweep.glob("table3.*")} == {"table3.md", "table3.tex", "table3.json"}


def test_finished_runs_are_not_trained_or_evaluated_again(
    inputs: Inputs, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = Path(shutil.copytree(sweep, tmp_path / "runs"))
    monkeypatch.setattr(conduct, "train", lambda *given, **named: pytest.fail("a finished run was trained"))
    monkeypatch.setattr(conduct, "evaluate", lambda given: pytest.fail("a finished run was evaluated"))
    # another table, the same run
    ablate.main(arguments(inputs, workdir, "fig7", "--only", "scales-1"))
    printed = capsys.readouterr().out
    assert "scales-1: trained and evaluated" in printed and (workdir / "fig7.md").read_text() in printed
    assert rows((workdir / "fig7.md").read_text())[2][1] == "scales-1"


def test_an_evaluation_that_was_lost_is_made_without_training(
    inputs: Inputs, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = Path(shutil.copytree(sweep, tmp_path / "runs"))
    results = workdir / "spl" / "evaluation" / "results.json"
    before = json.loads(results.read_text())
    shutil.rmtree(results.parent)
    monkeypatch.setattr(conduct, "train", lambda *given, **named: pytest.fail("a finished run was trained"))
    ablate.main(arguments(inputs, workdir, "3", "--only", "spl"))
    assert json.loads(results.read_text())["images"] == before["images"]


def test_the_list_trains_nothing(inputs: Inputs, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablate.main(arguments(inputs, sweep, "3", "--list"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"prior scales: 4 runs in {sweep}"
    assert re.fullmatch(r"spl +at step 2, evaluated  model.decoder=region_norm .*", lines[1])
    assert re.fullmatch(r"spn +not begun  the config as it is", lines[4])


def test_missing_features_are_said_with_their_commands_before_anything_is_trained(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "train", lambda *given, **named: pytest.fail("a run was trained"))
    workdir = tmp_path / "runs"
    with pytest.raises(InputError, match=r"teacher features are missing \(nothing was trained\); add --export, or run") as error:
        ablate.main(arguments(inputs, workdir, "fig8", "--teacher", "sobel", "--teacher", "x=timm:resnet18@random"))
    assert f"-m teacher_export --config {trainer.CONFIG_FILE} data.train_photos={inputs.train}" in str(error.value)
    assert f"teacher.name=sobel teacher.mode=cached teacher.layers= teacher.cache={workdir}/teachers/sobel`" in str(error.value)
    assert "--weights random" in str(error.value) and str(inputs.cache) + "`" not in str(error.value)
    with pytest.raises(InputError, match="spl-spn-prior's after the run spn is trained: --only spn"):
        ablate.main(arguments(inputs, workdir, "5"))
    other = trainer.make_cache(tmp_path / "other", inputs.train, teacher="hrnet")
    with pytest.raises(InputError, match="teacher.name is hrnet in the cache, tresnet_l here"):
        ablate.main(arguments(inputs, workdir, "3", f"teacher.cache={other}"))


@pytest.mark.parametrize(
    ("table", "more", "message"),
    [
        ("3", ("--only", "scales-4"), "--only scales-4: unknown run; available: spl, scales-1, scales-2, spn"),
        ("5", ("--only", "spl-spn-prior"), "spl-spn-prior learns from the run spn, which has not been trained; add spn to --only"),
        ("5", ("--prior-from", "nowhere"), "checkpoint nowhere is not a folder"),
        ("3", ("loss.prior=0",), "a sweep of 3 starts from spn"),
        ("3", ("--pairs", "nowhere"), "--pairs nowhere is neither a file"),
        ("3", ("data.test_photos=nowhere",), "data.test_photos: nowhere does not exist"),
    ],
)
def test_wrong_input(inputs: Inputs, tmp_path: Path, table: str, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ablate.main(arguments(inputs, tmp_path / "runs", table, *more))


def test_other_settings_or_pairs_need_another_folder(inputs: Inputs, sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spl holds a run with other settings .optimizer.beta2: 0.9 -> 0.5.; give the settings back"):
        ablate.main(arguments(inputs, sweep, "3", "--only", "spl", "optimizer.beta2=0.5"))
    evaluate.main(f"pairs --photos {inputs.test} --masks strokes --seed 7 --output {tmp_path}/other.tsv data.image_size=32".split())
    with pytest.raises(InputError, match="is not the list that the sweep in .* began with"):
        ablate.main(arguments(inputs, sweep, "3", "--only", "spl", "--pairs", f"{tmp_path}/other.tsv"))


def test_settings_after_only_are_settings() -> None:
    options = ablate.parse(["--config", "C", "--table", "3", "a.b=1", "--only", "spl", "spn", "c.d=2"])
    assert (options.only, options.overrides) == (["spl", "spn"], ["a.b=1", "c.d=2"])


# --- the form of every table, from scores that nobody measured ---


def write_scores(workdir: Path, run: str, seed: int, pairs: Any) -> None:
    random = np.random.default_rng(seed)
    holes = np.array([0.1, 0.3, 0.5])
    records = {"hole": holes, "bin": bins.bins_of(holes)} | {name: random.random(3) for name in ("psnr", "ssim", "mae")}
    about = {
        "methods": {run: {"step": 2, "teacher": {"origin": "random(seed=0)"}}},
        "pair_list": {"sha256": pairs.sha256},
        "weights": {},
        "notes": [f"the masks differ: {run} was trained on strokes"],
    }
    folder = workdir / run / "evaluation"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(tables.as_json({run: records}, about))


@pytest.mark.parametrize(
    ("table", "first_column"),
    [
        ("3", ["x", "x", "x", "x"]),
        ("4", ["4", "8", "12"]),
        ("5", ["SPL", "SPL"]),
        (
            "fig7",
            ["SPN", "without distillation (w/o S)", "without multi-scale prior", "concatenation in place of SPADE"],
        ),
        ("fig8", ["tresnet_l", "canny", "sobel"]),
        ("weights", ["0.1"] * 3 + ["1"] * 3 + ["10"] * 3),
    ],
)
def test_every_table_has_the_papers_form(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: str, first_column: list[str]
) -> None:
    monkeypatch.setattr(conduct, "provide_caches", lambda work, workdir: None)

    def pretend(work: list[conduct.Work]) -> bool:
        for seed, one in enumerate(work):
            write_scores(tmp_path, one.run.name, seed, one.pairs)
        return True

    monkeypatch.setattr(conduct, "conduct", pretend)
    ablate.main(arguments(inputs, tmp_path, table))
    printed = capsys.readouterr().out
    name = table if table.startswith(("fig", "weights")) else f"table{table}"
    text = (tmp_path / f"{name}.md").read_text()
    assert text in printed
    lines = rows(text)
    assert [line[0] for line in lines] == first_column
    assert all(re.fullmatch(r"0\.\d{4} ± 0\.\d{4}", line[-4]) and re.fullmatch(r"\d\.\d\d ± \d\.\d\d", line[-3]) for line in lines)
    assert (f"### {tables.NOT_COMPARABLE}" in text) == (table != "weights")
    # of all runs together
    assert text.count("the masks differ: the models were trained on strokes") == 1
    assert "picture by picture" in text and "### by hole ratio" in text
    assert len(json.loads((tmp_path / f"{name}.json").read_text())["rows"]) == len(lines)
    assert (tmp_path / f"{name}.tex").read_text().count(r"\\") == len(lines) + 1


# --- runs that several processes share ---


@dataclasses.dataclass
class FakeWork:
    """A run that takes a moment, and notes who did it."""

    run: Run
    folder: Path
    done: dict[str, int]
    finishes: bool = True

    def is_trained(self) -> bool:
        return self.run.name in self.done

    is_evaluated = is_trained

    def do(self) -> None:
        time.sleep(0.05)
        if not self.finishes:
            raise Stopped(signal.SIGTERM)
        assert self.run.name not in self.done and (self.run.after is None or self.run.after in self.done)
        self.done[self.run.name] = threading.get_ident()


def fakes(folder: Path, done: dict[str, int], **options: bool) -> Any:
    runs = [Run("learner", after="teacher"), *(Run(f"run{i}") for i in range(6)), Run("teacher")]
    return [FakeWork(run, folder / run.name, done, **options) for run in runs]


def test_two_processes_share_the_runs_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "POLL_SECONDS", 0.01)
    done: dict[str, int] = {}
    threads = [threading.Thread(target=lambda: conduct.conduct(fakes(tmp_path, done))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 8 and not any(thread.is_alive() for thread in threads)
    assert len(set(done.values())) == 2  # each did some of them, none was done twice


def test_a_run_whose_process_is_gone_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conduct, "POLL_SECONDS", 0.05)
    done: dict[str, int] = {}
    with conduct.claimed(tmp_path / "run3") as mine:
        assert mine
        waiting = threading.Thread(target=lambda: conduct.conduct(fakes(tmp_path, done)))
        waiting.start()
        time.sleep(1)
        assert len(done) == 7 and waiting.is_alive()
    waiting.join(30)
    assert "run3" in done and capsys.readouterr().out.count("run3 is being trained by another process; waiting") == 1


def test_a_stopped_run_stops_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        conduct.conduct(fakes(tmp_path, {}, finishes=False))
    assert stopped.value.status == 143


def test_a_stopped_sweep_ends_what_comes_after_it(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make` and `&&` go on after status 0 alone; 143 is what shells say of a program that SIGTERM
    ended.
    """

    def stopped(work: Any) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(conduct, "conduct", stopped)
    monkeypatch.setattr("spn_jax.ablations.report.report", lambda *given: pytest.fail("a stopped sweep has no table"))
    monkeypatch.setattr("sys.argv", ["ablate", *arguments(inputs, tmp_path / "runs", "3")])
    with pytest.raises(SystemExit) as ended:
        run_command(ablate.main)
    assert ended.value.code == 143 and "stopped by a signal; the same command continues the sweep" in capsys.readouterr().out


# --- as people start it ---


def start(inputs: Inputs, workdir: Path, *more: str, table: str = "3") -> Any:
    return trainer.start(arguments(inputs, workdir, table, *more), program=("-m", "spn_jax.ablate"))


def last_arrays(workdir: Path) -> dict[str, dict[str, np.ndarray]]:
    return {folder.parent.name: trainer.last_arrays(folder) for folder in workdir.glob("*/train")}


@pytest.mark.long
def test_a_stopped_and_a_killed_sweep_end_as_an_uninterrupted_one(inputs: Inputs, tmp_path: Path) -> None:
    more = ("schedule.length=30", "--only", "spl", "scales-1")
    trainer.finish(start(inputs, tmp_path / "whole", *more))
    interrupted = tmp_path / "interrupted"
    process = start(inputs, interrupted, *more)
    trainer.wait_for(process, "step 3/")
    process.send_signal(signal.SIGTERM)
    output, _ = trainer.finish(process, status=143)
    assert "stopped by a signal; the same command continues the sweep" in output and not (interrupted / "table3.md").exists()
    for line in ("step 20/", "== spl: evaluation", "== scales-1: model", "step 12/"):
        process = start(inputs, interrupted, *more)
        trainer.wait_for(process, line)
        process.kill()
        process.communicate()
    output, _ = trainer.finish(start(inputs, interrupted, *more))
    assert "spl: trained and evaluated" in output
    whole, continued = last_arrays(tmp_path / "whole"), last_arrays(interrupted)
    assert set(whole) == set(continued) == {"spl", "scales-1"}
    for name, arrays in whole.items():
        assert all(arrays[key].tobytes() == continued[name][key].tobytes() for key in arrays)
    assert (interrupted / "table3.md").read_text() == (tmp_path / "whole" / "table3.md").read_text()


@pytest.mark.long
def test_two_commands_at_once_share_a_sweep(inputs: Inputs, tmp_path: Path) -> None:
    both = [start(inputs, tmp_path / "runs") for _ in range(2)]
    texts = [trainer.finish(process)[0] for process in both]
    trained = [re.findall(r"^== (\S+): (?!evaluation)", text, re.MULTILINE) for text in texts]
    assert sorted(trained[0] + trained[1]) == ["scales-1", "scales-2", "spl", "spn"] and all(trained)
    assert all("## Table 3: prior scales" in text for text in texts)


@pytest.mark.long
@pytest.mark.parametrize("table", sweeps.SWEEPS)
def test_every_table_is_one_command(inputs: Inputs, tmp_path: Path, table: str) -> None:
    """From photos to the table, features of the teachers included."""
    more = ("--export", "--weights", "random", f"teacher.cache={tmp_path / 'teacher'}")
    output, _ = trainer.run(arguments(inputs, tmp_path / "runs", table, *more), program=("-m", "spn_jax.ablate"))
    assert "not yet" not in output.partition("## ")[2] and "written to" in output
    assert (
        len(list((tmp_path / "runs").glob("*/train/checkpoints/2"))) == {"3": 4, "4": 3, "5": 3, "fig7": 4, "fig8": 3, "weights": 9}[table]
    )


def test_a_failed_export_is_one_sentence(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        returncode = 2

    seen: list[list[str]] = []

    def run(command: list[str], env: dict[str, str]) -> Ended:
        seen.append(command)
        return Ended()

    monkeypatch.setattr(conduct.subprocess, "run", run)
    with pytest.raises(InputError, match="the features of spn could not be exported; what stands above says why"):
        ablate.main(arguments(inputs, tmp_path / "runs", "3", "--export", "--weights", "W", f"teacher.cache={tmp_path / 'none'}"))
    assert seen[0][1:7] == ["-m", "teacher_export", "--config", trainer.CONFIG_FILE, "--weights", "W"]
    assert not os.path.exists(tmp_path / "runs" / "spl" / "train")

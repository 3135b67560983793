"""Shows losses and scores of several runs over their steps."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spn_jax.drawing import figures
from spn_jax.drawing.sheet import Cell, Row, sheet
from spn_jax.errors import InputError

METRICS = ("generator/loss", "generator/reconstruction", "generator/prior", "discriminator/loss", "eval/psnr", "eval/ssim")
COLOURS = figures.PALETTE[[4, 5, 2, 6, 0, 1, 7]]  # without yellow, which is hard to see on white
DASHES = ("-", "--", "-.", ":")  # the next dash is used when the colours repeat
SETTINGS_SHOWN = 12  # most settings shown of those in which runs differ

Lines = Sequence[Mapping[str, Any]]


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a run's work directory, or one of its checkpoints; repeatable",
    )
    add("--metric", action="append", default=[], metavar="NAME", help=f"repeatable; if not given: {', '.join(METRICS)}")


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws a panel for each metric, and a line for each run."""
    if not options.checkpoint:
        raise InputError("no run was given; pass --checkpoint DIR, its work directory")
    from spn_jax.evaluation.methods import named_checkpoints  # imports JAX, and scripts/report.py draws curves without

    folders = {name: run_folder(Path(given)) for name, given in named_checkpoints(options.checkpoint).items()}
    return page({name: figures.read_metrics(folder / "metrics.jsonl") for name, folder in folders.items()}, folders, options.metric)


def page(runs: Mapping[str, Lines], folders: Mapping[str, Path], metrics: Sequence[str] = ()) -> np.ndarray:
    """Draws the curves of runs, with a caption that says in which settings they differ."""
    picture = curves_of_runs(runs, metrics_shown(runs, metrics))
    steps = ", ".join(f"{name}: {max((line['step'] for line in lines), default=0):,} steps" for name, lines in runs.items())
    text = f"Metrics as each run logged them; eval/... on held-out photos. {steps}.\n"
    return sheet([Row([Cell(picture)])], [], text + difference(folders), cell=len(picture))


def run_folder(given: Path) -> Path:
    """Returns the work directory of a path: the folder with metrics.jsonl. Raises InputError if
    there is none.
    """
    for folder in (given, *given.absolute().parents[:2]):
        if (folder / "metrics.jsonl").is_file():
            return folder
    raise InputError(f"{given} has no metrics.jsonl; pass a run's work directory or one of its checkpoints")


def metrics_shown(runs: Mapping[str, Lines], wanted: Sequence[str]) -> list[str]:
    """Returns the metrics that any run has. Raises InputError if no run has a requested one, or
    there are none.
    """
    there = dict.fromkeys(key for lines in runs.values() for line in lines for key in line if key != "step" and not key.startswith("time/"))
    if missing := [name for name in wanted if name not in there]:
        raise InputError(f"no run has the metric {', '.join(missing)}; there are {', '.join(there) or 'none'}")
    shown = list(wanted) or [name for name in METRICS if name in there]
    if not shown:
        raise InputError(f"the runs have none of {', '.join(METRICS)} yet; name others with --metric, or wait for their first line")
    return shown


def curves_of_runs(runs: Mapping[str, Lines], metrics: Sequence[str]) -> np.ndarray:
    """Draws a panel for each metric over the steps; a run has the same colour and dash in all."""
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = figures.new_figure(columns, rows)
    for i, metric in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, i + 1)
        for j, (name, lines) in enumerate(runs.items()):
            points = [(line["step"], line[metric]) for line in lines if isinstance(line.get(metric), int | float)]
            style = DASHES[j // len(COLOURS) % len(DASHES)]
            marker = "o" if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True) if points else ([], []), style, label=name, marker=marker, **_look(j))
        axes.set_title(metric, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step", fontsize=7)
        if i == 0 and len(runs) > 1:
            axes.legend(fontsize=7)
    return figures.render(figure)


def _look(run: int) -> dict[str, Any]:
    return {"color": COLOURS[run % len(COLOURS)] / 255, "linewidth": 1.2, "markersize": 3}


def difference(folders: Mapping[str, Path]) -> str:
    """Says in which settings the runs differ, by their config.txt; for a single run, where it is
    and what it trained.
    """
    configs = {name: read_config(folder) for name, folder in folders.items()}
    if len(configs) == 1:
        (config,) = configs.values()
        told = ("data.train_photos", "data.image_size", "model.width", "teacher.name", "train.batch_size", "optimizer.learning_rate")
        return ", ".join(f"{key} = {config[key]}" for key in told if key in config)
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differing = [key for key in keys if len({config.get(key) for config in configs.values()}) > 1 and key != "teacher.cache"]
    if not differing:
        return "The runs have the same settings."
    lines = [f"{key}: " + ", ".join(f"{config.get(key, '?')} ({name})" for name, config in configs.items()) for key in differing]
    more = [f"and {len(lines) - SETTINGS_SHOWN} more settings"] if len(lines) > SETTINGS_SHOWN else []
    return "They differ in " + "; ".join([*lines[:SETTINGS_SHOWN], *more]) + "."


def read_config(folder: Path) -> dict[str, str]:
    """Returns {section.key: value} of a run's config.txt; empty if there is none."""
    path = folder / "config.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {key: value for key, separator, value in (line.partition(" = ") for line in lines) if separator}

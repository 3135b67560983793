"""Lists the paper's ablations as runs: their changes to a config and their rows in the table.

Every run starts from one config, the SPN with all three priors, and changes only the settings named
here. A run that changes nothing is the run `spn`. Tables share it, as they share all runs of one
name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spn_jax.config import Config, apply_overrides
from spn_jax.errors import InputError
from spn_jax.evaluation.paper import WEIGHTS

BASE = "spn"  # the run that changes nothing
SPL = ("model.decoder=region_norm", "model.prior_levels=3", "model.prior_encoder_slope=0.1")
ONE_SCALE, TWO_SCALES = "model.prior_levels=3", "model.prior_levels=2,3"
EDGES = ("canny", "sobel")  # teachers that need no weights


@dataclass(frozen=True)
class Run:
    """One training run.

    name: its name in folders and tables.
    settings: the settings that it changes, as section.key=value.
    weights: --weights for the export of its own teacher, if any.
    after: the run whose priors are its teacher, which must be trained before.
    """

    name: str
    settings: tuple[str, ...] = ()
    weights: str | None = None
    after: str | None = None

    def config(self, base: Config) -> Config:
        """Returns the settings that it is trained with. Raises InputError if they do not go
        together.
        """
        return apply_overrides(base, self.settings)

    def has_own_teacher(self) -> bool:
        """Returns whether its teacher is not the config's."""
        return any(setting.startswith("teacher.name=") for setting in self.settings)


Row = tuple[tuple[str, ...], Run]  # a table's cells before the scores, and the run that has the scores


@dataclass(frozen=True)
class Sweep:
    """A table of the paper.

    heads: titles of the columns before the scores.
    rows: (cells under the heads, run), in the table's order.
    reference: the run that the others are compared with, picture by picture.
    helpers: runs that are not in the table, but that others learn from.
    remarks: what a reader has to know.
    """

    table: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    reference: str = BASE
    helpers: tuple[Run, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """Each run once, in the order of training."""
        return list({run.name: run for run in (*self.helpers, *(run for _, run in self.rows))}.values())


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher of Fig. 8: its name in the table, teacher.name, and --weights of its export."""

    label: str
    name: str
    weights: str | None = None


def teacher_choice(text: str) -> TeacherChoice:
    """Parses [LABEL=]TEACHER[@WEIGHTS], as `canny`, `timm:resnet50@pretrained` or
    `yolov5=yolov5.pt`. Raises InputError if it is malformed.
    """
    label, separator, rest = text.partition("=")
    name, _, weights = (rest if separator else text).partition("@")
    label = label if separator else re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-")
    if not name or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", label):
        raise InputError(f"--teacher {text} must be [LABEL=]TEACHER[@WEIGHTS], the label of letters, digits and . _ + -")
    return TeacherChoice(label, name, weights or None)


@dataclass(frozen=True)
class Choices:
    """The options of a sweep besides its settings."""

    workdir: Path  # holds the runs, and the features of the sweep's own teachers
    teachers: tuple[TeacherChoice, ...] = tuple(TeacherChoice(name, name) for name in EDGES)
    # checkpoint whose prior SPL learns (Table 5); None: that of the sweep's own SPN
    prior_from: str | None = None


def plan(table: str, base: Config, choices: Choices) -> Sweep:
    """Plans the runs of one of SWEEPS.

    Raises:
        InputError: `base` is not the config that the ablations start from, or a run's settings do
            not go together.
    """
    kinds = ("spn", "spn-probabilistic") if table == "weights" else ("spn",)
    model = base.model
    if model.kind not in kinds or model.prior_levels != (1, 2, 3) or model.conditioning != "spade" or not base.loss.prior:
        raise InputError(
            f"a sweep of {table} starts from {' or '.join(kinds)} with SPADE, a teacher and the priors of all three scales, and changes "
            "that run by run; pass such a config, for example configs/paris_streetview.py"
        )
    sweep = SWEEPS[table](base, choices)
    for run in sweep.runs:
        run.config(base)
    return sweep


def _run(base: Config, name: str, *settings: str) -> Run:
    return Run(BASE) if apply_overrides(base, settings) == base else Run(name, settings)


def prior_scales(base: Config, choices: Choices) -> Sweep:
    """Plans Table 3, and adds SPN with one scale, for which the paper takes SPL."""
    size = base.data.image_size
    heads = (*(f"{size // n} x {size // n}" for n in (4, 2, 1)), "model")
    rows: tuple[Row, ...] = (
        (("x", "", "", "SPL"), _run(base, "spl", *SPL)),
        (("x", "", "", "SPN, one scale"), _run(base, "scales-1", ONE_SCALE)),
        (("x", "x", "", "SPN, two scales"), _run(base, "scales-2", TWO_SCALES)),
        (("x", "x", "x", "SPN"), Run(BASE)),
    )
    return Sweep("3", "prior scales", heads, rows, remarks=("the row of SPN with one scale is not in the paper",))


def middle_blocks(base: Config, choices: Choices) -> Sweep:
    """Plans Table 4."""
    rows: list[Row] = [((str(n),), _run(base, f"blocks-{n}", f"model.middle_blocks={n}")) for n in (4, 8, 12)]
    return Sweep("4", "SPADE residual blocks in the middle", ("blocks",), tuple(rows), reference=rows[1][1].name)


def prior_as_teacher(base: Config, choices: Choices) -> Sweep:
    """Plans Table 5, where SPL learns the coarsest prior of an SPN."""
    own = choices.prior_from is None
    source = choices.workdir / BASE / TRAINED if own else choices.prior_from
    cache = choices.workdir / TEACHERS / "spn-prior"
    settings = (*SPL, f"teacher.name=spn:{source}", "teacher.mode=cached", "teacher.levels=3", "teacher.layers=", f"teacher.cache={cache}")
    rows: tuple[Row, ...] = (
        (("SPL", base.teacher.name), _run(base, "spl", *SPL)),
        (("SPL", "coarsest prior of an SPN"), Run("spl-spn-prior", settings, after=BASE if own else None)),
    )
    remark = "the SPN whose prior is the teacher is the sweep's own, trained on the same photos; the paper's was trained on Places2"
    given = f"the SPN whose prior is the teacher: {choices.prior_from}"
    return Sweep(
        "5",
        "what SPL learns its prior from",
        ("model", "teacher"),
        rows,
        reference=rows[0][1].name,
        helpers=(Run(BASE),) if own else (),
        remarks=(remark if own else given,),
    )


def components(base: Config, choices: Choices) -> Sweep:
    """Plans Fig. 7."""
    rows: tuple[Row, ...] = (
        (("SPN",), Run(BASE)),
        (("without distillation (w/o S)",), _run(base, "no-distillation", "loss.prior=0")),
        (("without multi-scale prior",), _run(base, "scales-1", ONE_SCALE)),
        (("concatenation in place of SPADE",), _run(base, "concat", "model.conditioning=concat")),
    )
    remark = (
        "concatenation: features and prior are concatenated where SPADE was and convolved back to the features' width, all else "
        "stays; the paper does not say more than that they are concatenated"
    )
    return Sweep("fig7", "components", ("model",), rows, remarks=(remark,))


def teachers(base: Config, choices: Choices) -> Sweep:
    """Plans Fig. 8."""
    rows: list[Row] = [((base.teacher.name,), Run(BASE))]
    for choice in choices.teachers:
        cache = choices.workdir / TEACHERS / choice.label
        settings = (f"teacher.name={choice.name}", "teacher.mode=cached", "teacher.layers=", f"teacher.cache={cache}")
        rows.append(((choice.label,), Run(f"teacher-{choice.label}", settings, weights=choice.weights)))
    if len({run.name for _, run in rows}) < len(rows):
        raise InputError("two teachers have the same name in the table; give them labels with --teacher LABEL=TEACHER")
    return Sweep("fig8", "teachers", ("teacher",), tuple(rows))


def loss_weights(base: Config, choices: Choices) -> Sweep:
    """Plans the paper's search for lambda 1 to 5: a grid of the first two and, for a probabilistic
    model, the others one at a time.

    The paper gives the tried values, but not their combinations.
    """
    names = list(WEIGHTS) if base.model.variational else list(WEIGHTS)[:2]
    combinations = [(one, two) for one in WEIGHTS["lambda1"].tried for two in WEIGHTS["lambda2"].tried]
    rows = [_weights_row(base, names, {"lambda1": one, "lambda2": two}) for one, two in combinations]
    for name in names[2:]:
        rows += [_weights_row(base, names, {name: value}) for value in WEIGHTS[name].tried if value != WEIGHTS[name].chosen]
    chosen = ", ".join(f"{name} = {WEIGHTS[name].chosen}" for name in names)
    remark = f"the paper chose {chosen}; which combinations it tried it does not say"
    return Sweep("weights", "weights of the losses", tuple(names), tuple(rows), reference=_chosen_run(rows), remarks=(remark,))


def _weights_row(base: Config, names: Sequence[str], changed: dict[str, str]) -> Row:
    values = {name: changed.get(name, WEIGHTS[name].chosen) for name in names}
    settings = [f"{setting}={values[name]}" for name in names for setting in WEIGHTS[name].settings]
    return tuple(values.values()), _run(base, "_".join(f"{name}-{value}" for name, value in changed.items()), *settings)


def _chosen_run(rows: Sequence[Row]) -> str:
    chosen = tuple(weight.chosen for weight in WEIGHTS.values())
    return next(run.name for cells, run in rows if cells == chosen[: len(cells)])


# names of folders in a run, and beside the runs
TRAINED, EVALUATED, TEACHERS = "train", "evaluation", "teachers"

SWEEPS: dict[str, Callable[[Config, Choices], Sweep]] = {
    "3": prior_scales,
    "4": middle_blocks,
    "5": prior_as_teacher,
    "fig7": components,
    "fig8": teachers,
    "weights": loss_weights,
}

"""The runs of every sweep: what they change, what they share, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from spn_jax.ablations import plans as sweeps
from spn_jax.ablations.plans import Choices, Run, Sweep, plan, teacher_choice
from spn_jax.config import Config, load_config
from spn_jax.errors import InputError
from spn_jax.evaluation import paper
from tests.models.test_models import abstract_spn, parameter_count

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PARIS = load_config(CONFIGS / "paris_streetview.py")
PROBABILISTIC = load_config(CONFIGS / "paris_streetview_probabilistic.py")
CHOICES = Choices(Path("runs/ablations"))


def changed(sweep: Sweep, base: Config = PARIS) -> dict[str, set[str]]:
    """{run: settings, section.key=value, in which its config differs from the base}."""
    found: dict[str, set[str]] = {}
    for run in sweep.runs:
        ours = run.config(base)
        found[run.name] = {
            f"{section.name}.{field.name}={getattr(getattr(ours, section.name), field.name)}"
            for section in dataclasses.fields(Config)
            for field in dataclasses.fields(getattr(base, section.name))
            if getattr(getattr(ours, section.name), field.name) != getattr(getattr(base, section.name), field.name)
        }
    return found


SPL = {"model.decoder=region_norm", "model.prior_levels=(3,)", "model.prior_encoder_slope=0.1"}


def test_table_3_is_spl_and_spn_with_one_two_and_three_scales() -> None:
    sweep = plan("3", PARIS, CHOICES)
    assert changed(sweep) == {
        "spl": SPL,
        "scales-1": {"model.prior_levels=(3,)"},
        "scales-2": {"model.prior_levels=(2, 3)"},
        "spn": set(),
    }
    assert sweep.heads == ("64 x 64", "128 x 128", "256 x 256", "model")
    assert [cells[:3] for cells, _ in sweep.rows] == [("x", "", ""), ("x", "", ""), ("x", "x", ""), ("x", "x", "x")]


def test_table_4_has_the_papers_numbers_of_parameters() -> None:
    sweep = plan("4", PARIS, CHOICES)
    counts = {run.name: parameter_count(abstract_spn(run.config(PARIS).model)) for run in sweep.runs}
    assert counts == {"blocks-4": 38_898_995, "spn": 50_702_643, "blocks-12": 62_506_291}
    assert [cells for cells, _ in sweep.rows] == [("4",), ("8",), ("12",)] and sweep.reference == "spn"


def test_figure_7_takes_one_component_away_at_a_time() -> None:
    assert changed(plan("fig7", PARIS, CHOICES)) == {
        "spn": set(),
        "no-distillation": {"loss.prior=0.0"},
        "scales-1": {"model.prior_levels=(3,)"},
        "concat": {"model.conditioning=concat"},
    }


def test_figure_8_has_a_cache_for_every_teacher_but_the_configs_own() -> None:
    given = tuple(map(teacher_choice, ("canny", "timm:resnet50@pretrained", "yolov5=nets/yolov5.pt", "rand=tresnet_l@random")))
    sweep = plan("fig8", PARIS, dataclasses.replace(CHOICES, teachers=given))
    assert [(run.name, run.weights) for run in sweep.runs] == [
        ("spn", None),
        ("teacher-canny", None),
        ("teacher-timm-resnet50", "pretrained"),
        ("teacher-yolov5", None),
        ("teacher-rand", "random"),
    ]
    assert changed(sweep)["teacher-yolov5"] == {"teacher.name=nets/yolov5.pt", "teacher.cache=runs/ablations/teachers/yolov5"}
    assert changed(sweep)["teacher-rand"] == {"teacher.cache=runs/ablations/teachers/rand"}
    assert [run.name for run in plan("fig8", PARIS, CHOICES).runs] == ["spn", "teacher-canny", "teacher-sobel"]


def test_table_5_learns_from_the_sweeps_own_spn_or_from_a_given_one() -> None:
    own, given = (plan("5", PARIS, dataclasses.replace(CHOICES, prior_from=checkpoint)) for checkpoint in (None, "runs/places2"))
    assert [run.name for run in own.runs] == ["spn", "spl", "spl-spn-prior"] and [run.name for run in given.runs] == [
        "spl",
        "spl-spn-prior",
    ]
    assert (own.runs[-1].after, given.runs[-1].after) == ("spn", None)
    learnt = {"teacher.levels=(3,)", "teacher.cache=runs/ablations/teachers/spn-prior"}
    assert changed(own)["spl-spn-prior"] == SPL | learnt | {"teacher.name=spn:runs/ablations/spn/train"}
    assert changed(given)["spl-spn-prior"] == SPL | learnt | {"teacher.name=spn:runs/places2"}
    assert [run.name for _, run in own.rows] == ["spl", "spl-spn-prior"] and own.reference == "spl"


def test_the_weights_are_the_papers_grid() -> None:
    sweep = plan("weights", PARIS, CHOICES)
    assert len(sweep.rows) == 9 and len({cells for cells, _ in sweep.rows}) == 9
    assert dict(sweep.rows)[("10", "1")] == Run("spn") and sweep.reference == "spn"
    assert changed(sweep)["lambda1-0.1_lambda2-10"] == {"loss.reconstruction=0.1", "loss.adversarial_weight=10.0"}


def test_the_weights_of_a_probabilistic_model_are_five() -> None:
    sweep = plan("weights", PROBABILISTIC, CHOICES)
    assert sweep.heads == tuple(paper.WEIGHTS) and len(sweep.rows) == len(sweep.runs) == 9 + 3 * 2
    of = changed(sweep, PROBABILISTIC)
    assert of["lambda3-0.1"] == {"loss.feature_matching=0.1", "loss.perceptual=0.1"}
    assert of["lambda5-0.01"] == {"loss.kl=0.01"} and of["spn"] == set()
    for name, weight in paper.WEIGHTS.items():
        assert weight.chosen in weight.tried and all(
            f"{name}-{value}" in of for value in weight.tried if value != weight.chosen and name > "lambda2"
        )


def test_runs_of_one_name_are_the_same_in_all_tables() -> None:
    of_all: dict[str, Run] = {}
    for table in sweeps.SWEEPS:
        for run in plan(table, PARIS, CHOICES).runs:
            assert of_all.setdefault(run.name, run) == run


def test_a_base_with_fewer_blocks_shares_its_own_row() -> None:
    base = load_config(CONFIGS / "demo.py", ["model.middle_blocks=4"])
    assert [run.name for run in plan("4", base, CHOICES).runs] == ["spn", "blocks-8", "blocks-12"]


@pytest.mark.parametrize(
    ("table", "config", "overrides"),
    [
        ("3", "spl.py", ()),
        ("4", "paris_streetview_probabilistic.py", ()),
        ("fig7", "paris_streetview.py", ("model.conditioning=concat",)),
        ("fig7", "paris_streetview.py", ("loss.prior=0",)),
        ("weights", "spl.py", ()),
    ],
)
def test_what_a_sweep_cannot_start_from_is_refused(table: str, config: str, overrides: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"a sweep of {table} starts from spn.* pass such a config"):
        plan(table, load_config(CONFIGS / config, overrides), CHOICES)


@pytest.mark.parametrize("text", ["", "=canny", "a b=canny", "x=", "@random"])
def test_teachers_without_a_name_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must be \[LABEL=\]TEACHER\[@WEIGHTS\]"):
        teacher_choice(text)


def test_two_teachers_of_one_label_are_refused() -> None:
    twice = (teacher_choice("x=canny"), teacher_choice("x=sobel"))
    with pytest.raises(InputError, match="two teachers have the same name"):
        plan("fig8", PARIS, dataclasses.replace(CHOICES, teachers=twice))

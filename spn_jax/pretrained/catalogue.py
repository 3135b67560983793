"""Finds the models that come with the package: `pretrained:NAME` stands for one wherever a
checkpoint is asked for.
"""

from pathlib import Path

from spn_jax.errors import InputError

PREFIX = "pretrained:"
DEFAULT = f"{PREFIX}open_scenes"  # what commands take where no checkpoint is given
CHECKPOINT_HELP = f"a run's work directory (its newest checkpoint), one checkpoint or a model file; default: {DEFAULT}"
FOLDER = Path(__file__).parent
WEIGHTS, CARD = "weights.npz", "MODEL_CARD.md"


def announce(spec: str) -> None:
    """Says which model is used where it is one that comes with the package."""
    if spec.startswith(PREFIX):
        print(f"model: {spec}, which comes with spn_jax ({pretrained_file(spec).parent / CARD} describes it)", flush=True)


def names() -> list[str]:
    """The models that are there."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}"))


def pretrained_file(spec: str) -> Path:
    """The model file that `pretrained:NAME` stands for. InputError if there is none of this
    name.
    """
    name = spec.removeprefix(PREFIX)
    if name not in names():
        there = ", ".join(names()) or "none"
        raise InputError(f"no pretrained model called {name!r} comes with this version of spn_jax (it has {there}); pass a checkpoint")
    return FOLDER / name / WEIGHTS

"""Finds the models that come with the package, which commands take as `pretrained:NAME`."""

from pathlib import Path

from spn_jax.errors import InputError

PREFIX = "pretrained:"
DEFAULT = f"{PREFIX}open_scenes"  # the default of commands without a checkpoint
CHECKPOINT_HELP = f"a run's work directory (its newest checkpoint), one checkpoint or a model file; default: {DEFAULT}"
FOLDER = Path(__file__).parent
WEIGHTS, CARD = "weights.npz", "MODEL_CARD.md"


def announce(spec: str) -> None:
    """Prints which model is used if it comes with the package."""
    if spec.startswith(PREFIX):
        print(f"model: {spec}, which comes with spn_jax ({pretrained_file(spec).parent / CARD} describes it)", flush=True)


def names() -> list[str]:
    """Returns the names of the models."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}"))


def pretrained_file(spec: str) -> Path:
    """Returns the model file that `pretrained:NAME` stands for. Raises InputError if there is none
    of this name.
    """
    name = spec.removeprefix(PREFIX)
    if name not in names():
        there = ", ".join(names()) or "none"
        raise InputError(f"no pretrained model called {name!r} comes with this version of spn_jax (it has {there}); pass a checkpoint")
    return FOLDER / name / WEIGHTS

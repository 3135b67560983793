"""Shows the photos that a method completed worst (the paper's Fig. 13)."""

import argparse

import numpy as np

from spn_jax.drawing import figures
from spn_jax.drawing.sheet import Cell, Row, sheet
from spn_jax.errors import InputError
from spn_jax.evaluation.scoring import Detail
from spn_jax.evaluation.session import Evaluation
from spn_jax.runtime.sharding import make_mesh
from spn_jax.views.subjects import about_all, add_arguments, open_subjects, subjects

LOWER_IS_WORSE = {
    "psnr": True, "ssim": True, "ssim_gaussian": True, "mae": False, "mae_rgb": False, "hole_mae": False,
    "border_psnr": True, "border_mae": False,
    "lpips_alex": False, "lpips_vgg": False,
}  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_arguments(parser, count=6, others=True)
    add = parser.add_argument
    add("--metric", choices=LOWER_IS_WORSE, default="psnr", help="by which (default psnr)")
    add("--by", metavar="NAME", help="the method whose worst are shown; the first if not given")
    add("--lpips-alex", metavar="FILE.npz", help="weights of --metric lpips_alex")
    add("--lpips-vgg", metavar="FILE.npz", help="weights of --metric lpips_vgg")


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws the worst of all photos, worst first, a row each: input, every method with its score,
    the photo.
    """
    if options.metric.startswith("lpips") and getattr(options, options.metric) is None:
        raise InputError(f"--metric {options.metric} needs the network's weights; pass --{options.metric.replace('_', '-')} FILE.npz")
    if options.only is not None:
        raise InputError("--only chooses photos, and here the scores do; leave it out")
    if options.count < 1:
        raise InputError(f"--count {options.count} must be at least 1")
    evaluation = open_subjects(options)
    names = [method.name for method in evaluation.methods]
    by = options.by or names[0]
    if by not in names:
        raise InputError(f"--by {by}: the methods are {', '.join(names)}")
    values = scores(evaluation, by, options.metric)
    shown = subjects(evaluation, make_mesh(), worst(values, options.count, LOWER_IS_WORSE[options.metric]))
    rows = [
        Row(
            [
                Cell(figures.masked_input(s.image, s.mask), f"photo {s.number}, hole {s.mask.mean():.0%}"),
                *(Cell(picture, s.note(method, options.metric)) for method, picture in s.completed.items()),
                Cell(s.image),
            ],
            f"{rank}",
        )
        for rank, s in enumerate(shown, 1)
    ]
    finite = values[np.isfinite(values)]
    text = (
        f"The {len(shown)} of {len(values)} photos with the worst {options.metric} of {by}, the worst first; its median over all photos is "
        f"{np.median(finite) if len(finite) else np.inf:.3g}. Under the pictures: {options.metric}.\n"
    )
    return sheet(rows, ["input", *names, "photo"], text + about_all(evaluation))


def scores(evaluation: Evaluation, method: str, metric: str) -> np.ndarray:
    """Returns a method's score of every photo, (n,)."""
    from spn_jax.views.subjects import completed_batches

    alone = [m for m in evaluation.models if m.name == method], [m for m in evaluation.hosts if m.name == method]
    evaluation = Evaluation(**{**vars(evaluation), "models": alone[0], "hosts": alone[1]})
    everything = range(len(evaluation.photos))
    return np.concatenate([parts[method][metric] for _, parts in completed_batches(evaluation, make_mesh(), everything, Detail.SCORES)])


def worst(values: np.ndarray, count: int, lower_is_worse: bool) -> list[int]:
    """Returns the numbers of the worst, worst first; ties go to the earlier photo."""
    return np.argsort(values if lower_is_worse else -values, kind="stable")[:count].tolist()

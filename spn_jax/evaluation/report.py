"""Writes what stands beside an evaluation's tables: sentences, the paper's figures, pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from spn_jax.checkpoints import weights
from spn_jax.config import Config
from spn_jax.data.images import find_images
from spn_jax.drawing import figures
from spn_jax.errors import InputError, counted, first_few
from spn_jax.evaluation import gallery, paper, tables
from spn_jax.evaluation.pairs import PROTOCOLS
from spn_jax.evaluation.results import composite_stems
from spn_jax.evaluation.scoring import Arrays, Detail, Networks, complete_batch, score_batch
from spn_jax.evaluation.session import NEEDS, Evaluation, Request, batches_of
from spn_jax.runtime.files import write_atomically
from spn_jax.runtime.sharding import replicate, shard_batch


def announcement(evaluation: Evaluation, mesh: Mesh) -> str:
    """Describes what is about to be scored, for the terminal."""
    lines = []
    for model in evaluation.models:
        teacher = model.loaded.info.get("teacher", {}).get("origin") or "none"
        several = f"; {model.settings.samples} completions of each, the best by PSNR is scored" if model.settings.samples > 1 else ""
        source = model.loaded.info.get("converted_from")
        origin = f"converted from {source['file']}" if source else f"of step {model.loaded.step}"
        lines.append(f"{model.name}: checkpoint {origin}; its teacher's weights: {teacher}{several}")
    data = evaluation.config.data
    lines.append(
        f"{counted(len(evaluation.photos), 'photo')} of {data.test_photos} at {data.image_size} pixels, "
        f"{counted(len(evaluation.masks), 'mask')} of {data.test_masks}, {counted(mesh.size, 'device')}"
    )
    return "\n".join([*lines, f"pair list: {evaluation.pairs.title}"])


def check_outside_of_data(output: Path, config: Config) -> None:
    """Raises InputError if the output folder lies in the photos' or the masks' folder. There its
    pictures would count as photos or masks the next time, without a word.
    """
    for setting, path in ("data.test_photos", config.data.test_photos), ("data.test_masks", config.data.test_masks):
        folder = Path(path).expanduser()
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"--output {output} lies in {setting}={path}, where its pictures would be read as well; choose a folder outside"
            )


def check_composites(folder: Path, evaluation: Evaluation) -> None:
    """Raises InputError if pictures of other photos lie among those to be written, or results would
    be overwritten.
    """
    read = {Path(host.source["results"]).resolve(): host.name for host in evaluation.hosts if "results" in host.source}
    own = {f"{stem}.png" for stem in composite_stems(evaluation.photos.names)}
    for method in evaluation.methods:
        inside = folder / method.name
        if name_of := read.get(inside.resolve()):
            raise InputError(f"--save-composites would write over --results {name_of}={inside}; choose another --output")
        others = sorted(name for path in find_images(inside) if (name := path.relative_to(inside).as_posix()) not in own)
        if others:
            raise InputError(
                f"{inside} contains {counted(len(others), 'image')} that {'does' if len(others) == 1 else 'do'} not belong to this "
                f"evaluation: {first_few(others)}; remove the folder or choose another --output"
            )


def remove_pictures(output: Path) -> None:
    """Deletes the pictures of the folder's earlier evaluation, which would be misleading beside a
    new one.
    """
    try:
        earlier = list(json.loads((output / "results.json").read_text(encoding="utf-8"))["about"]["methods"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # there is no such evaluation, so the pictures are somebody else's
    for name in ("grid", "loss_curves", *(f"loss_curves-{method}" for method in earlier)):
        path = output / f"{name}.png"
        if path.parent == output and path.is_file():
            path.unlink()


def lines_below(evaluation: Evaluation, results: Mapping[str, tables.Results]) -> list[str]:
    """Returns the lines under the table: the pair list, and what a reader has to know."""
    lines = [f"pair list: {evaluation.pairs.title}", *evaluation.notes]
    for model in evaluation.models:
        if model.settings.samples > 1:
            words = tables.diversity_in_words(results[model.name].records, model.settings.samples)
            lines.append(f"{model.name}: {words.strip()}")
    for network, (option, scores) in NEEDS.items():
        if option not in evaluation.origins:
            command = weights.dump_command(network)
            wanted = [score for score in scores if score != "diversity_lpips" or evaluation.layout == "probabilistic"]
            need = "needs" if len(wanted) == 1 else "need"
            lines.append(f"no weights: {', '.join(wanted)} {need} `{command}` and --{option.replace('_', '-')} {command.split()[-1]}")
    return lines


def quote(request: Request, evaluation: Evaluation) -> paper.Quotation | None:
    """Returns the paper's figures that go with ours, if any."""
    protocols = [name for name in PROTOCOLS if request.pairs == name]
    data_set = request.paper or (protocols[0] if protocols else "none")
    # The models decide, not the number of samples: one completion of a probabilistic model is none
    # of Table 1's methods.
    kind = "probabilistic" if any(model.loaded.config.model.variational for model in evaluation.models) else "deterministic"
    if data_set == "none" or (request.paper is None and not paper.figures(data_set, kind)):
        return None
    data, settings = evaluation.config.data, evaluation.config.eval
    differences = paper.differences(
        data_set,
        kind,
        # the paper does not list CelebA-HQ's test names
        own_images=data_set in protocols and data_set != "celebahq",
        images=len(evaluation.photos),
        masks=len(evaluation.masks),
        image_size=data.image_size,
        crop=data.crop,
        quantise=settings.quantise,
        samples=max((model.settings.samples for model in evaluation.models), default=1),
        raw_results=request.raw_results,
        inception=evaluation.origins.get("inception"),
    )
    return paper.quote(data_set, kind, differences)


def about_run(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the facts without which a table cannot be compared."""
    data, settings = evaluation.config.data, evaluation.config.eval
    return {
        "methods": {method.name: method.about() for method in evaluation.methods},
        "photos": data.test_photos,
        "masks": data.test_masks,
        "seed": settings.seed,
        "samples": settings.samples,
        "image_size": data.image_size,
        "crop": data.crop,
        "resize_filter": data.resize_filter,
        "quantise": settings.quantise,
        "weights": dict(evaluation.origins),
        "notes": list(evaluation.notes),
        "pair_list": {"sha256": evaluation.pairs.sha256, "drawn": evaluation.pairs.drawn},
        "pairs": [list(pair) for pair in zip(evaluation.pairs.photos, evaluation.pairs.masks, strict=True)],
    }


def compare(evaluation: Evaluation, mesh: Mesh, count: int) -> np.ndarray:
    """Draws one picture of some photos, evenly chosen: input, k-means map of the prior (with a
    single model), every method, truth.
    """
    models = {model.name: replicate(model.loaded.model, mesh) for model in evaluation.models}
    rows: gallery.Rows = {}
    for batch in batches_of(evaluation, mesh, gallery.spread(len(evaluation.photos), count)):
        on_devices = shard_batch({name: batch[name] for name in ("image", "mask", "index")}, mesh)
        shown: dict[str, Arrays] = {}
        for model in evaluation.models:
            output = complete_batch(models[model.name], on_devices, settings=model.settings, detail=Detail.GRID)
            scored = score_batch(Networks(), on_devices | output, mesh=mesh, detail=Detail.GRID)
            shown[model.name] = {name: np.asarray(scored[name]) for name in gallery.SHOWN if name in scored}
        shown |= {host.name: {"completed": batch["completed"][host.name]} for host in evaluation.hosts}
        for row in np.flatnonzero(batch["valid"]):
            of_photo = {name: {entry: values[row] for entry, values in entries.items()} for name, entries in shown.items()}
            gallery.add_column(rows, batch["image"][row], batch["mask"][row], of_photo)
    return gallery.comparison(rows)


def write_curves(checkpoint: Path, output: Path) -> bool:
    """Draws the curves if the run's metrics lie beside its checkpoints. Returns False if they do
    not.
    """
    for folder in checkpoint.absolute().parents[:2]:
        path = folder / "metrics.jsonl"
        if path.is_file() and (lines := figures.read_metrics(path)):
            write_atomically(output, figures.png(figures.curves(lines)))
            return True
    return False

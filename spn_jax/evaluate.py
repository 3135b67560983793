"""Scores checkpoints on held-out photos: `python -m spn_jax.evaluate run --checkpoint DIR`."""

import argparse
import enum
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spn_jax import figures, metrics, tables
from spn_jax.baselines import BASELINES, Baseline, find_baseline
from spn_jax.checkpoint import LoadedModel, find_checkpoint, load_model
from spn_jax.config import Config, EvalConfig, ModelConfig, apply_overrides
from spn_jax.data.images import PhotoSource, open_photos
from spn_jax.data.masks import MaskSource, open_test_masks
from spn_jax.data.pipeline import evaluation_batches
from spn_jax.errors import InputError, run_command
from spn_jax.files import check_writable, write_atomically
from spn_jax.pairs import draw_pairs
from spn_jax.predict import check_samples, complete, draw_noise
from spn_jax.sharding import make_mesh, replicate, shard_batch

Arrays = dict[str, np.ndarray]


class Detail(enum.IntEnum):
    """What comes back of a scored batch; each has what the one before has. Pictures and priors cost memory and transfers."""

    SCORES = 0  # scores, index, valid: (b,) each
    PICTURES = 1  # and image, mask, completed: uint8 (b, h, w, 3) and (b, h, w, 1)
    GRID = 2  # and the coarsest prior, float32 (b, h', w', c), and of several completions the first: uint8 (b, s, h, w, 3)


SAMPLES_SHOWN = 5  # completions of a photo in a grid, at most


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    options.command(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run_parser = commands.add_parser("run", help="PSNR, SSIM and MAE by hole ratio", description=run.__doc__)
    run_parser.set_defaults(command=run)
    run_parser.add_argument("--checkpoint", required=True, help="a run's work directory (its newest checkpoint) or one checkpoint")
    run_parser.add_argument("--photos", help="photos to complete; data.test_photos of the checkpoint's config if not given")
    run_parser.add_argument("--masks", help="masks; data.test_masks of the checkpoint's config if not given")
    run_parser.add_argument(
        "--seed", type=int, help="of the masks' choice and of samples; eval.seed of the checkpoint's config if not given"
    )
    run_parser.add_argument(
        "--samples", type=int, metavar="N", help="completions of each photo, the best by PSNR is scored; eval.samples if not given"
    )
    run_parser.add_argument("--batch-size", type=int, help="photos a call over all devices; eval.batch_size if not given")
    run_parser.add_argument(
        "--baseline", action="append", default=[], metavar="NAME", help=f"a method to compare with, repeatable: {', '.join(BASELINES)}"
    )
    run_parser.add_argument("--output", type=Path, help="folder for results.md, results.tsv, results.json and the pictures")
    run_parser.add_argument("--save-composites", action="store_true", help="write every completed photo to OUTPUT/composites")
    run_parser.add_argument("--grid", type=int, default=0, metavar="N", help="draw N photos, evenly chosen, into OUTPUT/grid.png")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Scores a checkpoint, and baselines on the same pairs of photo and mask."""
    baselines = {name: find_baseline(name) for name in options.baseline}
    check_options(options)
    loaded = load_model(options.checkpoint)
    config = evaluation_config(loaded.config, options)

    photos = open_photos(config.data.test_photos, "data.test_photos")
    masks = open_test_masks(config)
    pairs = draw_pairs(len(photos), len(masks), config.eval.seed)
    mesh = make_mesh()
    batch_size = -(-config.eval.batch_size // mesh.size) * mesh.size
    print(announcement(loaded, config, photos, masks, mesh), flush=True)

    batches = evaluation_batches(config, photos, masks, pairs, batch_size)
    gallery = Gallery(options.output, options.grid, photos.names, options.save_composites)

    def detail(batch: Mapping[str, Any]) -> Detail:
        return max(gallery.detail(batch), Detail.PICTURES if baselines else Detail.SCORES)

    scored = scored_batches(replicate(loaded.model, mesh), batches, mesh, config, detail)
    parts: dict[str, list[Arrays]] = {name: [] for name in ("spn", *baselines)}
    for part in with_progress(scored, len(photos)):
        parts["spn"].append(part)
        gallery.add(part)
        for name, baseline in baselines.items():
            parts[name].append(score_baseline(baseline, part))

    methods = {name: records_of(of_method, masks.tenths(pairs)) for name, of_method in parts.items()}
    table = tables.text_table(methods)
    if "diversity" in methods["spn"]:
        table += "\n" + tables.diversity_in_words(methods["spn"], config.eval.samples)
    print("\n" + table, flush=True)
    if options.output is not None:
        about = about_run(loaded, config) | {"pairs": [[photos.names[i], masks.names[pair]] for i, pair in enumerate(pairs)]}
        write_atomically(options.output / "results.md", table)
        write_atomically(options.output / "results.tsv", tables.tsv_table(methods))
        write_atomically(options.output / "results.json", tables.as_json(methods, about))
        gallery.write_grid()
        write_curves(find_checkpoint(options.checkpoint), options.output)
        print(f"written to {options.output}: {', '.join(sorted(path.name for path in options.output.iterdir()))}")


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for what can be known to be wrong before the checkpoint is read; makes the folder of the results."""
    if options.grid < 0:
        raise InputError(f"--grid {options.grid} must not be negative; 0 draws no grid")
    apply_overrides(Config(model=ModelConfig(variational=True)), overrides_of(options))  # the model that allows most
    if options.output is not None:
        check_writable(options.output)
    elif options.save_composites or options.grid:
        raise InputError("--save-composites and --grid write pictures; say where with --output DIR")


def evaluation_config(config: Config, options: argparse.Namespace) -> Config:
    """The checkpoint's config with what the command line says about the evaluation."""
    if options.samples is not None:
        check_samples(options.samples, config)
    config = apply_overrides(config, overrides_of(options))
    if not config.data.test_photos:
        raise InputError("the checkpoint's config names no data.test_photos; say which photos to complete with --photos")
    return config


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The settings that the command line replaces, as section.key=value."""
    given = {
        "data.test_photos": options.photos,
        "data.test_masks": options.masks,
        "eval.seed": options.seed,
        "eval.samples": options.samples,
        "eval.batch_size": options.batch_size,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def announcement(loaded: LoadedModel, config: Config, photos: PhotoSource, masks: MaskSource, mesh: Mesh) -> str:
    """What is about to be scored, for the terminal."""
    teacher = loaded.info.get("teacher", {}).get("origin") or "none"
    several = f"; {config.eval.samples} completions of each, the best by PSNR is scored" if config.eval.samples > 1 else ""
    return (
        f"checkpoint of step {loaded.step}; its teacher's weights: {teacher}\n"
        f"{len(photos)} photos of {config.data.test_photos} at {config.data.image_size} pixels, "
        f"{len(masks)} masks of {config.data.test_masks}, {mesh.size} device(s){several}"
    )


def about_run(loaded: LoadedModel, config: Config) -> dict[str, Any]:
    """What a table cannot be compared without."""
    return {
        "step": loaded.step,
        "teacher": loaded.info.get("teacher"),
        "photos": config.data.test_photos,
        "masks": config.data.test_masks,
        "seed": config.eval.seed,
        "samples": config.eval.samples,
        "image_size": config.data.image_size,
        "quantise": config.eval.quantise,
    }


def evaluate_model(
    model: Callable[..., Any], batches: Iterable[Mapping[str, Any]], mesh: Mesh, config: Config, tenths: np.ndarray | None = None
) -> Arrays:
    """Scores every valid picture of the batches, once.

    Args:
        model: a pytree that maps image (b, h, w, 3) in [0, 1], mask (b, h, w, 1) and the noise of `draw_noise` to an object with
            .image (b, s, h, w, 3) and .prior {level: (b, s, h', w', c)}. Of s completions the one of best PSNR is scored
            (SPN's protocol); s is config.eval.samples where the model is probabilistic.
        batches: of `evaluation_batches`; with several processes each brings its own rows and all get all records.
        tenths: as in `records_of`.

    Returns:
        Records of `records_of`: index, hole, bin, psnr, ssim, mae, hole_mae, and of several completions diversity.

    Raises:
        InputError: a prediction is not finite.
    """
    return records_of(list(scored_batches(model, batches, mesh, config)), tenths)


def summarise(records: tables.Records) -> dict[str, float]:
    """Means as metrics to log: eval/psnr, ... over all pictures, and eval/20-40/psnr, ... of the bins that have any.

    A mean over no picture, as that of diversity where none has a hole, is left out.
    """
    summary: dict[str, float] = {}
    for row in tables.rows_of(records):
        prefix = "eval/" if row.bin == "All" else f"eval/{row.bin.removesuffix('%')}/"
        summary |= {f"{prefix}{score}": mean for score, mean in row.means.items() if not math.isnan(mean)}
    return summary


def sample_grid(model: Callable[..., Any], batches: Iterable[Mapping[str, Any]], mesh: Mesh, config: Config) -> np.ndarray:
    """A labelled grid (h, w, 3) of all valid pictures of the batches: input, k-means map of the coarsest prior, result, truth.

    Where there are several completions, the first SAMPLES_SHOWN of them stand in place of the result; the prior is that of the best.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for part in scored_batches(model, batches, mesh, config, lambda batch: Detail.GRID):
        for row in np.flatnonzero(part["valid"]):
            _add_column(rows, part, int(row))
    return figures.image_grid(rows)


def _add_column(rows: dict[str, list[np.ndarray]], part: Arrays, row: int) -> None:
    results = {"result": part["completed"][row]}
    if "samples" in part:
        results = {f"sample {i}": sample for i, sample in enumerate(part["samples"][row], 1)}
    pictures = {
        "input": figures.masked_input(part["image"][row], part["mask"][row]),
        "prior": figures.cluster_map(part["prior"][row]),
        **results,
        "truth": part["image"][row],
    }
    for label, picture in pictures.items():
        rows.setdefault(label, []).append(picture)


def scored_batches(
    model: Callable[..., Any],
    batches: Iterable[Mapping[str, Any]],
    mesh: Mesh,
    config: Config,
    detail: Callable[[Mapping[str, Any]], Detail] = lambda batch: Detail.SCORES,
) -> Iterator[Arrays]:
    """Scores each batch and brings as much of it to the host as `detail` says, which must say the same in all processes."""
    local_devices = len(mesh.local_devices)
    for batch in batches:
        padded = _pad({key: batch[key] for key in ("image", "mask", "index", "valid")}, local_devices)
        scored = _score_batch(model, shard_batch(padded, mesh), settings=config.eval, mesh=mesh, detail=detail(batch))
        yield jax.tree.map(np.asarray, scored)


def _pad(batch: Mapping[str, np.ndarray], devices: int) -> Arrays:
    """The batch with its last row repeated, as not valid, until it divides over the devices."""
    missing = -len(batch["valid"]) % devices
    if not missing:
        return dict(batch)
    padded = {key: np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) for key, rows in batch.items()}
    padded["valid"][-missing:] = False
    return padded


@functools.partial(jax.jit, static_argnames=("settings", "mesh", "detail"))
def _score_batch(model: Any, batch: dict[str, jax.Array], *, settings: EvalConfig, mesh: Mesh, detail: Detail) -> dict[str, jax.Array]:
    image, mask = batch["image"], batch["mask"]
    noise = draw_noise(model, settings.seed % 2**32, batch["index"], jnp.arange(settings.samples), *image.shape[1:3])
    completions, output = complete(model, image, mask, noise, settings.quantise)
    best = jnp.argmax(metrics.psnr(completions, image[:, None]), axis=1)
    completed = _take_sample(completions, best)
    result = _scores(completed, image, mask) | {"index": batch["index"], "valid": batch["valid"]}
    result["finite"] = jnp.all(jnp.isfinite(output.image), axis=(1, 2, 3, 4))
    several = completions.shape[1] > 1
    if several:
        result["diversity"] = metrics.diversity(completions, mask)
    if detail >= Detail.PICTURES:
        result |= {"image": image, "mask": mask, "completed": completed}
    if detail >= Detail.GRID:
        result["prior"] = _take_sample(output.prior[max(output.prior)], best).astype(jnp.float32)
        if several:
            result["samples"] = completions[:, :SAMPLES_SHOWN]
    # Everything to every device, so that each process can read all rows.
    return jax.lax.with_sharding_constraint(result, NamedSharding(mesh, PartitionSpec()))


def _take_sample(samples: jax.Array, best: jax.Array) -> jax.Array:
    """(b, s, ...) and (b,) -> (b, ...)."""
    return jax.vmap(lambda of_photo, i: of_photo[i])(samples, best)


def _scores(completed: jax.Array, image: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    area = metrics.hole_area(mask)
    return {
        "psnr": metrics.psnr(completed, image),
        "ssim": metrics.ssim(completed, image),
        "mae": metrics.mae(completed, image),
        "hole_mae": metrics.hole_mae(completed, image, mask),
        "hole_area": area,
        "pixels": jnp.full_like(area, image.shape[-3] * image.shape[-2]),
    }


_jitted_scores = jax.jit(_scores)


def score_baseline(baseline: Baseline, part: Arrays) -> Arrays:
    """What a baseline scores on the pictures of one scored batch."""
    completed = np.stack([baseline(image, mask) for image, mask in zip(part["image"], part["mask"], strict=True)])
    scores = jax.tree.map(np.asarray, _jitted_scores(completed, part["image"], part["mask"]))
    return scores | {"index": part["index"], "valid": part["valid"]}


def records_of(parts: Sequence[Arrays], tenths: np.ndarray | None = None) -> Arrays:
    """The valid rows of scored batches as records (n,) in the order of the photos.

    Args:
        tenths: for every photo, by its index, the tenth of hole ratio that the number of its mask tells
            (`MaskSource.tenths` of the pairs). It decides the picture's `bin`; if not given, the measured `hole` does.

    Raises:
        InputError: there are none, or a prediction was not finite.
    """
    if not parts:
        raise InputError("there is no photo to evaluate")
    valid = np.concatenate([part["valid"] for part in parts])
    kept = {key: np.concatenate([part[key] for part in parts])[valid] for key in parts[0] if parts[0][key].ndim == 1 and key != "valid"}
    order = np.argsort(kept["index"], kind="stable")
    records = {key: values[order] for key, values in kept.items()}
    finite = records.pop("finite", np.ones(len(order), bool))
    if not finite.all():
        wrong = records["index"][~finite]
        raise InputError(
            f"the model's prediction is not finite for {len(wrong)} of {len(finite)} photos, first for photo {wrong[0]}; "
            "its training diverged: evaluate an earlier checkpoint"
        )
    records["hole"] = records.pop("hole_area") / records.pop("pixels")  # float64: exactly 20 % must not become more
    records["bin"] = tables.bins_of(records["hole"], None if tenths is None else tenths[records["index"]])
    return records


def with_progress(parts: Iterable[Arrays], photos: int) -> Iterator[Arrays]:
    """Passes scored batches on and says now and then how far they have come."""
    start = last = time.monotonic()
    done = 0
    for part in parts:
        yield part
        done += int(part["valid"].sum())
        now = time.monotonic()
        if now - last > 10 or done == photos:
            print(f"evaluated {done}/{photos} photos, {done / (now - start):.1f} photos/s", flush=True)
            last = now


class Gallery:
    """The pictures of an evaluation: composites as they come, and a grid of some photos at the end."""

    def __init__(self, folder: Path | None, grid: int, names: Sequence[str], save_composites: bool):
        self._folder = folder
        self._in_grid = set(np.linspace(0, len(names) - 1, min(grid, len(names))).round().astype(int).tolist()) if grid else set()
        self._composites = composite_names(names) if save_composites else None
        self._rows: dict[str, list[np.ndarray]] = {}

    def detail(self, batch: Mapping[str, Any]) -> Detail:
        """What it needs of a batch."""
        if self._in_grid.intersection(batch["index"].tolist()):
            return Detail.GRID
        return Detail.SCORES if self._composites is None else Detail.PICTURES

    def add(self, part: Arrays) -> None:
        """Takes what it needs of a scored batch."""
        for row in np.flatnonzero(part["valid"]):
            index = int(part["index"][row])
            if self._folder is not None and self._composites is not None:
                write_atomically(self._folder / "composites" / self._composites[index], figures.png(part["completed"][row]))
            if index in self._in_grid:
                _add_column(self._rows, part, int(row))

    def write_grid(self) -> None:
        """Writes grid.png if a grid was asked for."""
        if self._folder is not None and self._rows:
            size = len(self._rows["truth"][0])
            grid = figures.image_grid(self._rows, cell=-(-128 // size) * size)  # small photos are enlarged to be seen
            write_atomically(self._folder / "grid.png", figures.png(grid))


def composite_names(names: Sequence[str]) -> list[str]:
    """A relative file name ending in .png for each photo; the photo's suffix stays where two names would become one."""
    inside = [PurePosixPath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..", "."))) for name in names]
    short = [str(path.with_suffix(".png")) for path in inside]
    return short if len(set(short)) == len(short) else [f"{path}.png" for path in inside]


def write_curves(checkpoint: Path, output: Path) -> None:
    """Draws loss_curves.png where the metrics of the run lie beside its checkpoints."""
    for folder in checkpoint.absolute().parents[:2]:
        path = folder / "metrics.jsonl"
        if path.is_file() and (lines := figures.read_metrics(path)):
            write_atomically(output / "loss_curves.png", figures.png(figures.curves(lines)))
            return


if __name__ == "__main__":
    run_command(main)

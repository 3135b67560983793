"""Completes batches of photos and scores them, on the devices.

However a method completes photos, the same program, `score_batch`, scores the completions.
"""

import dataclasses
import enum
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spn_jax.config import Config, EvalConfig
from spn_jax.errors import InputError, counted
from spn_jax.evaluation import bins
from spn_jax.filling.completion import complete, draw_noise
from spn_jax.metrics import image as metrics
from spn_jax.runtime.sharding import shard_batch

Arrays = dict[str, np.ndarray]
DeviceArrays = dict[str, jax.Array]


class Detail(enum.IntEnum):
    """The contents of a scored batch; each level includes the previous one. Pictures and priors
    cost memory and transfers.
    """

    SCORES = 0  # (b,) each
    PICTURES = 1  # also completed, the best of several completions: uint8 (b, h, w, 3)
    # also image, mask, the coarsest prior (b, h', w', c), and the first of several completions:
    # uint8 (b, s, h, w, 3)
    GRID = 2


PASSED_ON: tuple[str, ...] = ("index", "valid", "finite")  # entries that a scored batch keeps of the batch
FEATURE_KINDS = ("inception", "inception_clean")  # after pytorch-fid's resizing and after clean-fid's
SAMPLES_SHOWN = 5  # most completions of a photo in a grid


class Inception(Protocol):
    """Maps images (b, h, w, 3) in [0, 1] to features (b, d), after pytorch-fid's resizing or, if
    `clean`, clean-fid's.
    """

    def __call__(self, image: jax.Array, /) -> jax.Array: ...

    def clean(self, image: jax.Array, /) -> jax.Array: ...


@functools.partial(jax.tree_util.register_dataclass, data_fields=("inception", "lpips_alex", "lpips_vgg"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Networks:
    """Trained networks that scores need. Scores whose network is missing are left out."""

    inception: Inception | None = None
    # two image batches (b, h, w, 3) in [0, 1] -> distances (b,)
    lpips_alex: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    lpips_vgg: Callable[[jax.Array, jax.Array], jax.Array] | None = None


NO_NETWORKS = Networks()


def pad(batch: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """Pads the batch with invalid copies of its last row until it divides over the devices."""
    missing = -len(batch["valid"]) % devices
    if not missing:
        return dict(batch)
    padded = jax.tree.map(lambda rows: np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]), dict(batch))
    padded["valid"][-missing:] = False
    return padded


@functools.partial(jax.jit, static_argnames=("settings", "detail"))
def complete_batch(model: Any, batch: DeviceArrays, *, settings: EvalConfig, detail: Detail) -> DeviceArrays:
    """Completes a batch with a model.

    Returns:
        completions: 8-bit composites uint8 (b, s, h, w, 3).
        finite: whether a photo's predictions are finite, (b,).
        prior: with Detail.GRID, if the model has one, the coarsest, (b, s, h', w', c).
    """
    image, mask = batch["image"], batch["mask"]
    noise = draw_noise(model, settings.seed % 2**32, batch["index"], jnp.arange(settings.samples), *image.shape[1:3])
    completions, output = complete(model, image, mask, noise, settings.quantise)
    result = {"completions": completions, "finite": jnp.all(jnp.isfinite(output.image), axis=(1, 2, 3, 4))}
    if detail >= Detail.GRID:
        result["prior"] = output.prior[max(output.prior)].astype(jnp.float32)
    return result


@functools.partial(jax.jit, static_argnames=("mesh", "detail"))
def score_batch(networks: Networks, batch: DeviceArrays, *, mesh: Mesh, detail: Detail) -> DeviceArrays:
    """Scores completions. Of several, the one of best PSNR counts (SPN's protocol).

    Args:
        batch: image uint8 (b, h, w, 3), mask uint8 (b, h, w, 1), completions uint8 (b, s, h, w, 3),
            and prior where there is one. Of the rest, what is in PASSED_ON is kept.

    Returns:
        By name, (b,) each: the scores of `bins.OF_COMPLETIONS` for which there are networks; with
            several completions also their mean over all of them, NAME_mean, and `bins.OF_SAMPLES`;
            hole_area and pixels. Inception's features of the completion, (b, d), have the names of
            FEATURE_KINDS. `Detail` adds further entries.
    """
    with jax.default_matmul_precision("highest"):
        return _everywhere(_score_batch(networks, batch, detail), mesh)


def _score_batch(networks: Networks, batch: DeviceArrays, detail: Detail) -> DeviceArrays:
    image, mask, completions = batch["image"], batch["mask"], batch["completions"]
    samples = completions.shape[1]
    of_all = _scores(networks, completions, image, mask)
    best = jnp.argmax(of_all["psnr"], axis=1)
    completed = _take_sample(completions, best)
    result: DeviceArrays = {name: batch[name] for name in PASSED_ON if name in batch}
    result |= {name: _take_sample(scores, best) for name, scores in of_all.items()}
    if samples > 1:
        result |= {f"{name}_mean": scores.mean(axis=1) for name, scores in of_all.items()}
        result["diversity"] = metrics.diversity(completions, mask)
        if networks.lpips_alex is not None:
            result["diversity_lpips"] = _mean_pairwise(networks.lpips_alex, completions)
    result["hole_area"] = metrics.hole_area(mask)
    result["pixels"] = jnp.full_like(result["hole_area"], image.shape[1] * image.shape[2])
    if networks.inception is not None:
        result |= _features(networks.inception, completed)
    if detail >= Detail.PICTURES:
        result["completed"] = completed
    if detail >= Detail.GRID:
        result |= {"image": image, "mask": mask}
        if "prior" in batch:
            result["prior"] = _take_sample(batch["prior"], best)
        if samples > 1:
            result["samples"] = completions[:, :SAMPLES_SHOWN]
    return result


@functools.partial(jax.jit, static_argnames="mesh")
def features_of(inception: Inception, image: jax.Array, *, mesh: Mesh) -> DeviceArrays:
    """Returns Inception's features (b, d) of photos uint8 (b, h, w, 3), by the names of
    FEATURE_KINDS.
    """
    with jax.default_matmul_precision("highest"):
        return _everywhere(_features(inception, image), mesh)


def _features(inception: Inception, image: jax.Array) -> DeviceArrays:
    return {"inception": inception(_unit(image)), "inception_clean": inception.clean(_unit(image))}


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    """Replicates every row on every device, so that each process can read all of them."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def _unit(image: jax.Array) -> jax.Array:
    return image.astype(jnp.float32) / 255


def _scores(networks: Networks, completions: jax.Array, image: jax.Array, mask: jax.Array) -> DeviceArrays:
    """Returns the scores, (b, s) each."""
    photo, hole = image[:, None], mask[:, None]
    scores = {
        "psnr": metrics.psnr(completions, photo),
        "ssim": metrics.ssim(completions, photo),
        "ssim_gaussian": metrics.ssim_gaussian(completions, photo),
        "mae": metrics.mae(completions, photo),
        "mae_rgb": metrics.mae_rgb(completions, photo),
        "hole_mae": metrics.hole_mae(completions, photo, hole),
        "border_psnr": metrics.border_psnr(completions, photo, hole),
        "border_mae": metrics.border_mae(completions, photo, hole),
    }
    for name, network in {"lpips_alex": networks.lpips_alex, "lpips_vgg": networks.lpips_vgg}.items():
        if network is not None:
            scores[name] = _of_each_sample(network, completions, image)
    return scores


def _of_each_sample(network: Callable[..., jax.Array], completions: jax.Array, image: jax.Array) -> jax.Array:
    """Returns (b, s). Samples are processed one by one, so that memory does not grow with their
    number.
    """
    return jax.lax.map(lambda sample: network(_unit(sample), _unit(image)), jnp.moveaxis(completions, 1, 0)).T


def _mean_pairwise(network: Callable[..., jax.Array], completions: jax.Array) -> jax.Array:
    """Returns the mean distance over all pairs of samples, (b,)."""
    pairs = jnp.array(list(itertools.combinations(range(completions.shape[1]), 2)))
    return jax.lax.map(lambda pair: network(_unit(completions[:, pair[0]]), _unit(completions[:, pair[1]])), pairs).mean(axis=0)


def _take_sample(samples: jax.Array, best: jax.Array) -> jax.Array:
    """Selects the sample `best` (b,) of (b, s, ...) -> (b, ...)."""
    return jax.vmap(lambda of_photo, i: of_photo[i])(samples, best)


def scored_batches(
    model: Callable[..., Any], batches: Iterable[Mapping[str, Any]], mesh: Mesh, config: Config, detail: Detail = Detail.SCORES
) -> Iterator[Arrays]:
    """Completes and scores each batch of `evaluation_batches` with one model."""
    for batch in batches:
        wanted = {key: batch[key] for key in ("image", "mask", "index", "valid")}
        on_devices = shard_batch(pad(wanted, len(mesh.local_devices)), mesh)
        completed = complete_batch(model, on_devices, settings=config.eval, detail=detail)
        yield jax.tree.map(np.asarray, score_batch(NO_NETWORKS, on_devices | completed, mesh=mesh, detail=detail))


def evaluate_model(
    model: Callable[..., Any], batches: Iterable[Mapping[str, Any]], mesh: Mesh, config: Config, tenths: np.ndarray | None = None
) -> Arrays:
    """Scores every valid picture of the batches, once.

    Args:
        model: a pytree that maps image (b, h, w, 3) in [0, 1], mask (b, h, w, 1) and the noise of
            `draw_noise` to an object with .image (b, s, h, w, 3) and .prior {level: (b, s, h', w',
            c)}. Of s completions the one of best PSNR is scored (SPN's protocol); s is
            config.eval.samples where the model is probabilistic.
        batches: those of `evaluation_batches`. With several processes each brings its own rows, and
            all get all records.
        tenths: as in `records_of`.

    Returns:
        The records of `records_of`.

    Raises:
        InputError: a prediction is not finite.
    """
    return records_of(list(scored_batches(model, batches, mesh, config)), tenths)


def records_of(parts: Sequence[Mapping[str, np.ndarray]], tenths: np.ndarray | None = None) -> Arrays:
    """Returns the valid rows of scored batches as records (n,) of `bins`, in the order of the
    photos.

    Args:
        tenths: the tenth of hole ratio of every photo, by index, as its mask's number tells it
            (`MaskSource.tenths` of the pairs). It decides the picture's bins; if not given, the
            measured `hole` does.

    Raises:
        InputError: there are no rows, or a prediction is not finite.
    """
    if not parts:
        raise InputError("there is no photo to evaluate")
    valid = np.concatenate([part["valid"] for part in parts]).astype(bool)
    kept = {key: np.concatenate([part[key] for part in parts])[valid] for key in parts[0] if parts[0][key].ndim == 1 and key != "valid"}
    order = np.argsort(kept["index"], kind="stable")
    records = {key: values[order] for key, values in kept.items()}
    finite = records.pop("finite", np.ones(len(order), bool)).astype(bool)
    if not finite.all():
        raise not_finite(records["index"][~finite], len(finite))
    # float64, so that exactly 20 % does not become more
    records["hole"] = records.pop("hole_area") / records.pop("pixels")
    chosen = None if tenths is None else tenths[records["index"].astype(int)]
    records["bin"] = bins.bins_of(records["hole"], chosen)
    records["tenth"] = bins.bins_of(records["hole"], chosen, "tenths")
    return records


def not_finite(photos: np.ndarray, of: int, name: str = "the model") -> InputError:
    """Returns the error for predictions of these photos, among so many, that are not finite."""
    return InputError(
        f"{name} predicted NaN or infinity for {len(photos)} of {counted(of, 'photo')}, first for photo {int(photos[0])}; "
        "its training diverged: evaluate an earlier checkpoint"
    )


def summarise(records: bins.Records) -> dict[str, float]:
    """Returns means as metrics to log: eval/psnr, ... over all pictures, and eval/20-40/psnr, ...
    of the bins that have any.

    Means over no picture are left out, for example diversity without any hole.
    """
    summary: dict[str, float] = {}
    for row in bins.rows_of(records):
        prefix = "eval/" if row.bin == "All" else f"eval/{row.bin.removesuffix('%')}/"
        summary |= {f"{prefix}{score}": mean for score, mean in row.means.items() if not math.isnan(mean)}
    return summary

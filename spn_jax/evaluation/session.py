"""Opens what an evaluation scores, and scores it batch by batch."""

import argparse
import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from spn_jax import __version__
from spn_jax.checkpoints import weights
from spn_jax.config import SCORING_KEYS, Config
from spn_jax.data.images import PhotoSource, SelectedPhotos, open_photos
from spn_jax.data.mask_check import check_masks
from spn_jax.data.mask_kinds import mask_note
from spn_jax.data.masks import DRAWN, MaskSource, open_test_masks
from spn_jax.data.pipeline import Batch, Completer, evaluation_batches
from spn_jax.drawing import figures
from spn_jax.errors import InputError, counted
from spn_jax.evaluation import tables
from spn_jax.evaluation.methods import (
    HostMethod,
    ModelMethod,
    host_methods,
    load_checkpoints,
    model_methods,
    named,
    named_checkpoints,
    shared_config,
)
from spn_jax.evaluation.pairs import PairList, draw_pairs, make_pair_list, match, open_pair_list
from spn_jax.evaluation.results import composite_stems
from spn_jax.evaluation.resume import FOLDER as PARTIAL_FOLDER
from spn_jax.evaluation.resume import Partial, data_state
from spn_jax.evaluation.scoring import (
    FEATURE_KINDS,
    Detail,
    Networks,
    complete_batch,
    features_of,
    not_finite,
    pad,
    records_of,
    score_batch,
)
from spn_jax.evaluation.set_scores import score_sets
from spn_jax.models.lpips import TRUNKS
from spn_jax.runtime.files import write_atomically
from spn_jax.runtime.sharding import replicate, shard_batch
from spn_jax.settings import SAME_NUMBERS, chosen_settings

TRUTH = "_truth"  # key beside the methods' in partial results; no method can have this name


# {network of `weights`: (option, scores that need it)}
NEEDS = {
    "inception": ("inception", ("fid", "fid_clean", "kid", "p_ids", "u_ids")),
    "lpips-alex": ("lpips_alex", ("lpips_alex", "diversity_lpips")),
    "lpips-vgg": ("lpips_vgg", ("lpips_vgg",)),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to score, how, and where to write: the options of `python -m spn_jax.evaluate run`,
    which explains them.
    """

    checkpoint: Sequence[str] = ()
    results: Sequence[str] = ()
    method: Sequence[str] = ()
    config: Path | None = None
    photos: str | None = None
    masks: str | None = None
    pairs: str | None = None
    image_size: int | None = None
    seed: int | None = None
    samples: int | None = None
    batch_size: int | None = None
    bins: str = "paper"
    paper: str | None = None
    inception: str | None = None
    lpips_alex: str | None = None
    lpips_vgg: str | None = None
    raw_results: bool = False
    output: Path | None = None
    save_composites: bool = False
    grid: int | None = None
    overrides: Sequence[str] = ()

    @classmethod
    def of(cls, options: argparse.Namespace) -> Self:
        """Makes the request of a command line; options that it lacks keep their defaults."""
        return cls(**{field.name: getattr(options, field.name) for field in dataclasses.fields(cls) if hasattr(options, field.name)})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An opened evaluation: data, methods and networks."""

    config: Config  # only its data and eval settings count
    photos: PhotoSource  # in the order of the pair list
    masks: MaskSource
    mask_of: np.ndarray  # index of each photo's mask, (n,)
    pairs: PairList
    models: list[ModelMethod]
    hosts: list[HostMethod]
    networks: Networks
    origins: Mapping[str, str]  # origins of the networks' weights
    notes: Sequence[str]  # notes for the readers of the results

    @property
    def methods(self) -> list[ModelMethod | HostMethod]:
        return [*self.models, *self.hosts]

    @property
    def layout(self) -> str:
        return "probabilistic" if any(model.settings.samples > 1 for model in self.models) else "deterministic"


def overrides_of(request: Request) -> list[str]:
    """Returns the settings that the request overrides, as section.key=value."""
    given = {
        "data.test_photos": request.photos,
        "data.test_masks": request.masks,
        "data.image_size": request.image_size,
        "eval.seed": request.seed,
        "eval.samples": request.samples,
        "eval.batch_size": request.batch_size,
    }
    return [*request.overrides, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def open_evaluation(request: Request) -> Evaluation:
    """Opens everything that the request names. Raises InputError if something does not fit."""
    networks, origins = load_networks(request)
    loaded = load_checkpoints(named_checkpoints(request.checkpoint))
    config = shared_config({name: of for name, (_, of) in loaded.items()}, request.config, overrides_of(request))
    if not config.data.test_photos:
        raise InputError("there is no data.test_photos in the config; say which photos to complete with --photos")
    photos, masks = open_photos(config.data.test_photos, "data.test_photos"), open_test_masks(config)

    notes: list[str] = []
    if request.pairs is None:
        mask_of = draw_pairs(len(photos), len(masks), config.eval.seed)
        pair_list = make_pair_list(photos.names, masks.names, mask_of, f"seed {config.eval.seed}, from the whole set")
    else:
        pair_list = open_pair_list(request.pairs, photos.names, masks.names)
        found = match(pair_list, photos.names, masks.names)
        photos, mask_of = SelectedPhotos(photos, found.photos), found.masks
        notes += found.notes
    if request.results:
        how = "were scored as they are (--raw-results)" if request.raw_results else "got the photo's own pixels outside the hole"
        notes.append(f"results of {', '.join(named(text, '--results')[0] for text in request.results)} {how}")

    for name, (_, of) in loaded.items():
        if "converted_from" in of.info:
            continue  # its settings say how it is used, not what it was trained on
        if note := mask_note(name, of.config, config, masks, mask_of):
            notes.append(note)

    for net, trunk in TRUNKS.items():
        if f"lpips_{net}" in origins and config.data.image_size < trunk.smallest:
            raise InputError(f"data.image_size={config.data.image_size} is too small for --lpips-{net}, which needs {trunk.smallest}")

    results = dict(named(text, "--results") for text in request.results)
    hosts = host_methods(results, request.raw_results, request.method, photos, config.data.image_size)
    return Evaluation(config, photos, masks, mask_of, pair_list, model_methods(loaded, config), hosts, networks, origins, notes)


def with_checked_masks(evaluation: Evaluation) -> Evaluation:
    """Reads every used mask once, and notes if they look inverted. Raises InputError if some are
    broken.
    """
    data = evaluation.config.data
    check = check_masks(evaluation.masks, data.threads, evaluation.mask_of)
    question = None if check is None else check.question(data)
    return evaluation if question is None else dataclasses.replace(evaluation, notes=[*evaluation.notes, f"{data.test_masks}: {question}"])


def load_networks(request: Request) -> tuple[Networks, dict[str, str]]:
    """Loads the networks whose weights were given, and returns them with the weights' origins."""
    loaders: dict[str, Callable[[str], tuple[Any, str]]] = {
        "inception": weights.load_inception,
        "lpips_alex": functools.partial(weights.load_lpips, net="alex"),
        "lpips_vgg": functools.partial(weights.load_lpips, net="vgg"),
    }
    loaded = {name: load(getattr(request, name)) for name, load in loaders.items() if getattr(request, name) is not None}
    return Networks(**{name: network for name, (network, _) in loaded.items()}), {name: origin for name, (_, origin) in loaded.items()}


@contextlib.contextmanager
def partial_results(request: Request, evaluation: Evaluation) -> Iterator[Partial]:
    """Opens the finished rows in the output folder, or a temporary folder if there is no output."""
    with contextlib.ExitStack() as stack:
        if request.output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spn_jax-")))
        else:
            folder = request.output / PARTIAL_FOLDER
        partial = stack.enter_context(Partial(folder, identity_of(evaluation, request.save_composites)))
        if partial.restarted:
            print(f"the unfinished evaluation in {request.output} {partial.restarted}; starting over", flush=True)
        if partial.done:
            done = f"{partial.done:,} of {counted(len(evaluation.photos), 'photo')}"
            print(f"continuing the unfinished evaluation in {request.output}: {done} already scored", flush=True)
        yield partial


def identity_of(evaluation: Evaluation, save_composites: bool) -> dict[str, Any]:
    """Returns what an unfinished evaluation must share with this one so that its rows can be
    used.
    """
    data = evaluation.config.data
    read = [entry for entry in chosen_settings(Config, SCORING_KEYS) if entry.declared.on_resume is not SAME_NUMBERS]
    return {
        "pairs": evaluation.pairs.sha256,
        "photos": evaluation.photos.fingerprint(),
        "settings": {entry.key: entry.value_in(evaluation.config) for entry in read},
        "methods": {method.name: method.identity() for method in evaluation.methods},
        "weights of Inception or LPIPS": dict(evaluation.origins),
        "--save-composites": save_composites,
        "photo files": data_state(data.test_photos),
        "mask files": "" if data.test_masks in DRAWN else data_state(data.test_masks),
        "version of spn_jax": __version__,
    }


def score_all(evaluation: Evaluation, mesh: Mesh, partial: Partial, composites: Path | None) -> None:
    """Scores the remaining photos by all methods. `composites` is the folder for completed photos,
    if they are kept.
    """
    count = len(evaluation.photos)
    batches = evaluation_batches(
        evaluation.config,
        evaluation.photos,
        evaluation.masks,
        evaluation.mask_of,
        batch_size_of(evaluation.config, mesh),
        start=partial.done,
        completers={host.name: host.complete for host in evaluation.hosts},
    )
    detail = Detail.SCORES if composites is None else Detail.PICTURES
    stems = composite_stems(evaluation.photos.names)
    for batch, parts in with_progress(fetched(scored(evaluation, batches, mesh, detail)), partial.done, count):
        valid = batch["valid"]
        for model in evaluation.models:
            if not (finite := parts[model.name].pop("finite")[valid]).all():
                raise not_finite(batch["index"][valid][~finite], int(valid.sum()), model.name)
        for name, part in parts.items():
            completed = part.pop("completed", None)
            if composites is not None and completed is not None:
                for index, picture in zip(batch["index"][valid], completed[valid], strict=True):
                    write_atomically(composites / "composites" / name / f"{stems[index]}.png", figures.png(picture))
        partial.add({name: {column: rows[valid] for column, rows in part.items()} for name, part in parts.items()})
    partial.commit()


def batches_of(evaluation: Evaluation, mesh: Mesh, numbers: Sequence[int] | np.ndarray) -> Iterator[Batch]:
    """Yields batches of the photos of these numbers. "index" is the number among all photos,
    because the noise depends on it.
    """
    of_all = np.asarray(numbers, np.int32)

    def renumbered(complete: Completer) -> Completer:
        return lambda i, image, mask: complete(int(of_all[i]), image, mask)

    batches = evaluation_batches(
        evaluation.config,
        SelectedPhotos(evaluation.photos, of_all),
        evaluation.masks,
        evaluation.mask_of[of_all],
        batch_size_of(evaluation.config, mesh),
        completers={host.name: renumbered(host.complete) for host in evaluation.hosts},
    )
    return (batch | {"index": of_all[batch["index"]]} for batch in batches)


def batch_size_of(config: Config, mesh: Mesh) -> int:
    """Returns eval.batch_size, rounded up to a multiple of the devices."""
    return -(-config.eval.batch_size // mesh.size) * mesh.size


# (valid and index of a batch, {method: scores} of it)
Scored = tuple[Mapping[str, Any], dict[str, dict[str, Any]]]


def scored(evaluation: Evaluation, batches: Iterable[Mapping[str, Any]], mesh: Mesh, detail: Detail) -> Iterator[Scored]:
    """Starts scoring each batch by all methods. What it yields may still be computing."""
    models = {model.name: replicate(model.loaded.model, mesh) for model in evaluation.models}
    networks = replicate(evaluation.networks, mesh)
    for batch in batches:
        padded = pad(batch, mesh.size)
        on_devices = shard_batch({key: padded[key] for key in ("image", "mask", "index")}, mesh)
        pictures = {key: on_devices[key] for key in ("image", "mask")}
        parts: dict[str, dict[str, Any]] = {}
        for model in evaluation.models:
            output = complete_batch(models[model.name], on_devices, settings=model.settings, detail=Detail.SCORES)
            finite = output.pop("finite")
            parts[model.name] = score_batch(networks, pictures | output, mesh=mesh, detail=detail) | {"finite": finite}
        for host in evaluation.hosts:
            completions = shard_batch({"completions": padded["completed"][host.name][:, None]}, mesh)
            parts[host.name] = score_batch(networks, pictures | completions, mesh=mesh, detail=detail)
        if networks.inception is not None:
            parts[TRUTH] = dict(features_of(networks.inception, pictures["image"], mesh=mesh))
        yield {key: padded[key] for key in ("valid", "index")}, parts


def fetched(parts: Iterator[Scored]) -> Iterator[Scored]:
    """Copies scores to the host, one batch behind, so that the devices have work meanwhile."""
    waiting: Scored | None = None
    for part in parts:
        if waiting is not None:
            yield waiting[0], jax.tree.map(np.asarray, waiting[1])
        waiting = part
    if waiting is not None:
        yield waiting[0], jax.tree.map(np.asarray, waiting[1])


def with_progress(parts: Iterable[Scored], done: int, photos: int) -> Iterator[Scored]:
    """Passes scored batches on, and prints the progress now and then."""
    start = last = time.monotonic()
    before = done
    for batch, scores in parts:
        yield batch, scores
        done += int(batch["valid"].sum())
        now = time.monotonic()
        if now - last > 10 or done == photos:
            print(f"evaluated {done}/{photos} photos, {(done - before) / (now - start):.1f} photos/s", flush=True)
            last = now


def results_of(evaluation: Evaluation, partial: Partial, layout: str) -> dict[str, tables.Results]:
    """Returns each method's scores from the complete rows, with the reasons for missing ones."""
    everything = {"index": np.arange(partial.done), "valid": np.ones(partial.done, bool)}
    tenths = evaluation.masks.tenths(evaluation.mask_of)
    results = {}
    for method in evaluation.methods:
        records = records_of([everything | partial.scores(method.name)], tenths)
        of_sets: dict[str, dict[str, float]] = {}
        missing = {score: "no weights" for _, (name, scores) in NEEDS.items() if name not in evaluation.origins for score in scores}
        if "diversity" not in records:
            missing.pop("diversity_lpips", None)
        notes: list[str] = []
        if evaluation.networks.inception is not None:
            truth, completed = ({kind: partial.rows(name, kind) for kind in FEATURE_KINDS} for name in (TRUTH, method.name))
            of_sets, unavailable, notes = score_sets(truth, completed, records, layout)
            missing |= unavailable
        results[method.name] = tables.Results(records, of_sets, notes, missing)
    return results

"""Scores completions of held-out photos: of checkpoints, of any program's results, and of classical methods, on the same pairs.

python -m spn_jax.evaluate pairs --photos LIST --masks SET --output FILE.tsv
python -m spn_jax.evaluate run --checkpoint DIR --results NAME=DIR --method mean --pairs FILE.tsv --output DIR
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spn_jax import __version__, figures, gallery, paper, tables, weights
from spn_jax.baselines import BASELINES, find_baseline
from spn_jax.checkpoint import load_model
from spn_jax.config import Config, apply_overrides, to_dict
from spn_jax.data.images import PhotoSource, SelectedPhotos, existing_path, find_images, open_photos, read_list
from spn_jax.data.mask_check import check_masks
from spn_jax.data.mask_kinds import mask_note
from spn_jax.data.masks import DRAWN, MaskSource, open_test_masks
from spn_jax.data.pipeline import evaluation_batches
from spn_jax.errors import InputError, counted, first_few, run_command
from spn_jax.files import check_writable, write_atomically
from spn_jax.gallery import sample_grid
from spn_jax.methods import (
    HostMethod,
    ModelMethod,
    check_names,
    checked_settings,
    host_methods,
    load_checkpoints,
    model_methods,
    named,
    named_checkpoints,
    shared_config,
)
from spn_jax.models.lpips import TRUNKS
from spn_jax.pairs import PROTOCOLS, PairList, draw_pairs, draw_pairs_per_bin, make_pair_list, match, open_pair_list, write_pair_list
from spn_jax.partial import FOLDER as PARTIAL_FOLDER
from spn_jax.partial import Partial, data_state
from spn_jax.results import composite_stems
from spn_jax.runtime import set_up
from spn_jax.scoring import (
    FEATURES,
    Arrays,
    Detail,
    Networks,
    complete_batch,
    evaluate_model,
    features_of,
    not_finite,
    pad,
    records_of,
    score_batch,
    summarise,
)
from spn_jax.set_scores import score_sets
from spn_jax.sharding import make_mesh, replicate, shard_batch

__all__ = ["evaluate_model", "main", "sample_grid", "summarise"]  # the middle of these are what the trainer uses

TRUTH = "_truth"  # beside the methods in partial results; no method can have the name
COMPARED = 6  # photos in the comparison picture of several methods, where --grid does not say
# {network of `weights`: (option, scores that need it)}
NEEDS = {
    "inception": ("inception", ("fid", "fid_clean", "kid", "p_ids", "u_ids")),
    "lpips-alex": ("lpips_alex", ("lpips_alex", "diversity_lpips")),
    "lpips-vgg": ("lpips_vgg", ("lpips_vgg",)),
}


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    options.command(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m spn_jax.evaluate", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="a table of scores by hole ratio", description=run.__doc__))
    _add_pairs(commands.add_parser("pairs", help="write which mask each photo gets", description=pairs.__doc__))
    _add_profile(commands.add_parser("profile", help="parameters, operations and seconds of a model", description=profile.__doc__))
    return parser.parse_args(arguments)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run)
    add = parser.add_argument
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a run's work directory (its newest checkpoint) or one; repeatable",
    )
    add("--results", action="append", default=[], metavar="NAME=DIR", help="a folder of completed photos, by any program; repeatable")
    add("--method", action="append", default=[], metavar="NAME", help=f"one that needs no training, repeatable: {', '.join(BASELINES)}")
    add("--config", type=Path, help="where data.* and eval.* come from; the first checkpoint's config if not given")
    add("--photos", help="test photos: data.test_photos")
    add("--masks", help="masks: data.test_masks")
    add(
        "--pairs",
        metavar="FILE",
        help=f"which mask each photo gets: a file of `evaluate pairs`, a released .npy, or {', '.join(PROTOCOLS)}",
    )
    add("--image-size", type=int, metavar="P", help="photos are brought to P x P pixels: data.image_size")
    add("--seed", type=int, help="of samples, and of the pairs without --pairs: eval.seed")
    add(
        "--samples",
        type=int,
        metavar="N",
        help="completions of each photo by probabilistic models, the best by PSNR is scored: eval.samples",
    )
    add("--batch-size", type=int, help="photos a call over all devices: eval.batch_size")
    add("--bins", choices=("paper", "tenths"), default="paper", help="columns: the paper's, or six of ten percent")
    add("--paper", choices=(*paper.DATA_SETS, "none"), help="quote the paper's figures for a data set; that of --pairs if not given")
    add("--inception", metavar="FILE.npz", help="weights for FID (with pytorch-fid's resizing and clean-fid's), KID, P-IDS and U-IDS")
    add("--lpips-alex", metavar="FILE.npz", help="weights for LPIPS (AlexNet)")
    add("--lpips-vgg", metavar="FILE.npz", help="weights for LPIPS (VGG16)")
    add("--raw-results", action="store_true", help="score --results as they are, also where the photo was known")
    add("--output", type=Path, help="folder for results.md, .tsv, .tex, .json and the pictures; an interrupted evaluation continues in it")
    add("--save-composites", action="store_true", help="write every completed photo to OUTPUT/composites/NAME")
    add(
        "--grid",
        type=int,
        metavar="N",
        help=f"draw N photos, evenly chosen, into OUTPUT/grid.png; {COMPARED} where several methods are compared",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="other settings of data and eval")


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=pairs)
    add = parser.add_argument
    add("--photos", required=True, help="folder, .flist (whose files need not be there) or ArrayRecord")
    add("--masks", required=True, help=f"folder, .flist, .zip, or one of the words {', '.join(DRAWN)}: drawn masks")
    add("--seed", type=int, default=0)
    add("--per-bin", action="store_true", help="as many photos for each ten-percent bin of hole ratio as for any other")
    add("--output", type=Path, required=True, metavar="FILE.tsv", help="packed if it ends in .tsv.gz")
    add("overrides", nargs="*", metavar="data.key=value", help="for instance data.invert_masks=true")


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=profile)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run's work directory (its newest checkpoint) or one checkpoint")
    add("--batch-size", type=int, default=1, help="photos a call; times are given for one of them")
    add("--samples", type=int, default=1, metavar="N", help="completions of each photo (probabilistic models only)")
    add("--precision", choices=("highest", "default"), default="highest", help="of matrix products; evaluations use the highest")
    add("--repeats", type=int, default=20, metavar="N", help="calls that are timed")
    add("--output", type=Path, metavar="FILE.json", help="all numbers as JSON")


def profile(options: argparse.Namespace) -> None:
    """What a model costs (the paper's Table 6): parameters, operations, seconds a photo, compilation apart."""
    from spn_jax import profile as profiling  # of this command alone

    if options.output is not None:
        check_writable(options.output.parent)
    measured = profiling.measure(
        load_model(options.checkpoint),
        batch_size=options.batch_size,
        samples=options.samples,
        precision=options.precision,
        repeats=options.repeats,
    )
    print(profiling.report(measured), flush=True)
    if options.output is not None:
        write_atomically(options.output, profiling.as_json(measured))
        print(f"written to {options.output}")


def pairs(options: argparse.Namespace) -> None:
    """Writes a pair list: one mask a photo, none twice before all have come once."""
    if not options.output.name.endswith((".tsv", ".tsv.gz")):
        raise InputError(f"--output {options.output} must end in .tsv or .tsv.gz")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed} must not be negative")
    config = apply_overrides(Config(), [*options.overrides, f"data.test_masks={options.masks}"])
    masks = open_test_masks(config)
    names = photo_names(options.photos)
    if options.per_bin:
        bins = masks.tenths(np.arange(len(masks)))
        chosen = draw_pairs_per_bin(len(names), measured_tenths(masks) if bins is None else bins, options.seed)
    else:
        chosen = draw_pairs(len(names), len(masks), options.seed)
    # One without a hole, which no evaluation takes, must not get into a list that is published.
    check = check_masks(masks, config.data.threads, chosen)
    if check is not None and (question := check.question(config.data)):
        print(f"{options.masks}: {question}", flush=True)
    drawn = make_pair_list(names, masks.names, chosen, f"seed {options.seed}, {'per bin' if options.per_bin else 'from the whole set'}")
    write_pair_list(options.output, drawn)
    print(f"written: {options.output}: {drawn.title}")


def photo_names(path: str) -> Sequence[str]:
    """Names of the photos at `path`; those of a list need not exist."""
    if Path(path).suffix.lower() == ".flist":
        return read_list(existing_path(path, "--photos"), "--photos", "")[0]
    return open_photos(path, "--photos").names


def measured_tenths(masks: MaskSource) -> np.ndarray:
    """The ten-percent bin of each mask by its share of holes, -1 where there is none."""
    shares = np.array([masks.load(i).mean(dtype=np.float64) for i in range(len(masks))])
    return np.ceil(np.round(10 * shares, 9)).astype(int) - 1


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that is scored."""

    config: Config  # its data and eval
    photos: PhotoSource  # in the order of the pair list
    masks: MaskSource
    mask_of: np.ndarray  # index of each photo's mask, (n,)
    pairs: PairList
    models: list[ModelMethod]
    hosts: list[HostMethod]
    networks: Networks
    origins: Mapping[str, str]  # of their weights
    notes: Sequence[str]  # for the readers of the results

    @property
    def methods(self) -> list[ModelMethod | HostMethod]:
        return [*self.models, *self.hosts]

    @property
    def layout(self) -> str:
        return "probabilistic" if any(model.settings.samples > 1 for model in self.models) else "deterministic"


def run(options: argparse.Namespace) -> None:
    """Scores checkpoints, folders of results and classical methods on the same pairs of photo and mask."""
    check_options(options)
    evaluation = with_checked_masks(open_evaluation(options))
    quotation = quote(options, evaluation)
    if options.save_composites:
        check_composites(options.output / "composites", evaluation)
    mesh = make_mesh()
    print(announcement(evaluation, mesh), flush=True)

    with partial_results(options, evaluation) as partial:
        score_all(evaluation, mesh, partial, options.output if options.save_composites else None)
        layout = "tenths" if options.bins == "tenths" else evaluation.layout
        results = results_of(evaluation, partial, layout)

        below = "\n" + "".join(f"* {line}\n" for line in lines_below(evaluation, results))
        text = tables.text_table(results, layout, quotation) + below
        print("\n" + text, flush=True)
        if options.output is None:
            return
        remove_pictures(options.output)
        latex = tables.latex_table(results, layout, quotation) + "".join(f"% {line}\n" for line in below.splitlines() if line)
        files: dict[str, str | bytes] = {
            "results.md": text,
            "results.tsv": tables.tsv_table(results, layout, quotation),
            "results.tex": latex,
            "results.json": tables.as_json(results, about_run(evaluation), layout, quotation),
        }
        for name, content in files.items():
            write_atomically(options.output / name, content)
        written = [*files, *(["composites"] if options.save_composites else [])]
        compared = COMPARED if options.grid is None and len(evaluation.methods) > 1 else options.grid or 0
        if compared:
            write_atomically(options.output / "grid.png", figures.png(compare(evaluation, mesh, compared)))
            written.append("grid.png")
        for model in evaluation.models:
            name = "loss_curves.png" if len(evaluation.models) == 1 else f"loss_curves-{model.name}.png"
            if write_curves(model.folder, options.output / name):
                written.append(name)
        partial.remove()
    print(f"written to {options.output}: {', '.join(sorted(written))}")


def check_composites(folder: Path, evaluation: Evaluation) -> None:
    """Raises InputError where pictures of other photos lie among those that will be written, or results would be written over."""
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
    """Deletes the pictures of the evaluation whose results are in the folder: beside those of another they would mislead."""
    try:
        earlier = list(json.loads((output / "results.json").read_text(encoding="utf-8"))["about"]["methods"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # there is none, and the pictures are somebody else's
    for name in ("grid", "loss_curves", *(f"loss_curves-{method}" for method in earlier)):
        path = output / f"{name}.png"
        if path.parent == output and path.is_file():
            path.unlink()


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for what can be known to be wrong before anything is read; makes the folder of the results."""
    check_names(named_checkpoints(options.checkpoint), [named(text, "--results")[0] for text in options.results], options.method)
    for name in options.method:
        find_baseline(name)
    if options.grid is not None and options.grid < 0:
        raise InputError(f"--grid {options.grid} must not be negative; 0 draws no grid")
    checked_settings(Config(), overrides_of(options))
    if options.output is not None:
        check_writable(options.output)
    elif options.save_composites or options.grid:
        raise InputError("--save-composites and --grid write pictures; say where with --output DIR")


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The settings that the command line replaces, as section.key=value."""
    given = {
        "data.test_photos": options.photos,
        "data.test_masks": options.masks,
        "data.image_size": options.image_size,
        "eval.seed": options.seed,
        "eval.samples": options.samples,
        "eval.batch_size": options.batch_size,
    }
    return [*options.overrides, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def open_evaluation(options: argparse.Namespace) -> Evaluation:
    """Opens everything that the command line names. InputError: something does not fit."""
    networks, origins = load_networks(options)
    loaded = load_checkpoints(named_checkpoints(options.checkpoint))
    config = shared_config({name: of for name, (_, of) in loaded.items()}, options.config, overrides_of(options))
    if not config.data.test_photos:
        raise InputError("there is no data.test_photos in the config; say which photos to complete with --photos")
    photos, masks = open_photos(config.data.test_photos, "data.test_photos"), open_test_masks(config)

    notes: list[str] = []
    if options.pairs is None:
        mask_of = draw_pairs(len(photos), len(masks), config.eval.seed)
        pair_list = make_pair_list(photos.names, masks.names, mask_of, f"seed {config.eval.seed}, from the whole set")
    else:
        pair_list = open_pair_list(options.pairs, photos.names, masks.names)
        found = match(pair_list, photos.names, masks.names)
        photos, mask_of = SelectedPhotos(photos, found.photos), found.masks
        notes += found.notes
    if options.results:
        how = "were scored as they are (--raw-results)" if options.raw_results else "got the photo's own pixels outside the hole"
        notes.append(f"results of {', '.join(named(text, '--results')[0] for text in options.results)} {how}")

    for name, (_, of) in loaded.items():
        if "converted_from" in of.info:
            continue  # whose settings say how it is used, not what it was trained on
        if note := mask_note(name, of.config, config, masks, mask_of):
            notes.append(note)

    for net, trunk in TRUNKS.items():
        if f"lpips_{net}" in origins and config.data.image_size < trunk.smallest:
            raise InputError(f"data.image_size={config.data.image_size} is too small for --lpips-{net}, which needs {trunk.smallest}")

    results = dict(named(text, "--results") for text in options.results)
    hosts = host_methods(results, options.raw_results, options.method, photos, config.data.image_size)
    return Evaluation(config, photos, masks, mask_of, pair_list, model_methods(loaded, config), hosts, networks, origins, notes)


def with_checked_masks(evaluation: Evaluation) -> Evaluation:
    """Reads every mask that will be used once, and notes where they look inverted. InputError: some are broken."""
    data = evaluation.config.data
    check = check_masks(evaluation.masks, data.threads, evaluation.mask_of)
    question = None if check is None else check.question(data)
    return evaluation if question is None else dataclasses.replace(evaluation, notes=[*evaluation.notes, f"{data.test_masks}: {question}"])


def load_networks(options: argparse.Namespace) -> tuple[Networks, dict[str, str]]:
    """The networks whose weights were given, and where these come from."""
    loaders: dict[str, Callable[[str], tuple[Any, str]]] = {
        "inception": weights.load_inception,
        "lpips_alex": functools.partial(weights.load_lpips, net="alex"),
        "lpips_vgg": functools.partial(weights.load_lpips, net="vgg"),
    }
    loaded = {name: load(getattr(options, name)) for name, load in loaders.items() if getattr(options, name) is not None}
    return Networks(**{name: network for name, (network, _) in loaded.items()}), {name: origin for name, (_, origin) in loaded.items()}


def announcement(evaluation: Evaluation, mesh: Mesh) -> str:
    """What is about to be scored, for the terminal."""
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


@contextlib.contextmanager
def partial_results(options: argparse.Namespace, evaluation: Evaluation) -> Iterator[Partial]:
    """The rows that are done, in the output folder, or in a folder that goes with the process where there is no output."""
    with contextlib.ExitStack() as stack:
        if options.output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spn_jax-")))
        else:
            folder = options.output / PARTIAL_FOLDER
        partial = stack.enter_context(Partial(folder, identity_of(evaluation, options.save_composites)))
        if partial.restarted:
            print(f"the unfinished evaluation in {options.output} {partial.restarted}; starting over", flush=True)
        if partial.done:
            done = f"{partial.done:,} of {counted(len(evaluation.photos), 'photo')}"
            print(f"continuing the unfinished evaluation in {options.output}: {done} already scored", flush=True)
        yield partial


def identity_of(evaluation: Evaluation, save_composites: bool) -> dict[str, Any]:
    """What an unfinished evaluation must have in common with this one for its rows to be used."""
    values, data = to_dict(evaluation.config), evaluation.config.data
    # These change no score.
    left_out = ("batch_size", "photos", "threads", "prefetch", "train_photos", "train_masks", "flip", "keep_decoded", "shuffle_window")
    settings = {f"{section}.{key}": v for section in ("data", "eval") for key, v in values[section].items() if key not in left_out}
    return {
        "pairs": evaluation.pairs.sha256,
        "photos": evaluation.photos.fingerprint(),
        "settings": settings,
        "methods": {method.name: method.identity() for method in evaluation.methods},
        "weights of Inception or LPIPS": dict(evaluation.origins),
        "--save-composites": save_composites,
        "photo files": data_state(data.test_photos),
        "mask files": "" if data.test_masks in DRAWN else data_state(data.test_masks),
        "version of spn_jax": __version__,
    }


def score_all(evaluation: Evaluation, mesh: Mesh, partial: Partial, composites: Path | None) -> None:
    """Scores the photos that are not done yet by all methods; `composites`: the output folder, where completed photos are kept."""
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


def batch_size_of(config: Config, mesh: Mesh) -> int:
    """eval.batch_size, up to what divides over the devices."""
    return -(-config.eval.batch_size // mesh.size) * mesh.size


Scored = tuple[Mapping[str, Any], dict[str, dict[str, Any]]]  # valid and index of a batch, and {method: scores} of it


def scored(evaluation: Evaluation, batches: Iterable[Mapping[str, Any]], mesh: Mesh, detail: Detail) -> Iterator[Scored]:
    """Starts the scoring of each batch by all methods; what it yields may still be computed."""
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
    """Brings scores to the host, one batch behind, so that the devices have work meanwhile."""
    waiting: Scored | None = None
    for part in parts:
        if waiting is not None:
            yield waiting[0], jax.tree.map(np.asarray, waiting[1])
        waiting = part
    if waiting is not None:
        yield waiting[0], jax.tree.map(np.asarray, waiting[1])


def with_progress(parts: Iterable[Scored], done: int, photos: int) -> Iterator[Scored]:
    """Passes scored batches on and says now and then how far they have come."""
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
    """Each method's scores, from the rows that are all done now, and why some are missing."""
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
            truth, completed = ({kind: partial.rows(name, kind) for kind in FEATURES} for name in (TRUTH, method.name))
            of_sets, unavailable, notes = score_sets(truth, completed, records, layout)
            missing |= unavailable
        results[method.name] = tables.Results(records, of_sets, notes, missing)
    return results


def lines_below(evaluation: Evaluation, results: Mapping[str, tables.Results]) -> list[str]:
    """What stands under the table: the pair list, and what a reader has to know."""
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


def quote(options: argparse.Namespace, evaluation: Evaluation) -> paper.Quotation | None:
    """The paper's figures that stand with ours, if any."""
    protocols = [name for name in PROTOCOLS if options.pairs == name]
    data_set = options.paper or (protocols[0] if protocols else "none")
    # By the models and not by the samples: one completion of a probabilistic model is none of Table 1's methods.
    kind = "probabilistic" if any(model.loaded.config.model.variational for model in evaluation.models) else "deterministic"
    if data_set == "none" or (options.paper is None and not paper.figures(data_set, kind)):
        return None
    data, settings = evaluation.config.data, evaluation.config.eval
    differences = paper.differences(
        data_set,
        kind,
        own_images=data_set in protocols and data_set != "celebahq",  # whose test names the paper does not tell
        images=len(evaluation.photos),
        masks=len(evaluation.masks),
        image_size=data.image_size,
        crop=data.crop,
        quantise=settings.quantise,
        samples=max((model.settings.samples for model in evaluation.models), default=1),
        raw_results=options.raw_results,
        inception=evaluation.origins.get("inception"),
    )
    return paper.quote(data_set, kind, differences)


def about_run(evaluation: Evaluation) -> dict[str, Any]:
    """What a table cannot be compared without."""
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
    """One picture of some photos, evenly chosen: input, k-means map of the prior of a lone model, every method, truth."""
    chosen = np.array(gallery.spread(len(evaluation.photos), count), np.int32)

    def of_chosen(host: HostMethod) -> Callable[[int, np.ndarray, np.ndarray], np.ndarray]:
        return lambda i, image, mask: host.complete(int(chosen[i]), image, mask)

    batches = evaluation_batches(
        evaluation.config,
        SelectedPhotos(evaluation.photos, chosen),
        evaluation.masks,
        evaluation.mask_of[chosen],
        batch_size_of(evaluation.config, mesh),
        completers={host.name: of_chosen(host) for host in evaluation.hosts},
    )
    models = {model.name: replicate(model.loaded.model, mesh) for model in evaluation.models}
    rows: gallery.Rows = {}
    for batch in batches:
        # The number of a photo among all, because the noise of its samples follows from it.
        on_devices = shard_batch({"image": batch["image"], "mask": batch["mask"], "index": chosen[batch["index"]]}, mesh)
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
    """Draws the curves where the metrics of the run lie beside its checkpoints; False where there are none."""
    for folder in checkpoint.absolute().parents[:2]:
        path = folder / "metrics.jsonl"
        if path.is_file() and (lines := figures.read_metrics(path)):
            write_atomically(output, figures.png(figures.curves(lines)))
            return True
    return False


if __name__ == "__main__":
    set_up()
    run_command(main)

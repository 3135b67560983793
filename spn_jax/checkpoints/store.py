"""Saves and loads checkpoints, which are self-contained folders `<workdir>/checkpoints/<step>`.

Orbax writes a folder and commits it by one rename. It contains `model` (parameters of prior learner
and generator), `ema` (their exponential moving average (EMA), where the run keeps one) and
`training` (step, discriminator, singular vectors, optimisers). `_CHECKPOINT_METADATA` holds as JSON
the resolved config, the kind of model, the code's version, the teacher's channels and a checksum of
every array. Prediction reads `model` or `ema` alone. A model file (`model_file`) reads as a
checkpoint that has `model` alone. A converted checkpoint is step 0; its `training` is the
discriminator alone, or is absent.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spn_jax.checkpoints.model_file import SUFFIX, is_model_file, read_model_arrays, read_model_info, read_model_shapes
from spn_jax.checkpoints.parameters import compare_names, named_arrays, with_named_arrays
from spn_jax.checkpoints.reading import CHECKSUMS, changed_arrays, checksums, drop_late_reports, quiet, read_checksums
from spn_jax.config import Config, from_dict
from spn_jax.errors import InputError, first_few, first_line
from spn_jax.models.abstract import abstract_network
from spn_jax.models.spn import SPN
from spn_jax.pretrained import catalogue as pretrained
from spn_jax.runtime.files import is_disk_full
from spn_jax.runtime.sharding import array_sharding
from spn_jax.settings import ANOTHER_BEST, values_of

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp

FOLDER = "checkpoints"
METADATA = "_CHECKPOINT_METADATA"  # Orbax's name
BEST_METRIC = "eval/psnr"
FIRST_MOMENTS = ("model_optimizer.mu.", "discriminator_optimizer.mu.")  # names in `training`
LEVELS = ("1", "2", "3")  # of a teacher, as keys in JSON


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Holds a model ready for use, with its checkpoint's description."""

    config: Config
    model: SPN
    step: int
    info: dict[str, Any]


class Checkpoints:
    """Manages the checkpoints of one training run: saves in the background, keeps the last n and
    the best by PSNR.

    Args:
        workdir: of the run.
        keep_last: number of newest checkpoints to keep.
        keep_best: number of best ones to keep beside them, among those that were scored with the
            same settings of the kind ANOTHER_BEST (the protocol).
        config: the run's present config, which defines that protocol.
    """

    def __init__(self, workdir: Path, keep_last: int, keep_best: int, config: Config | None = None):
        self.folder = workdir / FOLDER
        self._keep = keep_last, keep_best
        self._protocol = None if config is None else values_of(config, ANOTHER_BEST)
        self._protocols = {step: protocol_of(path) for step, path in complete_steps(self.folder).items()}
        self._open()

    def _open(self) -> None:
        # The import takes a quarter of a second, which model files do not need.
        from orbax.checkpoint import v1 as ocp

        drop_late_reports()  # of saves that fail; a new run has read nothing
        policies = ocp.training.preservation_policies
        keep_last, keep_best = self._keep
        kept: list[Any] = [policies.LatestN(n=keep_last)]
        if keep_best:
            kept.append(KeepBest(keep_best, self._is_comparable))
        self._checkpointer = ocp.training.Checkpointer(
            self.folder.absolute(), preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
        )
        self._is_writing = False

    def save(self, step: int, state: Any, info: Mapping[str, Any], metrics: Mapping[str, float] | None) -> None:
        """Writes a TrainState in the background; the arrays may be overwritten as soon as this
        returns.

        An existing checkpoint of this step is kept, unless `metrics` are given now and there is
        another checkpoint.

        Raises:
            InputError: this or the previous save could not be written (disk full), or the folder
                holds a later step; earlier checkpoints are intact.
        """
        there = complete_steps(self.folder)
        if later := [other for other in there if other > step]:
            raise InputError(
                f"{self.folder} holds a checkpoint of step {max(later)}, but this run is at step {step}: another run has written there; "
                "start the command again to continue from it"
            )
        is_rewritten = step in there
        if is_rewritten and (not metrics or len(there) == 1 or jax.process_count() > 1):
            return
        is_second_try = self._is_writing and jax.process_count() == 1 and self._previous_failed()
        self._protocols[step] = stored_protocol(info, "this run") if "config" in info else None
        parts = split_state(state)
        try:
            self._checkpointer.save_checkpointables_async(
                step,
                parts,
                force=True,
                overwrite=is_rewritten,
                metrics=dict(metrics) if metrics else None,
                custom_metadata={**info, CHECKSUMS: checksums(parts)},
            )
            self._is_writing = True
        except Exception as error:
            raise self._failed(error) from error
        # The previous save failed, so the run must not go on before this one is on the disk.
        if is_second_try:
            self.wait()

    def _previous_failed(self) -> bool:
        """Waits for the background save and returns whether it failed. After a failure the
        checkpointer is opened anew.
        """
        try:
            self.wait()
        except InputError:
            self.close()
            self._open()
            return True
        return False

    def background_failure(self) -> InputError | None:
        """Returns the error of a background save that has failed, once, and opens the checkpointer
        anew. It never waits.
        """
        if not self._is_writing or self._checkpointer.is_saving_in_progress() or jax.process_count() > 1:
            return None  # several processes would have to agree on it; there `save` reports it
        try:
            self.wait()
        except InputError as error:
            self.close()
            self._open()
            return error
        return None

    def wait(self) -> None:
        """Waits until the last save is complete. Raises InputError if it failed."""
        self._is_writing = False
        try:
            self._checkpointer.wait()
        except Exception as error:
            raise self._failed(error) from error

    @property
    def best(self) -> Path | None:
        """Returns the kept checkpoint with the best score under the run's protocol, or None if none
        was scored.
        """
        scored = [(c.metrics[BEST_METRIC], c.step) for c in self._checkpointer.checkpoints if c.metrics and self._is_comparable(c.step)]
        return self.folder / str(max(scored)[1]) if scored else None

    def _is_comparable(self, step: int) -> bool:
        return self._protocol is None or self._protocols.get(step) == self._protocol

    def close(self) -> None:
        """Waits for the background save. It hides a failure, which `save` and `wait` report, so
        that it cannot hide the cause of an exit.
        """
        with contextlib.suppress(Exception):
            self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _failed(self, error: Exception) -> InputError:
        advice = "free some space and run the same command again" if is_disk_full(error) else "the same command continues from the newest"
        return InputError(
            f"a checkpoint could not be written to {self.folder} ({first_line(error)}); earlier checkpoints are intact: {advice}"
        )


@dataclasses.dataclass(frozen=True)
class KeepBest:
    """Implements Orbax's preservation policy: keeps the n checkpoints of the highest PSNR among
    those with comparable scores.
    """

    n: int
    is_comparable: Callable[[int], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for every checkpoint whether it is one of them."""
        scored = [(c.metrics[BEST_METRIC], c.step) for c in checkpoints if c.metrics and self.is_comparable(c.step)]
        best = {step for _, step in sorted(scored)[-self.n :]}
        return [c.step in best for c in checkpoints]


def protocol_of(path: Path) -> dict[str, Any] | None:
    """Returns the settings of a checkpoint that decide which scores its own may be compared with,
    or None if they cannot be read.
    """
    try:
        return stored_protocol(read_info(path), str(path))
    except InputError:
        return None


def stored_protocol(info: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Returns `protocol_of` for a checkpoint's description. Raises InputError, naming `origin`, if
    its settings are of another version.
    """
    return values_of(from_dict(info["config"], origin), ANOTHER_BEST)


def restore(path: Path, state: Any, mesh: Mesh, split: bool = False) -> Any:
    """Restores the TrainState in step folder `path` on `mesh`, sharded by `array_sharding`. `state`
    gives structure, shapes and types.

    Version 0.1.0 also stored Adam's first moment where beta1 = 0. It is the last step's gradient
    there, so it is not read.

    Raises:
        InputError: the checkpoint is damaged, or holds a model of another size; it lists the
            differences.
    """
    wanted = split_state(state)
    stored = stored_metadata(path).metadata
    check_names(path, stored, wanted, ignored=lambda name: name.startswith(FIRST_MOMENTS) and name not in wanted["training"])
    with reading_some_arrays():
        return join_state(state, load_arrays(path, abstract(wanted, mesh, split)))


def reading_some_arrays() -> "ocp.Context":
    """Returns the context in which Orbax may read only some arrays of a part."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context


def load_arrays(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the parts of a checkpoint that `wanted` describes. Raises InputError if one of their
    files is missing or damaged.
    """
    if is_model_file(path):
        arrays = read_model_arrays(path)
        return jax.tree.map_with_path(lambda at, leaf: jax.device_put(arrays[at[-1].key], leaf.sharding), dict(wanted))
    from orbax.checkpoint import v1 as ocp

    try:
        with quiet():
            loaded = ocp.load_checkpointables(path.absolute(), dict(wanted))
    except (OSError, ValueError, KeyError) as error:
        raise damaged(path, error) from error
    if changed := changed_arrays(loaded, read_checksums(path / METADATA)):
        raise damaged(path, ValueError(f"not as it was saved: {first_few(changed)}"))
    return loaded


def damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"checkpoint {path} is damaged ({first_line(error)}); delete this folder and use an earlier one of the run, "
        "or convert the file again if it was converted"
    )


def split_state(state: Any) -> dict[str, dict[str, Any]]:
    """Splits a TrainState into the named arrays of `model`, `training` and, where it is kept,
    `ema`.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    parts = {"model": named_arrays(fields.pop("model"))}
    if (ema := fields.pop("ema")) is not None:
        parts["ema"] = named_arrays(ema)
    return {**parts, "training": named_arrays(fields)}


def join_state(state: Any, parts: Mapping[str, Mapping[str, Any]]) -> Any:
    """Reverses `split_state`. `state` gives the structure."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    apart = {name: fields.pop(name) for name in ("model", "ema")}
    restored = with_named_arrays(fields, parts["training"], what="training state")
    for name, tree in apart.items():
        restored[name] = None if tree is None else with_named_arrays(tree, parts[name], what=name)
    return type(state)(**restored)


def abstract(parts: Mapping[str, Mapping[str, Any]], mesh: Mesh, split: bool) -> dict[str, Any]:
    """Returns shapes, types and shardings of the arrays to load."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=array_sharding(x, mesh, split)), dict(parts))


def check_names(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]], ignored: Callable[[str], bool]) -> None:
    """Raises InputError, listing differences, unless `stored`, the contents of the checkpoint at
    `path`, holds exactly the arrays of the wanted parts.
    """
    problems = []
    for part, arrays in wanted.items():
        if not stored.get(part):  # Orbax does not say why
            raise damaged(path, ValueError(f"{part!r} cannot be read"))
        given = {name: tuple(leaf.shape) for name, leaf in stored[part].items() if not ignored(name)}
        problems += compare_names({name: tuple(leaf.shape) for name, leaf in arrays.items()}, given)
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise InputError(f"checkpoint {path} is of another model than the config describes: {shown}")


def stored_metadata(path: Path) -> Any:
    """Returns the metadata of a checkpoint or a model file: `.metadata` is {part: {name: shape and
    type}}, and `.custom_metadata` is our description.

    Raises:
        InputError: it is damaged.
    """
    if is_model_file(path):
        return SimpleNamespace(metadata={"model": read_model_shapes(path)}, custom_metadata=read_model_info(path))
    from orbax.checkpoint import v1 as ocp

    try:
        with quiet():
            return ocp.checkpointables_metadata(path.absolute())
    except (OSError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def find_checkpoint(path: str | Path) -> Path:
    """Finds the checkpoint that a path names.

    The path is a step folder, a checkpoints folder or a run's work directory (the newest step is
    taken), a model file, or `pretrained:NAME` for a model that comes with the package.

    Raises:
        InputError: there is no complete checkpoint at `path`.
    """
    if str(path).startswith(pretrained.PREFIX):
        return pretrained.pretrained_file(str(path))
    given = Path(path)
    if is_model_file(given):
        return given
    if not given.is_dir():
        raise InputError(
            f"checkpoint {given} is not a folder; pass a run's work directory, one of its checkpoints or a model file that ends in {SUFFIX}"
        )
    if is_checkpoint(given):
        return given
    newest = newest_checkpoint(given) or newest_checkpoint(given / FOLDER)
    if newest is None:
        raise InputError(f"{given} holds no complete checkpoint; pass a run's work directory or one of its checkpoints")
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the complete step folder of the highest step in `folder`, or None if there is
    none.
    """
    steps = complete_steps(folder)
    return steps[max(steps)] if steps else None


def complete_steps(folder: Path) -> dict[int, Path]:
    """Returns {step: folder} of the complete checkpoints in `folder`."""
    return {int(child.name): child for child in folder.iterdir() if is_checkpoint(child)} if folder.is_dir() else {}


def is_checkpoint(path: Path) -> bool:
    """Returns whether Orbax committed a checkpoint at `path`. Orbax's own test also accepts the
    empty folder that a killed deletion leaves.
    """
    return path.name.isdigit() and (path / METADATA).is_file()


def read_info(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's description.

    Raises:
        InputError: it was not written by spn_jax, or its description is damaged.
    """
    info = stored_metadata(path).custom_metadata
    if not isinstance(info, dict) or "config" not in info:
        require_whole_metadata(path)
        raise InputError(f"checkpoint {path} was not written by spn_jax: it holds no config")
    if not isinstance(info["config"], dict):
        raise damaged(path, ValueError(f"its config is {str(info['config'])[:40]!r} instead of sections of settings"))
    try:
        teacher_channels(info)
    except ValueError as error:
        raise damaged(path, error) from error
    return {name: value for name, value in info.items() if name != CHECKSUMS}


def require_whole_metadata(path: Path) -> None:
    """Raises InputError if a checkpoint's description is truncated, which Orbax reads as an empty
    one.
    """
    try:
        content = json.loads((path / METADATA).read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, ValueError(f"{METADATA} cannot be read")) from error
    if not isinstance(content, dict):
        raise damaged(path, ValueError(f"{METADATA} holds no description"))


def require_new_folder(folder: Path) -> None:
    """Raises InputError unless `folder` is absent or empty."""
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read ({error.strerror or error}); choose another") from error
    kind = "already holds something" if folder.is_dir() else "is a file"
    raise InputError(f"{folder} {kind}; choose a new folder, nothing is overwritten")


def save_converted(
    workdir: Path, model: Mapping[str, np.ndarray], discriminator: Mapping[str, np.ndarray] | None, info: Mapping[str, Any]
) -> Path:
    """Writes parameters that another program trained as a checkpoint of step 0 in a new work
    directory. Returns the step folder.

    The work directory appears only when it is complete.

    Args:
        model: prior learner and generator by name.
        discriminator: kernels and singular vectors by name ("convs.0.kernel", "convs.0.u", ...), or
            None.
        info: the checkpoint's description.

    Raises:
        InputError: the work directory holds something, or cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    require_new_folder(workdir)
    parts = {"model": dict(model)}
    if discriminator is not None:
        parts["training"] = {f"{training_field(name)}.{name}": array for name, array in discriminator.items()}
    workdir = workdir.resolve()
    try:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=workdir.parent, prefix=f".{workdir.name}-") as temporary:
            whole = Path(temporary) / workdir.name
            arrays = jax.tree.map(np.ascontiguousarray, parts)
            ocp.save_checkpointables(whole / FOLDER / "0", arrays, custom_metadata={**info, CHECKSUMS: checksums(arrays)})
            os.rename(whole, workdir)
    except Exception as error:  # Orbax and TensorStore raise many types
        raise InputError(f"{workdir} cannot be written ({first_line(error)}); choose another folder or free space") from error
    return workdir / FOLDER / "0"


# fields of TrainState: kernels and biases, singular vectors
DISCRIMINATOR_FIELDS = ("discriminator", "spectral")


def training_field(name: str) -> str:
    """Returns the field of TrainState that holds an array of the discriminator."""
    return "spectral" if name.endswith((".u", ".v")) else "discriminator"


def load_discriminator(folder: Path) -> dict[str, jax.Array] | None:
    """Returns the discriminator in step folder `folder` as {"convs.0.kernel": array, "convs.0.u":
    array, ...}, or None if there is none.

    Raises:
        InputError: the checkpoint is damaged.
    """
    stored = stored_metadata(folder).metadata
    if "training" not in stored:
        return None
    if not stored["training"]:
        raise damaged(folder, ValueError("'training' cannot be read"))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for name, leaf in stored["training"].items()
        if name.partition(".")[0] in DISCRIMINATOR_FIELDS
    }
    if not wanted:
        return None
    with reading_some_arrays():  # skips the optimisers, which are larger
        loaded = load_arrays(folder, {"training": wanted})["training"]
    return {name.partition(".")[2]: array for name, array in loaded.items()}


def teacher_channels(info: Mapping[str, Any]) -> dict[int, int]:
    """Returns {level: channels} of the teacher that a checkpoint's model was trained with.

    Args:
        info: a checkpoint's description; `read_info` has checked it.

    Raises:
        ValueError: the channels are missing or wrong.
    """
    teacher = info.get("teacher")
    channels = teacher.get("channels") if isinstance(teacher, dict) else None
    if not isinstance(channels, dict):
        raise ValueError("it does not say its teacher's channels")
    if wrong := [f"{n}: {c!r}" for n, c in channels.items() if n not in LEVELS or type(c) is not int or c <= 0]:
        raise ValueError(f"its teacher's channels are {', '.join(wrong)[:80]}")
    return {int(level): count for level, count in channels.items()}


def load_model(path: str | Path, dtype: Any = None) -> LoadedModel:
    """Loads the model of a checkpoint from its folder alone, with the EMA's parameters where the
    run kept one.

    Args:
        dtype: compute type of the model, by default the run's own. Parameters are float32.

    Raises:
        InputError: `path` has no complete checkpoint, or a damaged one or one of another version.
    """
    folder = find_checkpoint(path)
    info = read_info(folder)
    config = from_dict(info["config"], origin=str(folder))
    computed_in = jnp.dtype(config.train.compute_dtype if dtype is None else dtype)
    graph, shapes = nnx.split(abstract_network(lambda rng: SPN(config.model, teacher_channels(info), rng=rng, dtype=computed_in)))
    shapes = nnx.as_pure(shapes)
    arrays = load_parameters(folder, named_arrays(shapes))
    model = nnx.merge(graph, with_named_arrays(shapes, arrays, what=str(folder)))
    return LoadedModel(config=config, model=model, step=checkpoint_step(folder, info), info=info)


def checkpoint_step(path: Path, info: Mapping[str, Any]) -> int:
    """Returns the training step of a checkpoint, from its folder's name or a model file's
    description.
    """
    return int(info["step"]) if is_model_file(path) else int(path.name)


def checkpoint_sha256(path: Path) -> str:
    """Returns the SHA-256 that identifies a checkpoint: of its metadata file, which is written
    last, or of a model file.
    """
    return hashlib.sha256((path if is_model_file(path) else path / METADATA).read_bytes()).hexdigest()


def load_parameters(folder: Path, shapes: Mapping[str, Any], optional: str | None = None) -> dict[str, Any]:
    """Loads named parameters of prior learner and generator, from the EMA where there is one.

    Args:
        shapes: the wanted parameters, by name.
        optional: prefix of names; such parameters are left out where the checkpoint lacks them or
            has them in another shape.

    Raises:
        InputError: the checkpoint is of another model; it lists the differences.
    """
    stored = stored_metadata(folder).metadata
    part = "ema" if "ema" in stored else "model"
    there = {name: tuple(leaf.shape) for name, leaf in (stored.get(part) or {}).items()}

    def is_free(name: str) -> bool:
        return optional is not None and name.startswith(optional)

    chosen = {name: leaf for name, leaf in shapes.items() if not is_free(name) or there.get(name) == tuple(leaf.shape)}
    check_names(folder, stored, {part: chosen}, ignored=lambda name: is_free(name) and name not in chosen)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # Everything stored is read, because Orbax reads a part whole.
    wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in stored[part].items()}
    loaded = load_arrays(folder, {part: wanted})[part]
    return {name: loaded[name] for name in chosen}

"""Checkpoints: self-contained folders `<workdir>/checkpoints/<step>` written by Orbax, committed by
one rename.

Inside a step: `model` (parameters of prior learner and generator), `ema` (their moving average,
where the run keeps one), `training` (step, discriminator, singular vectors, optimisers), and in
`_CHECKPOINT_METADATA` the resolved config, the kind of model, the code's version, the teacher's
channels and a checksum of every array as JSON. Prediction reads `model` or `ema` alone. A model
file (`model_file`) reads as a checkpoint that has `model` alone. A converted checkpoint is step 0;
its `training` is the discriminator alone, or is not there.
"""

import contextlib
import dataclasses
import errno
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
from spn_jax.checkpoints.reading import CHECKSUMS, changed_arrays, checksums, quiet, read_checksums
from spn_jax.config import Config, from_dict
from spn_jax.errors import InputError, first_few, first_line
from spn_jax.models.spn import SPN
from spn_jax.pretrained import catalogue as pretrained
from spn_jax.runtime.sharding import array_sharding
from spn_jax.settings import ANOTHER_BEST, values_of

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp

FOLDER = "checkpoints"
METADATA = "_CHECKPOINT_METADATA"  # Orbax's name
BEST_METRIC = "eval/psnr"
FIRST_MOMENTS = ("model_optimizer.mu.", "discriminator_optimizer.mu.")  # names in `training`
LEVELS = ("1", "2", "3")  # of a teacher, as JSON has them


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, with what its checkpoint says about it."""

    config: Config
    model: SPN
    step: int
    info: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run: saves in the background, keeps the last n and the best
    by PSNR.

    Args:
        workdir: of the run.
        keep_last: newest checkpoints that are kept.
        keep_best: best ones that are kept beside them, among those that were scored with the same
            settings of the kind ANOTHER_BEST.
        config: of the run from now on, which tells that protocol.
    """

    def __init__(self, workdir: Path, keep_last: int, keep_best: int, config: Config | None = None):
        self.folder = workdir / FOLDER
        self._keep = keep_last, keep_best
        self._protocol = None if config is None else values_of(config, ANOTHER_BEST)
        self._protocols = {step: protocol_of(path) for step, path in complete_steps(self.folder).items()}
        self._open()

    def _open(self) -> None:
        # not at the top: a quarter of a second to import, and model files are read without it
        from orbax.checkpoint import v1 as ocp

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

        A checkpoint of this step that is there already is kept, unless `metrics` are news about it
        and there is an earlier one.

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
        # without the previous save, a run must not go on before this one is on the disk
        if is_second_try:
            self.wait()

    def _previous_failed(self) -> bool:
        """Waits for the save in the background; whether it failed, after which the next one is a
        fresh start.
        """
        try:
            self.wait()
        except InputError:
            self.close()
            self._open()
            return True
        return False

    def background_failure(self) -> InputError | None:
        """The error of the save in the background, once, if it has ended with one; never waits. The
        next save is a fresh start.
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
        """Returns when the last save is complete. InputError if it failed."""
        self._is_writing = False
        try:
            self._checkpointer.wait()
        except Exception as error:
            raise self._failed(error) from error

    @property
    def best(self) -> Path | None:
        """The kept checkpoint with the best score under the run's protocol; None if none was
        scored.
        """
        scored = [(c.metrics[BEST_METRIC], c.step) for c in self._checkpointer.checkpoints if c.metrics and self._is_comparable(c.step)]
        return self.folder / str(max(scored)[1]) if scored else None

    def _is_comparable(self, step: int) -> bool:
        return self._protocol is None or self._protocols.get(step) == self._protocol

    def close(self) -> None:
        """Waits for what is being written. A save that fails is reported by `save` and `wait`, not
        here, where it would hide the cause.
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
    """Orbax's policy that keeps the n checkpoints of the highest PSNR among those whose scores may
    be compared.
    """

    n: int
    is_comparable: Callable[[int], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For every checkpoint whether it is one of them."""
        scored = [(c.metrics[BEST_METRIC], c.step) for c in checkpoints if c.metrics and self.is_comparable(c.step)]
        best = {step for _, step in sorted(scored)[-self.n :]}
        return [c.step in best for c in checkpoints]


def protocol_of(path: Path) -> dict[str, Any] | None:
    """The settings of a checkpoint that decide with which scores its own may be compared; None if
    it does not say.
    """
    try:
        return stored_protocol(read_info(path), str(path))
    except InputError:
        return None


def stored_protocol(info: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`protocol_of` what a checkpoint says about itself; InputError, naming `origin`, if its
    settings are of another version.
    """
    return values_of(from_dict(info["config"], origin), ANOTHER_BEST)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, says that the disk or the user's share of it is
    full.
    """
    chain: BaseException | None = error
    while chain is not None:
        text = str(chain)
        if getattr(chain, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "quota exceeded" in text:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def restore(path: Path, state: Any, mesh: Mesh, split: bool = False) -> Any:
    """The TrainState saved in step folder `path`, on `mesh` as `array_sharding` says; `state` gives
    structure, shapes and types.

    Version 0.1.0 stored Adam's first moment also where beta1 = 0, where it is the last step's
    gradient: it is left out.

    Raises:
        InputError: the checkpoint is damaged, or holds a model of another size; lists every
            difference.
    """
    wanted = split_state(state)
    stored = stored_metadata(path).metadata
    check_names(path, stored, wanted, ignored=lambda name: name.startswith(FIRST_MOMENTS) and name not in wanted["training"])
    with reading_some_arrays():
        return join_state(state, load_arrays(path, abstract(wanted, mesh, split)))


def reading_some_arrays() -> "ocp.Context":
    """The context in which a part may be read of which not all arrays are wanted."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context


def load_arrays(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint that `wanted` describes; InputError if a file of them is missing or
    broken.
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
    """A TrainState as the named arrays of `model`, `training` and, where kept, `ema`."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    parts = {"model": named_arrays(fields.pop("model"))}
    if (ema := fields.pop("ema")) is not None:
        parts["ema"] = named_arrays(ema)
    return {**parts, "training": named_arrays(fields)}


def join_state(state: Any, parts: Mapping[str, Mapping[str, Any]]) -> Any:
    """Reverses `split_state`; `state` gives the structure."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    apart = {name: fields.pop(name) for name in ("model", "ema")}
    restored = with_named_arrays(fields, parts["training"], what="training state")
    for name, tree in apart.items():
        restored[name] = None if tree is None else with_named_arrays(tree, parts[name], what=name)
    return type(state)(**restored)


def abstract(parts: Mapping[str, Mapping[str, Any]], mesh: Mesh, split: bool) -> dict[str, Any]:
    """Shapes, types and placement of the arrays to load."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=array_sharding(x, mesh, split)), dict(parts))


def check_names(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]], ignored: Callable[[str], bool]) -> None:
    """Raises InputError unless the checkpoint at `path`, which holds `stored`, has exactly the
    arrays of the wanted parts, or says what differs.
    """
    problems = []
    for part, arrays in wanted.items():
        if not stored.get(part):  # Orbax keeps to itself why
            raise damaged(path, ValueError(f"{part!r} cannot be read"))
        given = {name: tuple(leaf.shape) for name, leaf in stored[part].items() if not ignored(name)}
        problems += compare_names({name: tuple(leaf.shape) for name, leaf in arrays.items()}, given)
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise InputError(f"checkpoint {path} is of another model than the config describes: {shown}")


def stored_metadata(path: Path) -> Any:
    """Description of a checkpoint: `.metadata` {part: {name: shape and type}}, `.custom_metadata`
    what we added; of a model file alike.

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
    """The step folder meant by a step folder, a checkpoints folder or a run's work directory
    (newest step).

    A model file, and `pretrained:NAME` of a model that comes with the package, are meant by
    themselves.

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
    """The complete step folder of the highest step in `folder`; None if there is none."""
    steps = complete_steps(folder)
    return steps[max(steps)] if steps else None


def complete_steps(folder: Path) -> dict[int, Path]:
    """{step: folder} of the complete checkpoints in `folder`."""
    return {int(child.name): child for child in folder.iterdir() if is_checkpoint(child)} if folder.is_dir() else {}


def is_checkpoint(path: Path) -> bool:
    """Whether Orbax committed a checkpoint at `path`. Its own test also holds for the empty folder
    that a killed deletion leaves.
    """
    return path.name.isdigit() and (path / METADATA).is_file()


def read_info(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
        InputError: it was not written by spn_jax, or what it says is damaged.
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
    """Raises InputError if a checkpoint's description is cut short; Orbax then reads it as an empty
    one.
    """
    try:
        content = json.loads((path / METADATA).read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, ValueError(f"{METADATA} cannot be read")) from error
    if not isinstance(content, dict):
        raise damaged(path, ValueError(f"{METADATA} holds no description"))


def require_new_folder(folder: Path) -> None:
    """Raises InputError if there is anything at `folder` but an empty folder."""
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
    directory; returns its folder.

    The work directory appears only when it is complete.

    Args:
        model: prior learner and generator by name.
        discriminator: kernels and singular vectors by name ("convs.0.kernel", "convs.0.u", ...), if
            there are any.
        info: what the checkpoint says about itself.

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
    except Exception as error:  # Orbax and TensorStore have many kinds
        raise InputError(f"{workdir} cannot be written ({first_line(error)}); choose another folder or free space") from error
    return workdir / FOLDER / "0"


# of TrainState: kernels and biases, singular vectors
DISCRIMINATOR_FIELDS = ("discriminator", "spectral")


def training_field(name: str) -> str:
    """The field of TrainState that holds an array of the discriminator."""
    return "spectral" if name.endswith((".u", ".v")) else "discriminator"


def load_discriminator(folder: Path) -> dict[str, jax.Array] | None:
    """The discriminator in step folder `folder`, {"convs.0.kernel": array, "convs.0.u": array,
    ...}; None if there is none.

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
    with reading_some_arrays():  # the optimisers are larger
        loaded = load_arrays(folder, {"training": wanted})["training"]
    return {name.partition(".")[2]: array for name, array in loaded.items()}


def teacher_channels(info: Mapping[str, Any]) -> dict[int, int]:
    """{level: channels} of the teacher that a checkpoint's model was trained with.

    Args:
        info: of `read_info`, which has looked whether they are there.

    Raises:
        ValueError: they are not.
    """
    teacher = info.get("teacher")
    channels = teacher.get("channels") if isinstance(teacher, dict) else None
    if not isinstance(channels, dict):
        raise ValueError("it does not say its teacher's channels")
    if wrong := [f"{n}: {c!r}" for n, c in channels.items() if n not in LEVELS or type(c) is not int or c <= 0]:
        raise ValueError(f"its teacher's channels are {', '.join(wrong)[:80]}")
    return {int(level): count for level, count in channels.items()}


def load_model(path: str | Path, dtype: Any = None) -> LoadedModel:
    """The model of a checkpoint, alone from its folder; the moving average where the run kept one.

    Args:
        dtype: compute type of the model; the run's own where it is not given. Parameters are
            float32.

    Raises:
        InputError: no complete checkpoint at `path`, a damaged one, or one of another version.
    """
    folder = find_checkpoint(path)
    info = read_info(folder)
    config = from_dict(info["config"], origin=str(folder))
    computed_in = jnp.dtype(config.train.compute_dtype if dtype is None else dtype)
    graph, shapes = nnx.split(
        nnx.eval_shape(lambda: SPN(config.model, teacher_channels(info), rng=np.random.default_rng(0), dtype=computed_in))
    )
    shapes = nnx.as_pure(shapes)
    arrays = load_parameters(folder, named_arrays(shapes))
    model = nnx.merge(graph, with_named_arrays(shapes, arrays, what=str(folder)))
    return LoadedModel(config=config, model=model, step=checkpoint_step(folder, info), info=info)


def checkpoint_step(path: Path, info: Mapping[str, Any]) -> int:
    """The training step of a checkpoint, which its folder is called after, or of a model file,
    which says it.
    """
    return int(info["step"]) if is_model_file(path) else int(path.name)


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of what identifies a checkpoint: of its description, which is written last, or of a
    model file.
    """
    return hashlib.sha256((path if is_model_file(path) else path / METADATA).read_bytes()).hexdigest()


def load_parameters(folder: Path, shapes: Mapping[str, Any], optional: str | None = None) -> dict[str, Any]:
    """Named parameters of prior learner and generator; the moving average where there is one.

    Args:
        shapes: what is wanted, by name.
        optional: parameters whose names begin so are left out where the checkpoint has none or one
            of another shape.

    Raises:
        InputError: the checkpoint is of another model; lists every difference.
    """
    stored = stored_metadata(folder).metadata
    part = "ema" if "ema" in stored else "model"
    there = {name: tuple(leaf.shape) for name, leaf in (stored.get(part) or {}).items()}

    def is_free(name: str) -> bool:
        return optional is not None and name.startswith(optional)

    chosen = {name: leaf for name, leaf in shapes.items() if not is_free(name) or there.get(name) == tuple(leaf.shape)}
    check_names(folder, stored, {part: chosen}, ignored=lambda name: is_free(name) and name not in chosen)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # All that is stored, because Orbax reads a part whole.
    wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in stored[part].items()}
    loaded = load_arrays(folder, {part: wanted})[part]
    return {name: loaded[name] for name in chosen}

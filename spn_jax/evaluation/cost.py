"""Measures a model's cost (the paper's Table 6): parameters, operations, run and compile times."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.extend import core
from PIL import Image

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import LoadedModel
from spn_jax.config import Config
from spn_jax.data.images import decode_photo, prepare_photo
from spn_jax.data.masks import draw_strokes, read_hole
from spn_jax.errors import InputError
from spn_jax.evaluation import paper
from spn_jax.filling.completion import check_samples, composite, draw_noise, quantise
from spn_jax.filling.photos import Photo, encode_photo
from spn_jax.models.convolution import AN_ACCELERATOR, compiled_for
from spn_jax.models.spn import SPN
from spn_jax.runtime.compiling import TimedProgram, compile_timed
from spn_jax.runtime.memory import is_out_of_memory

Precision = Literal["highest", "default"]

HEADS = "prior_learner.distillation_heads."  # prefix of parameters that serve training only
WARM_UP = 2  # number of calls before the timed ones
STROKES = 5_000  # number of the first drawn mask: holes of 20 to 30 %
CPU_INFO = Path("/proc/cpuinfo")  # exists on Linux


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Wall time of one image: median and quartiles over calls, each divided by its number of
    images.
    """

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """The cost of a model on one device.

    parameters, without_heads: all of prior learner and generator, and those needed to complete an
    image.
    operations: operations of convolutions and matrix products for one image and all its samples, as
        the program is written. A multiply-add counts as 2, and taps on padding count. The number is
        the same on every device and covers the network alone.
    compiled_operations: XLA's own count for the compiled network. It includes all other arithmetic
        (multiply-add = 2), leaves out taps on padding, and on GPUs may lack calls of libraries
        (cuDNN). None if the backend has no count.
    trace_seconds: time to trace the network, which Python does, and to lower it. Every start of a
        program takes it.
    compile_seconds: time to compile it, without a cache of compiled programs.
    network: time from arrays on the device to the raw prediction on the device.
    complete: time from the bytes of a JPEG photo and a PNG mask, both of the network's size, to
        those of a PNG composite: decoding, transfers, network, 8-bit composite and encoding, in
        sequence in one thread.
    """

    kind: str
    step: int
    parameters: int
    without_heads: int
    image_size: int
    batch_size: int
    samples: int
    operations: int
    compiled_operations: float | None
    trace_seconds: float
    compile_seconds: float
    network: Seconds
    complete: Seconds
    repeats: int
    device: str
    dtype: str
    precision: Precision
    jax_version: str


def measure(loaded: LoadedModel, *, batch_size: int = 1, samples: int = 1, precision: Precision = "highest", repeats: int = 20) -> Profile:
    """Measures a checkpoint's model on JAX's first device.

    Args:
        batch_size: images in a call.
        samples: completions of each image.
        precision: precision of float32 matrix products. "highest" is that of evaluation and
            prediction; "default" is TF32 on NVIDIA and bfloat16 passes on TPU.
        repeats: number of timed calls.

    Raises:
        InputError: a number is below 1, several samples are asked of a deterministic model, or the
            batch is too large for the memory.
    """
    for name, number in ("--batch-size", batch_size), ("--repeats", repeats):
        if number < 1:
            raise InputError(f"{name} {number} must be at least 1")
    check_samples(samples, loaded.config)
    try:
        return _measure(loaded, batch_size, samples, precision, repeats)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"a batch of {batch_size} did not fit into the memory; make --batch-size smaller") from error


def _measure(loaded: LoadedModel, batch_size: int, samples: int, precision: Precision, repeats: int) -> Profile:
    config, device = loaded.config, jax.devices()[0]
    model = jax.device_put(loaded.model, device)
    files = example_files(config, batch_size)
    photos, masks = read_files(files, config)
    noise = draw_noise(model, 0, jnp.arange(batch_size), jnp.arange(samples), *photos.shape[1:3])
    inputs = jax.device_put((model, photos.astype(np.float32) / 255, masks.astype(np.float32), noise), device)

    predict = functools.partial(_predict, precision=precision)
    _, program, trace_seconds, compile_seconds = compiled(predict, *inputs)
    completer = jax.jit(functools.partial(_complete, samples=samples, how=config.eval.quantise, precision=precision))

    def complete_files() -> None:
        completed = np.asarray(completer(model, *jax.device_put(read_files(files, config), device)))
        for of_image in completed:
            for sample in of_image:
                encode_photo(Photo(sample), ".png")

    arrays = {name: array.size for name, array in named_arrays(model).items()}
    compiled_operations = operations_of_compiled(program)
    network, complete = seconds_of([lambda: jax.block_until_ready(program(*inputs)), complete_files], repeats, batch_size)
    return Profile(
        kind=config.model.kind,
        step=loaded.step,
        parameters=sum(arrays.values()),
        without_heads=sum(size for name, size in arrays.items() if not name.startswith(HEADS)),
        image_size=config.data.image_size,
        batch_size=batch_size,
        samples=samples,
        operations=count_operations(predict, *inputs) // batch_size,
        compiled_operations=None if compiled_operations is None else compiled_operations / batch_size,
        trace_seconds=trace_seconds,
        compile_seconds=compile_seconds,
        network=network,
        complete=complete,
        repeats=repeats,
        device=device_name(device),
        dtype=config.train.compute_dtype,
        precision=precision,
        jax_version=jax.__version__,
    )


def _predict(model: SPN, image: Array, mask: Array, noise: Array | None, *, precision: Precision) -> Array:
    """Returns the raw prediction, (b, s, h, w, 3)."""
    with jax.default_matmul_precision(precision):
        return model(image, mask, noise).image


def _complete(model: SPN, image: Array, mask: Array, *, samples: int, how: Literal["truncate", "round"], precision: Precision) -> Array:
    """Returns 8-bit composites uint8 (b, s, h, w, 3) of photos uint8 (b, h, w, 3) and masks uint8
    (b, h, w, 1).
    """
    noise = draw_noise(model, 0, jnp.arange(len(image)), jnp.arange(samples), *image.shape[1:3])
    prediction = _predict(model, image.astype(jnp.float32) / 255, mask.astype(jnp.float32), noise, precision=precision)
    return composite(quantise(prediction, how).astype(jnp.uint8), image[:, None], mask[:, None])


def example_files(config: Config, count: int) -> list[tuple[bytes, bytes]]:
    """Makes JPEG photos and PNG masks of the network's size: smooth random colours and drawn
    strokes, always the same.
    """
    size, files = config.data.image_size, []
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        photo, mask = io.BytesIO(), io.BytesIO()
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(photo, "JPEG", quality=95)
        hole = draw_strokes(STROKES + i % 1000, size, 0)[..., 0]
        Image.fromarray(255 * (1 - hole if config.data.invert_masks else hole)).save(mask, "PNG")
        files.append((photo.getvalue(), mask.getvalue()))
    return files


def read_files(files: Sequence[tuple[bytes, bytes]], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Reads photos uint8 (b, P, P, 3) and masks uint8 (b, P, P, 1) as evaluation does."""
    data = config.data
    photos = [prepare_photo(decode_photo(io.BytesIO(p), "the photo"), data.image_size, data.crop, data.resize_filter) for p, _ in files]
    holes = [read_hole(io.BytesIO(mask), data.invert_masks, "the mask") for _, mask in files]
    return np.stack(photos), np.stack(holes).astype(np.uint8)[..., None]


def compiled(function: Callable[..., Any], *arguments: Any) -> TimedProgram:
    """Compiles the function for these arguments, without a cache of compiled programs."""
    with without_compilation_cache():
        return compile_timed(jax.jit(function), *arguments)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Keeps programs that are compiled inside the context out of JAX's persistent cache, and reads
    none from it.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # because JAX reads the setting once a process
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def seconds_of(calls: Sequence[Callable[[], Any]], repeats: int, images: int) -> list[Seconds]:
    """Times calls, each of which works on `images` images and returns when it is done. Returns
    seconds an image.

    The calls take turns, so that other load of the machine affects all alike.
    """
    times = [[_duration(call) / images for call in calls] for _ in range(WARM_UP + repeats)]
    return [Seconds(*np.percentile(of_call, [50, 25, 75]).tolist()) for of_call in zip(*times[WARM_UP:], strict=True)]


def _duration(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def operations_of_compiled(program: Any) -> float | None:
    """Returns XLA's count of floating-point operations of a compiled program, None if its backend
    has none.
    """
    try:
        analysis = program.cost_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    flops = analysis.get("flops") if isinstance(analysis, dict) else None
    return float(flops) if flops is not None and flops > 0 else None


def count_operations(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts floating-point operations of the convolutions and matrix products that the function's
    result depends on, multiply-add = 2.

    Args:
        arguments: the function's, as arrays or their shapes.

    Raises:
        ValueError: a loop has an unknown length.
    """
    with compiled_for(AN_ACCELERATOR):
        return _operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def _operations(jaxpr: core.Jaxpr) -> int:
    needed, total = _variables(jaxpr.outvars), 0
    for equation in reversed(jaxpr.eqns):
        if needed.isdisjoint(equation.outvars):
            continue  # an unused result is not computed, for example the distillation heads'
        needed |= _variables(equation.invars)
        total += _operations_of(equation)
    return total


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, core.Literal)}


def _operations_of(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return 2 * equation.outvars[0].aval.size * (kernel.size // kernel.shape[parameters["dimension_numbers"].rhs_spec[0]])
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    inner = [_operations(jaxpr) for jaxpr in _jaxprs(parameters)]
    if name == "while" and any(inner):
        raise ValueError("operations of a loop whose length is not known cannot be counted")
    if name == "cond":
        # variants of one computation for several platforms, some with work that is eliminated later
        return min(inner)
    return parameters.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _jaxprs(parameters: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in parameters.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, core.ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, core.Jaxpr):
                yield entry


def device_name(device: jax.Device) -> str:
    """Returns the manufacturer's name of the device; for a CPU the model and the number of
    available cores.
    """
    if device.platform != "cpu":
        return f"{device.device_kind} ({device.platform})"
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'CPU'}, {os.cpu_count()} cores (cpu)"


def report(profile: Profile) -> str:
    """Returns the profile as a Markdown table, above the paper's Table 6, which was measured
    elsewhere.
    """
    several = f", {profile.samples} samples of each" if profile.samples > 1 else ""
    by_xla = profile.compiled_operations
    network, complete = (
        f"{s.median:.4f} s (quartiles {s.lower_quartile:.4f} to {s.upper_quartile:.4f})" for s in (profile.network, profile.complete)
    )
    rows = [
        ("model", f"{profile.kind}, step {profile.step}"),
        ("parameters", f"{profile.parameters:,}"),
        ("parameters without distillation heads", f"{profile.without_heads:,}"),
        ("FLOPs an image, convolutions and matrix products", f"{profile.operations / 1e9:,.2f} G"),
        ("FLOPs an image, compiled program (XLA)", "not known to this backend" if by_xla is None else f"{by_xla / 1e9:,.2f} G"),
        ("time of tracing", f"{profile.trace_seconds:.1f} s"),
        ("time of compilation", f"{profile.compile_seconds:.1f} s"),
        ("time an image, network alone", network),
        ("time an image, with pre- and post-processing", complete),
        ("images", f"{profile.image_size} x {profile.image_size} pixels, {profile.batch_size} a call{several}; {profile.repeats} calls"),
        ("device", profile.device),
        ("precision", f"{profile.dtype}, matrix products at {profile.precision} precision"),
        ("JAX", profile.jax_version),
    ]
    notes = (
        "A multiply-add is 2 FLOPs. The first count is of the program as written, on every device the same, taps on padding counted; "
        "XLA's has all other arithmetic too, leaves those taps out, on CPUs has the fewer products of Winograd's convolutions, "
        "and on GPUs may lack what is handed to libraries.\n\n"
        "Pre- and post-processing: from the bytes of a JPEG photo and a PNG mask to those of a PNG composite, in one thread. "
        "Tracing comes with every start, compilation is without a cache; both are in no other time.\n"
    )
    return f"{_table(('', 'value'), rows)}\n{notes}\n{_paper(profile)}"


def _paper(profile: Profile) -> str:
    kind = "probabilistic" if profile.kind == "spn-probabilistic" else "deterministic"
    rows = [(name, cost.parameters, f"{cost.seconds} s") for name, cost in paper.COSTS[kind].items()]
    source = "Table 6" if kind == "deterministic" else "Section 4.6"
    return (
        "### paper, other device and program: times are not comparable\n\n"
        + _table(("method", "parameters", "time an image"), rows)
        + f"\n{source} of Zhang et al., Pattern Recognition 2023, as printed; one RTX 3090, precision and what was timed are not said.\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in (header, *rows)]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]) + "\n"


def as_json(profile: Profile) -> str:
    """Returns every figure of a profile, for programs."""
    return json.dumps(dataclasses.asdict(profile), indent=1, allow_nan=False) + "\n"

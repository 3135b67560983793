"""Convolutions: the CPU's forms against the plain ones, and which of them a program for a platform
holds.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spn_jax.models import cpu_convolution
from spn_jax.models.convolution import EVERY_PLATFORM, compiled_for, convolve, convolve_reflected
from spn_jax.models.cpu_convolution import plain_convolution
from tests.devices import on_the_cpu

NO_ZEROS = ((0, 0), (0, 0))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Changes constants of the CPU's forms, and makes JAX forget what it traced with others."""

    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(cpu_convolution, name, value)
        jax.clear_caches()

    yield change
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.parametrize(
    ("size", "padding", "dilation", "height", "width"),
    [
        (3, 1, 1, 8, 6),
        (3, 2, 2, 8, 6),
        (3, 2, 2, 3, 4),
        (3, 1, 1, 2, 2),
        (7, 3, 1, 8, 6),
        (3, 1, 1, 1, 4),
        (3, 2, 2, 2, 5),
        (3, 4, 4, 3, 9),
    ],
)
def test_reflected_convolution_has_right_values_and_gradients_in_either_form(
    size: int, padding: int, dilation: int, height: int, width: int
) -> None:
    x, kernel = random(2, height, width, 3), random(size, size, 3, 4, seed=1)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
        return jnp.sum(jnp.sin(plain_convolution(padded, kernel, 1, NO_ZEROS, dilation)))

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(convolve_reflected(x, kernel, padding=padding, dilation=dilation)))

    wanted = jax.jit(jax.value_and_grad(plain, (0, 1)))(x, kernel)
    for platform in ("cpu", "gpu"):
        with compiled_for(platform):  # run here, whatever it is for
            got = jax.jit(jax.value_and_grad(ours, (0, 1)))(x, kernel)
        for our, their in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4)
    with compiled_for("gpu"):
        text = jax.jit(ours).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.convolution") == 1
    assert "pad = [[0, 0], [0, 0]]" in text


@pytest.mark.parametrize(("size", "padding", "enlarged", "features"), [(3, 1, 0, 4), (3, 2, 0, 4), (7, 3, 3, 20)])
def test_reflected_convolution_is_padded_with_zeros_on_the_cpu(size: int, padding: int, enlarged: int, features: int) -> None:
    """A 3x3 one is of the map itself, and gets what its borders lack afterwards; a larger one is of
    the reflected map.
    """
    x, kernel = jnp.ones((1, 8, 6, 3)), jnp.ones((size, size, 3, features))
    dilation = padding if size == 3 else 1
    function = jax.jit(lambda x, kernel: convolve_reflected(x, kernel, padding=padding, dilation=dilation))
    text = function.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    (line,) = (line for line in text.splitlines() if "stablehlo.convolution" in line)
    assert f"pad = [[{padding}, {padding}], [{padding}, {padding}]]" in line
    assert f"(tensor<1x{8 + 2 * enlarged}x{6 + 2 * enlarged}x3xf32>" in line


@pytest.mark.parametrize(("photos", "widths"), [(1, (3, 5)), (1, (5, 3)), (2, (3, 5))])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (4, 2, 1, 1), (2, 2, 0, 1), (6, 2, 2, 1), (3, 2, 1, 1), (3, 1, 0, 2), (7, 1, 3, 1), (4, 1, 1, 1), (1, 2, 0, 1)],
)
def test_forms_for_the_cpu_are_the_convolution(
    size: int, stride: int, padding: int, dilation: int, widths: tuple[int, int], photos: int, constants: Callable[..., None]
) -> None:
    """Value and both gradients, with spare rows, in phases, in strips of one row, of some and of
    all, whatever the sizes.
    """
    x, kernel = random(photos, 18, 14, widths[0]), random(size, size, *widths) / size
    constants(MANY_PRODUCTS=0)

    def results(convolution: Callable[..., jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(convolution(x, kernel, stride=stride, padding=padding, dilation=dilation)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)

    def plain(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int) -> jax.Array:
        return plain_convolution(x, kernel, stride, ((padding, padding), (padding, padding)), dilation)

    expected = results(plain)
    for pixels, rows in ((1, 1), (30, 1), (64, 8)):
        constants(STRIP_PIXELS=pixels, STRIP_ROWS=rows)
        for ours, theirs in zip(jax.tree.leaves(results(convolve)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widths", [(8, 16), (16, 8)])
def test_kernel_gradients_in_bfloat16_are_summed_in_float32(widths: tuple[int, int], constants: Callable[..., None]) -> None:
    """As exact as those of one convolution, however many strips there are."""
    constants(STRIP_PIXELS=1, STRIP_ROWS=1)
    whole = ((1, 1), (1, 1))
    x, gradient = jnp.asarray(random(2, 64, 64, widths[0]), jnp.bfloat16), jnp.asarray(random(2, 64, 64, widths[1], seed=1), jnp.bfloat16)

    def gradients(convolution: Callable[[jax.Array, jax.Array], jax.Array], dtype: type) -> np.ndarray:
        kernel = jnp.zeros((3, 3, *widths), dtype)
        (of_kernel,) = jax.vjp(lambda kernel: convolution(x.astype(dtype), kernel), kernel)[1](gradient.astype(dtype))
        assert of_kernel.dtype == dtype
        return np.asarray(of_kernel, np.float32)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain_convolution(x, kernel, 1, whole, 1)

    exact = gradients(plain, jnp.float32)
    errors = [np.sqrt(np.mean((gradients(form, jnp.bfloat16) - exact) ** 2)) for form in (lambda x, k: convolve(x, k, padding=1), plain)]
    assert errors[0] < 1.2 * errors[1]


LOWERED_FOR = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # JAX's names of lowering platforms


def convolutions(platform: str, stride: int = 1, widths: tuple[int, int] = (16, 8), photos: int = 1) -> list[str]:
    """Results of the convolutions in the program of one convolution and its gradients, lowered for
    a platform.
    """
    gradient = jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sin(convolve(x, kernel, stride=stride, padding=1)).sum(), (0, 1)))
    x, kernel = jnp.ones((photos, 128, 128, widths[0])), jnp.ones((2 + stride, 2 + stride, *widths))
    with compiled_for(platform):
        text = gradient.trace(x, kernel).lower(lowering_platforms=(LOWERED_FOR[platform],)).as_text()
    assert "stablehlo.case" not in text
    return [line.rsplit("->", 1)[1].strip() for line in text.splitlines() if "stablehlo.convolution" in line]


@pytest.mark.parametrize("stride", [1, 2])
def test_only_the_cpu_has_forms_of_its_own(stride: int, constants: Callable[..., None]) -> None:
    constants(MANY_PRODUCTS=0)
    side, size = 128 // stride, 2 + stride
    plain = [f"tensor<1x{side}x{side}x8xf32>", "tensor<1x128x128x16xf32>", f"tensor<{size}x{size}x16x8xf32>"]
    for platform in ("gpu", "tpu"):
        # forward, for the input, for the kernel
        assert sorted(convolutions(platform, stride)) == sorted(plain)
    strips = side // max(cpu_convolution.STRIP_ROWS, cpu_convolution.STRIP_PIXELS // side)
    on_cpu = convolutions("cpu", stride)
    if stride == 1:  # spare rows; strips of the gradient with input and output exchanged
        assert on_cpu.count("tensor<1x130x128x8xf32>") == on_cpu.count("tensor<1x130x128x16xf32>") == 1
        assert on_cpu.count("tensor<8x3x3x16xf32>") == strips
    else:  # the input's gradient in four phases
        assert on_cpu.count("tensor<1x64x64x8xf32>") == on_cpu.count("tensor<1x65x65x64xf32>") == 1
        assert on_cpu.count("tensor<16x4x4x8xf32>") == strips


@pytest.mark.parametrize(("widths", "exchanged"), [((16, 8), True), ((8, 16), False), ((48, 40), False)])
def test_kernel_gradients_exchange_their_operands_only_with_few_outputs(widths: tuple[int, int], exchanged: bool) -> None:
    """A sum in the exchanged layout is read across memory by the optimiser."""
    large, small = sorted(widths, reverse=True)
    ahead, behind = (small, large) if exchanged else widths
    assert f"tensor<{ahead}x3x3x{behind}xf32>" in convolutions("cpu", widths=widths)


@pytest.mark.parametrize(("photos", "strips"), [(1, 16), (8, 32), (32, 128)])
def test_strips_of_kernel_gradients_are_smaller_with_many_photos(photos: int, strips: int, constants: Callable[..., None]) -> None:
    """A strip's gradients have 1 MB at most, unless it has its fewest rows."""
    constants(STRIP_ROWS=1)
    assert convolutions("cpu", widths=(8, 64), photos=photos).count("tensor<8x3x3x64xf32>") == strips


def test_several_photos_have_no_spare_rows() -> None:
    assert "tensor<1x130x128x8xf32>" in convolutions("cpu", widths=(16, 8))
    assert "tensor<2x130x128x8xf32>" not in convolutions("cpu", widths=(16, 8), photos=2)


@pytest.mark.parametrize(("widths", "kernel"), [((3, 16), "7x1x21x16"), ((16, 3), "7x1x16x21"), ((3, 17), "7x7x3x17")])
@pytest.mark.parametrize("reflected", [False, True])
def test_convolutions_of_colours_have_a_kernel_of_one_column(widths: tuple[int, int], kernel: str, reflected: bool) -> None:
    function = convolve_reflected if reflected else convolve
    program = jax.jit(functools.partial(function, padding=3))
    with compiled_for("cpu"):
        text = program.trace(jnp.ones((1, 16, 16, widths[0])), jnp.ones((7, 7, *widths))).lower(lowering_platforms=("cpu",)).as_text()
    assert f", tensor<{kernel}xf32>) -> " in text


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize(
    ("photos", "height", "width", "padding", "dilation", "suits"),
    [
        (2, 8, 6, 1, 1, True),
        (1, 2, 2, 1, 1, True),
        (2, 8, 12, 2, 2, True),
        (1, 4, 4, 2, 2, True),
        (1, 6, 12, 3, 3, True),
        (1, 7, 6, 1, 1, False),
        (1, 8, 5, 1, 1, False),
        (1, 8, 6, 2, 2, False),
    ],
)
def test_winograds_form_has_right_values_and_gradients_where_whole_tiles_fit(
    photos: int, height: int, width: int, padding: int, dilation: int, suits: bool, reflect: bool, constants: Callable[..., None]
) -> None:
    constants(MANY_FEATURES=1, WINOGRAD_PIXELS=(1, 2**14))
    x, kernel = random(photos, height, width, 3), random(3, 3, 3, 4, seed=1)
    zeros = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        padded = jnp.pad(x, zeros, mode="reflect" if reflect else "constant")
        return jnp.sum(jnp.sin(plain_convolution(padded, kernel, 1, NO_ZEROS, dilation)))

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin((convolve_reflected if reflect else convolve)(x, kernel, padding=padding, dilation=dilation)))

    wanted = jax.jit(jax.value_and_grad(plain, (0, 1)))(x, kernel)
    program = jax.jit(jax.value_and_grad(ours, (0, 1)))
    for our, their in zip(jax.tree.leaves(program(x, kernel)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-4)
    reflected_once = not reflect or padding < min(height, width)
    assert ("stablehlo.convolution" not in program.lower(x, kernel).as_text()) == (suits and reflected_once)


@pytest.mark.parametrize(("padding", "side"), [(0, 10), (2, 10), (3, 6)])
def test_winograds_form_takes_other_paddings(padding: int, side: int, constants: Callable[..., None]) -> None:
    """The output's size decides, and the gradient is cut to the input's."""
    constants(MANY_FEATURES=1, WINOGRAD_PIXELS=(1, 2**14))
    x, kernel = random(1, side, side, 3), random(3, 3, 3, 4, seed=1)

    def results(form: Callable[..., jax.Array]) -> Any:
        return jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sin(form(x, kernel)).sum(), (0, 1)))

    wanted = results(lambda x, kernel: plain_convolution(x, kernel, 1, ((padding, padding), (padding, padding)), 1))(x, kernel)
    program = results(functools.partial(convolve, padding=padding))
    for our, their in zip(jax.tree.leaves(program(x, kernel)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-4)
    assert "stablehlo.convolution" not in program.lower(x, kernel).as_text()


@pytest.mark.parametrize(
    ("photos", "side", "widths", "dtype", "platform", "chosen"),
    [
        (1, 32, (128, 128), jnp.float32, "cpu", True),
        (4, 64, (256, 128), jnp.float32, "cpu", True),
        (1, 128, (128, 128), jnp.float32, "cpu", True),
        (1, 30, (128, 128), jnp.float32, "cpu", False),
        (1, 132, (128, 128), jnp.float32, "cpu", False),
        (1, 32, (127, 128), jnp.float32, "cpu", False),
        (1, 32, (128, 127), jnp.float32, "cpu", False),
        (1, 32, (128, 128), jnp.bfloat16, "cpu", False),
        (1, 32, (128, 128), jnp.float32, "gpu", False),
    ],
)
def test_winograds_form_is_for_large_convolutions_in_float32_on_the_cpu(
    photos: int, side: int, widths: tuple[int, int], dtype: type, platform: str, chosen: bool
) -> None:
    x, kernel = jax.ShapeDtypeStruct((photos, side, side, widths[0]), dtype), jax.ShapeDtypeStruct((3, 3, *widths), dtype)
    for function in (convolve, convolve_reflected):
        gradient = jax.grad(lambda x, kernel, function=function: function(x, kernel, padding=1).astype(jnp.float32).sum(), (0, 1))
        with compiled_for(platform):
            text = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=(LOWERED_FOR[platform],)).as_text()
        assert ("stablehlo.convolution" not in text) == chosen


def test_winograds_form_takes_batches_of_any_size_in_one_program() -> None:
    """Exported programs do not know how many photos they get."""
    kernel = random(3, 3, 128, 128) / 32
    x = random(3, 32, 32, 128, seed=1)
    function = jax.jit(functools.partial(convolve, padding=1))
    (photos,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(function)(jax.ShapeDtypeStruct((photos, 32, 32, 128), jnp.float32), kernel)
    assert "stablehlo.convolution" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(x, kernel), function(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("reflected", "dilation"), [(False, 1), (True, 2)])
def test_winograds_form_rounds_little(reflected: bool, dilation: int) -> None:
    """The errors relative to the largest value are 4e-7 to 6e-7; the plain form's 4e-7 to 9e-7."""
    shape = (1, 32, 32, 128)
    x, kernel, gradient = random(*shape), random(3, 3, 128, 128, seed=1), random(*shape, seed=2)

    def results(form: Callable[..., jax.Array], dtype: type) -> list[np.ndarray]:
        out, pull_back = jax.vjp(form, x.astype(dtype), kernel.astype(dtype))
        return [np.asarray(result) for result in (out, *pull_back(gradient.astype(dtype)))]

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        border = ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0))
        padded = jnp.pad(x, border, mode="reflect" if reflected else "constant")
        return plain_convolution(padded, kernel, 1, NO_ZEROS, dilation)

    with jax.enable_x64(True):
        exact = results(plain, np.float64)
    function = functools.partial(convolve_reflected if reflected else convolve, padding=dilation, dilation=dilation)
    assert "stablehlo.convolution" not in jax.jit(function).lower(x, kernel).as_text()
    for ours, right in zip(results(function, np.float32), exact, strict=True):
        assert np.abs(ours - right).max() < 2e-6 * np.abs(right).max()


def test_a_program_is_traced_anew_for_another_platform_and_a_program_for_all_chooses_where_it_runs() -> None:
    x, kernel = jnp.asarray(random(1, 8, 8, 3)), jnp.asarray(random(7, 7, 3, 20))
    function = jax.jit(lambda x, kernel: convolve_reflected(x, kernel, padding=3))
    texts = {}
    for platform in ("cpu", "gpu", EVERY_PLATFORM):
        with compiled_for(platform):
            texts[platform] = function.lower(x, kernel).as_text()
    assert texts["cpu"] != texts["gpu"]
    assert texts["cpu"] == function.lower(x, kernel).as_text()  # JAX's default device is a CPU here
    with compiled_for("gpu"):
        assert "custom_vjp" not in str(jax.make_jaxpr(lambda x, kernel: convolve_reflected(x, kernel, padding=3))(x, kernel))
    with compiled_for(EVERY_PLATFORM):
        of_all = function.trace(x, kernel)
    assert "tensor<1x14x14x3xf32>, tensor<7x7x3x20xf32>) -> tensor<1x8x8x20xf32>" in of_all.lower(lowering_platforms=("cuda",)).as_text()
    assert "-> tensor<1x14x14x20xf32>" in texts[EVERY_PLATFORM]  # padded and cut on the CPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation", "reflect"),
    [(7, 1, 3, 1, True), (3, 1, 2, 2, True), (3, 1, 1, 1, True), (3, 1, 1, 1, False), (4, 2, 1, 1, False), (1, 1, 0, 1, False)],
)
def test_a_gpu_computes_what_the_cpu_does(size: int, stride: int, padding: int, dilation: int, reflect: bool) -> None:
    """Value and gradients of every kind of convolution in the models, at highest precision."""
    x, kernel = random(2, 32, 24, 16), random(size, size, 16, 24, seed=1) / size / 4

    def results(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            if reflect:
                return jnp.sin(convolve_reflected(x, kernel, padding=padding, dilation=dilation)).mean()
            return jnp.sin(convolve(x, kernel, stride=stride, padding=padding, dilation=dilation)).mean()

        return jax.value_and_grad(loss, (0, 1))(x, kernel)

    with jax.default_matmul_precision("highest"):
        here = jax.jit(results)(x, kernel)
    for ours, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(on_the_cpu(results, x, kernel)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())

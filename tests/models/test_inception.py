"""Inception's features are pytorch-fid's, on the way from a file in the released layout; so is the
FID of photos.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

# isort: skip after our import of torch, which makes that of torchvision work
import pytorch_fid.inception
from PIL import Image
from skimage import data

from spn_jax.checkpoints.weights import inception_shapes, load_inception
from spn_jax.metrics.sets import frechet_distance
from spn_jax.models import inception
from spn_jax.models.abstract import abstract_network
from spn_jax.models.inception import FEATURES, SIZE, InceptionV3
from teacher_export.frameworks import torch
from teacher_export.weights import main
from tests.golden_model import nchw, nhwc, relative_error

from pytorch_fid.fid_score import calculate_frechet_distance  # isort: skip

SIZES = ((256, 256), (64, 200), (400, 300), (SIZE, SIZE), (31, 47))


def released_layout() -> dict[str, torch.Tensor]:
    """Random values under the names of the released file, under which activations keep their size
    with depth.
    """
    rng = np.random.default_rng(0)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 4:
            return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        if name.endswith(("bn.weight", "running_var")):
            return rng.uniform(0.5, 1.5, shape)
        return 0.2 * rng.standard_normal(shape)

    shapes = {**inception_shapes(), "fc.weight": (1008, FEATURES), "fc.bias": (1008,)}
    tensors = {name: torch.from_numpy(value(name, shape).astype(np.float32)) for name, shape in shapes.items()}
    counters = {name.replace("running_var", "num_batches_tracked"): torch.tensor(9) for name in shapes if name.endswith("running_var")}
    return tensors | counters


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """pytorch-fid's network with these values; it takes them only if every name and shape is the
    release's.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda url, progress: released_layout())
        return pytorch_fid.inception.InceptionV3().eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> InceptionV3:
    folder = tmp_path_factory.mktemp("inception")
    torch.save(released_layout(), folder / "inception.pth")
    main(["inception", "--weights", str(folder / "inception.pth"), str(folder / "inception.npz")])
    return load_inception(folder / "inception.npz")[0]


@jax.jit
def features_of_resized(model: InceptionV3, images: np.ndarray) -> jax.Array:
    """Compiled once, for the size that all images are resized to; resizing that size changes
    nothing.
    """
    return model(images)


def ours(model: InceptionV3, images: np.ndarray) -> np.ndarray:
    return np.asarray(features_of_resized(model, inception.resize(images)))


def theirs(reference: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.from_numpy(nchw(images)))[0][:, :, 0, 0].numpy()


def photos(height: int, width: int, top: int = 40, left: int = 100) -> np.ndarray:
    """Cut out of two photos: (2, height, width, 3) in [0, 1]."""
    cut = [photo[top:, left:][:height, :width] for photo in (data.astronaut(), data.coffee())]
    enlarged = [np.pad(photo, ((0, height - photo.shape[0]), (0, width - photo.shape[1]), (0, 0)), mode="reflect") for photo in cut]
    return (np.stack(enlarged) / 255).astype(np.float32)


@pytest.fixture(scope="module")
def compared(model: InceptionV3, reference: torch.nn.Module) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """{size: (our features, pytorch-fid's)} of the same two photos, (2, FEATURES) each."""
    return {size: (ours(model, photos(*size)), theirs(reference, photos(*size))) for size in SIZES}


def test_features_of_photos_are_pytorch_fids(compared: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]) -> None:
    for size, (features, expected) in compared.items():
        assert features.shape == expected.shape == (2, FEATURES)
        assert np.abs(expected[0] - expected[1]).max() > 0.1, "two photos are told apart"
        assert relative_error(features, expected) < 1e-5, size


# pytorch-fid's call of SciPy
@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Matrix is:scipy.linalg.LinAlgWarning")
def test_fid_of_photos_is_pytorch_fids(compared: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]) -> None:
    some = slice(0, 64)  # of the features: the reference's matrix root of all would take minutes
    (a, b), (theirs_a, theirs_b) = np.stack(list(compared.values())).transpose(1, 2, 0, 3)[..., some].astype(np.float64)
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (theirs_a, theirs_b)]
    assert frechet_distance(a, b) == pytest.approx(calculate_frechet_distance(*moments[0], *moments[1]), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_pytorchs_without_antialiasing(size: tuple[int, int]) -> None:
    images = photos(*size)
    expected = torch.nn.functional.interpolate(torch.from_numpy(nchw(images)), size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(inception.resize(images), nhwc(expected.numpy()), atol=1e-6)


CLEAN_SIZES = (*SIZES, (700, 512))


@pytest.mark.parametrize("size", CLEAN_SIZES)
def test_clean_resizing_is_pillows_in_floating_point(size: tuple[int, int]) -> None:
    """As clean-fid 0.1.35 does it: `make_resizer("PIL", False, "bicubic", (299, 299))`."""
    images = np.rint(255 * photos(*size)).astype(np.uint8)

    def channel(values: np.ndarray) -> np.ndarray:
        resized = Image.fromarray(values.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return np.asarray(resized).clip(0, 255)

    expected = np.stack([np.stack([channel(image[..., c]) for c in range(3)], axis=-1) for image in images])
    np.testing.assert_allclose(inception.clean_resize(images.astype(np.float32)), expected, atol=2e-4)


def test_clean_features_are_of_the_other_resizing_and_range(model: InceptionV3, reference: torch.nn.Module) -> None:
    """The network behind both is one; clean-fid brings 0..255 to (x - 128) / 128 before it."""
    images = photos(64, 200)
    resized = np.asarray(inception.clean_resize(255 * images))
    expected = theirs(reference, ((resized - 128) / 128 + 1) / 2)
    assert relative_error(np.asarray(jax.jit(lambda model, x: model.clean(x))(model, images)), expected) < 1e-5
    assert relative_error(ours(model, images), expected) > 1e-3


@pytest.mark.parametrize("size", [(7, 9), (35, 35)])
def test_pooling_leaves_the_padding_out(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32) - 3
    tensor, pool = torch.from_numpy(nchw(x)), torch.nn.functional
    averaged = pool.avg_pool2d(tensor, 3, stride=1, padding=1, count_include_pad=False)
    np.testing.assert_allclose(inception.average_pool(x), nhwc(averaged.numpy()), atol=1e-5)
    np.testing.assert_array_equal(inception.padded_max_pool(x), nhwc(pool.max_pool2d(tensor, 3, stride=1, padding=1).numpy()))
    np.testing.assert_array_equal(inception.max_pool(x, stride=2), nhwc(pool.max_pool2d(tensor, 3, stride=2).numpy()))


def test_what_the_file_has_more_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(released_layout(), tmp_path / "inception.pth")
    main(["inception", "--weights", str(tmp_path / "inception.pth"), str(tmp_path / "inception.npz")])
    output = capsys.readouterr().out
    assert "470 tensors of file inception.pth" in output
    assert "left out: fc (2 tensors), num_batches_tracked (94 tensors)" in output


def test_images_of_any_size_and_features_of_one() -> None:
    model = abstract_network(lambda rng: InceptionV3(rng=rng))
    for size in ((8, 8), (300, 500)):
        assert jax.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct((3, *size, 3), np.float32)).shape == (3, FEATURES)

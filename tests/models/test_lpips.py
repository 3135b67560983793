"""LPIPS is the lpips package's, with both trunks, on the way from the two released files."""

from pathlib import Path

import jax
import numpy as np
import pytest
from skimage import data

from spn_jax.checkpoints.weights import load_lpips, lpips_shapes
from spn_jax.errors import InputError
from spn_jax.models.lpips import LPIPS, TRUNKS, Net
from teacher_export.frameworks import torch
from teacher_export.weights import main
from tests.golden_model import nchw

import lpips  # isort: skip  after our import of torch, which makes that of torchvision work

# LPIPS's own weights are part of the package
SHIPPED = Path(lpips.__file__).parent / "weights" / "v0.1"
distance = jax.jit(lambda model, a, b: model(a, b))


def torch_files(folder: Path, net: Net) -> tuple[str, str]:
    """A classifier's file and LPIPS's own, in the released layouts, of random values."""
    rng = np.random.default_rng(0)

    def value(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) if len(shape) == 4 else 0.1 * rng.standard_normal(shape)

    arrays = {name: value(shape) if name.startswith("features") else rng.random(shape) for name, shape in lpips_shapes(net).items()}
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    trunk = {name: tensor for name, tensor in tensors.items() if name.startswith("features")}
    torch.save(trunk | {"classifier.6.weight": torch.zeros(2), "classifier.6.bias": torch.zeros(2)}, folder / "trunk.pth")
    torch.save({name: tensor for name, tensor in tensors.items() if name not in trunk}, folder / "lin.pth")
    return str(folder / "trunk.pth"), str(folder / "lin.pth")


def converted(folder: Path, net: Net, trunk: str, lin: str) -> str:
    main([f"lpips-{net}", "--weights", trunk, "--lpips", lin, str(folder / "lpips.npz")])
    return str(folder / "lpips.npz")


def reference(net: Net, trunk: str, lin: str) -> torch.nn.Module:
    """The package's network; the trunk's numbers are torchvision's, `slice1.0.weight` is
    `features.0.weight`.
    """
    model = lpips.LPIPS(net=net, pnet_rand=True, model_path=lin, verbose=False)
    tensors = torch.load(trunk, weights_only=True)
    model.net.load_state_dict({name: tensors[f"features.{name.split('.', 1)[1]}"] for name in model.net.state_dict()})
    return model


def pairs(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two photos with a visible and an invisible change: (2, height, width, 3) in [0, 1] each."""
    photos = np.stack([photo[30:, 60:][:height, :width] for photo in (data.astronaut(), data.coffee())])
    noise = np.random.default_rng(0).standard_normal(photos.shape) * np.array([30, 1])[:, None, None, None]
    changed = np.clip(np.rint(photos + noise), 0, 255)
    return (photos / 255).astype(np.float32), (changed / 255).astype(np.float32)


# the package calls torchvision the old way
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.long)])
def test_distances_of_photos_are_the_packages(tmp_path: Path, net: Net) -> None:
    files = torch_files(tmp_path, net)
    model, _ = load_lpips(converted(tmp_path, net, *files), net)
    theirs = reference(net, *files)
    smallest = TRUNKS[net].smallest
    for size in ((64, 64), (97, 130), (smallest, smallest + 2)):
        a, b = pairs(*size)
        with torch.no_grad():
            expected = theirs(*(torch.from_numpy(nchw(x)) for x in (a, b)), normalize=True)[:, 0, 0, 0].numpy()
        np.testing.assert_allclose(distance(model, a, b), expected, rtol=1e-5)
        assert expected[0] > 10 * expected[1] > 0


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_file_inside_the_package_is_accepted_and_recognised(tmp_path: Path, net: Net, capsys: pytest.CaptureFixture[str]) -> None:
    trunk, random = torch_files(tmp_path, net)
    path = converted(tmp_path, net, trunk, str(SHIPPED / f"{net}.pth"))
    assert "left out: classifier (2 tensors)" in capsys.readouterr().out
    model, origin = load_lpips(path, net)
    assert origin.startswith(f"file trunk.pth and {net}.pth (LPIPS 0.1), sha256 ")
    # it was saved on a GPU
    shipped = torch.load(SHIPPED / f"{net}.pth", weights_only=True, map_location="cpu")
    for i, lin in enumerate(model.lins):
        np.testing.assert_array_equal(lin[...], shipped[f"lin{i}.model.1.weight"].numpy().reshape(-1))
    assert load_lpips(converted(tmp_path, net, trunk, random), net)[1].startswith("file trunk.pth and lin.pth (not LPIPS 0.1's own file)")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    trunk, lin = torch_files(tmp_path, "alex")
    path = converted(tmp_path, "alex", trunk, lin)
    with pytest.raises(InputError, match="is of the network lpips-alex, not lpips-vgg; make one with .* --lpips vgg.pth lpips_vgg.npz`"):
        load_lpips(path, "vgg")
    with pytest.raises(InputError, match=r"lin1.model.1.weight has shape \(1, 128, 1, 1\) instead of \(1, 192, 1, 1\)") as raised:
        converted(tmp_path, "alex", trunk, str(SHIPPED / "vgg.pth"))
    assert f"--weights {trunk} with --lpips {SHIPPED / 'vgg.pth'}" in str(raised.value)
    with pytest.raises(InputError, match="--lpips nowhere.pth is not a file; pass a weights file$"):
        converted(tmp_path, "alex", trunk, "nowhere.pth")


@pytest.fixture(scope="module")
def random_alex() -> LPIPS:
    return LPIPS("alex", rng=np.random.default_rng(0))


def test_equal_images_have_no_distance_and_order_makes_no_difference(random_alex: LPIPS) -> None:
    a, b = pairs(64, 64)
    np.testing.assert_allclose(distance(random_alex, a, a), [0, 0], atol=1e-12)
    np.testing.assert_allclose(distance(random_alex, a, b), distance(random_alex, b, a), rtol=1e-6)


def test_black_images_have_a_distance_too(random_alex: LPIPS) -> None:
    black = np.zeros((2, 64, 64, 3), np.float32)
    assert np.isfinite(distance(random_alex, black, 1 - black)).all()


@pytest.mark.parametrize(("a", "b"), [((1, 30, 64, 3), (1, 30, 64, 3)), ((1, 64, 64, 3), (1, 64, 65, 3)), ((1, 64, 64, 1), (1, 64, 64, 1))])
def test_images_it_cannot_compare_are_refused(random_alex: LPIPS, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"LPIPS \(alex\) takes pairs \(b, h, w, 3\) with sides of 31 pixels at least"):
        random_alex(np.zeros(a, np.float32), np.zeros(b, np.float32))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_smallest_image_is_the_smallest_whose_maps_are_not_empty(net: Net) -> None:
    model, smallest = LPIPS(net, rng=np.random.default_rng(0)), TRUNKS[net].smallest
    for size, fits in ((smallest, True), (smallest - 1, False)):
        try:
            maps = jax.eval_shape(model.features, jax.ShapeDtypeStruct((1, size, size, 3), np.float32))
        except ValueError:  # a window larger than the map
            maps = []
        assert (len(maps) == 5 and all(0 not in x.shape for x in maps)) == fits

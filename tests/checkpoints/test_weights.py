"""Weights files: what is written is read; a file that is damaged, of another kind or of another
network is refused in words.
"""

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spn_jax.checkpoints import weights
from spn_jax.checkpoints.weights import INFO, Network, load_vgg19, read_weights, write_weights
from spn_jax.errors import InputError, run_command
from teacher_export.frameworks import timm
from teacher_export.weights import main

SHAPES = {"features.0.weight": (4, 3, 3, 3), "features.0.bias": (4,)}
ORIGIN = {"origin": "file small-12345678.pth", "weights_sha256": 64 * "0"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of one convolution beside the real ones."""
    entry = Network(shapes=lambda: SHAPES, left_out=("head",), release="small.pth", address="https://example.com/small.pth", timm="small")
    monkeypatch.setitem(weights.NETWORKS, "small", entry)
    monkeypatch.setattr("teacher_export.weights.NAMES", ("small", *sorted(weights.NETWORKS)))


def arrays() -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def torch_file(path: Path, change: Callable[[dict[str, Any]], object] = lambda tensors: None) -> str:
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays().items()}
    change(tensors)
    torch.save(tensors, path)
    return str(path)


def dumped(folder: Path, source: str, network: str = "small") -> str:
    main([network, "--weights", source, str(folder / "out.npz")])
    return str(folder / "out.npz")


def assert_equal(given: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert given.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(given[name], array)


# --- from torch ---


def test_a_file_says_where_its_arrays_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = torch_file(tmp_path / "small.pth", lambda tensors: tensors.update({"head.weight": torch.zeros(1)}))
    given, info = read_weights(dumped(tmp_path, source), "small")
    assert_equal(given, arrays())
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert {name: info[name] for name in ("format", "network", "origin", "file_sha256")} == {
        "format": 1,
        "network": "small",
        "origin": "file small.pth",
        "file_sha256": digest,
    }
    assert "2 tensors" in (output := capsys.readouterr().out)
    assert "left out: head (1 tensors)" in output


def test_layout_and_type_of_the_source_make_no_difference(tmp_path: Path) -> None:
    from safetensors.torch import save_file  # timm's dependency

    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    torch.save({"model": {name: tensor.double() for name, tensor in tensors.items()}}, tmp_path / "double.pth")
    save_file(tensors, tmp_path / "small.safetensors")
    torch_file(tmp_path / "small.pth")
    read = [read_weights(dumped(tmp_path, str(tmp_path / name)), "small") for name in ("small.pth", "double.pth", "small.safetensors")]
    assert len({info["weights_sha256"] for _, info in read}) == 1
    for given, _ in read:
        assert_equal(given, arrays())


def test_downloaded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pretrained:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {name: torch.from_numpy(array) for name, array in arrays().items()}

    def create_model(name: str, pretrained: bool) -> Pretrained:
        assert (name, pretrained) == ("small.tv_in1k", True)
        return Pretrained()

    monkeypatch.setattr(timm, "create_model", create_model)
    given, info = read_weights(dumped(tmp_path, "timm:small.tv_in1k"), "small")
    assert_equal(given, arrays())
    assert info["origin"] == "timm:small.tv_in1k"
    with pytest.raises(InputError, match="timm:resnet50.a1_in1k is not a small; write timm:small.TAG"):
        dumped(tmp_path, "timm:resnet50.a1_in1k")


def test_a_download_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool) -> None:
        raise OSError("no route\nto the host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(InputError, match=r"could not be loaded \(no route\); check .* or download https"):
        dumped(tmp_path, "timm:small.tv_in1k")


def test_what_timm_has_not_is_refused_and_what_it_has_under_another_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="timm has no weights of inception; download https://github.com/mseitzer/pytorch-fid/.* and pass --weights"
    ):
        dumped(tmp_path, "timm:inception_v3.tv_in1k", "inception")
    with pytest.raises(InputError, match="timm:vgg19.tv_in1k is not a vgg16; write timm:vgg16.TAG or pass https"):
        main(["lpips-vgg", "--weights", "timm:vgg19.tv_in1k", "--lpips", "vgg.pth", str(tmp_path / "out.npz")])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["lpips-alex"],
            "lpips-alex needs LPIPS's own weights too: `python -m teacher_export.weights lpips-alex .* --lpips alex.pth lpips_alex.npz`",
        ),
        (
            ["inception", "--lpips", "alex.pth"],
            "inception has no part in LPIPS, leave --lpips out: `.* inception .*6726825d.pth inception.npz`",
        ),
    ],
)
def test_lpips_has_two_files_and_the_others_one(tmp_path: Path, arguments: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        main([*arguments, "--weights", "file.pth", str(tmp_path / "out.npz")])


def test_a_left_out_part_is_a_whole_name_at_the_beginning_or_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors.update({name: torch.zeros(1) for name in ("head", "head.0.bias", "features.0.head")})

    dumped(tmp_path, torch_file(tmp_path / "small.pth", change))
    assert "left out: head (3 tensors)" in capsys.readouterr().out
    for name in ("header", "features.0.overhead", "features.head.bias"):
        with pytest.raises(InputError, match=f"{name} is left over"):
            dumped(tmp_path, torch_file(tmp_path / "small.pth", lambda tensors: tensors.update({name: torch.zeros(1)})))  # noqa: B023


def test_the_checksum_in_a_files_name_is_held_against_it(tmp_path: Path) -> None:
    path = Path(torch_file(tmp_path / "small.pth"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    dumped(tmp_path, str(path.rename(tmp_path / f"small-{digest[:8]}.pth")))
    (tmp_path / "out.npz").unlink()
    with pytest.raises(InputError, match=f"small-01234567.pth is damaged: its SHA-256 begins with {digest[:8]} and its name says 01234567"):
        dumped(tmp_path, str((tmp_path / f"small-{digest[:8]}.pth").rename(tmp_path / "small-01234567.pth")))
    assert not (tmp_path / "out.npz").exists()


def test_everything_that_does_not_fit_in_a_source_is_listed_at_once(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        del tensors["features.0.weight"]
        tensors.update({"features.0.bias": torch.zeros(5), "features.9.bias": torch.zeros(1), "header.bias": torch.zeros(1)})

    with pytest.raises(InputError) as raised:
        dumped(tmp_path, torch_file(tmp_path / "small.pth", change))
    for text in (
        "features.0.weight is missing",
        "features.0.bias has shape (5,) instead of (4,)",
        "features.9.bias is left over",
        "header.bias is left over",
        "https://example.com/small.pth",
    ):
        assert text in str(raised.value)
    assert not (tmp_path / "out.npz").exists()


class Program:
    """What a file must not be able to bring along."""


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.pth", Program(), "not a torch file of tensors alone"),
        ("a.pth", {"features.0.bias": 1}, "another layout"),
        ("a.pth", b"no torch file", "not a torch file of tensors alone"),
        ("a.safetensors", b"no safetensors file", "damaged or no safetensors file"),
        ("a.pth", None, "is not a file; pass a weights file or timm:NAME"),
    ],
    ids=["program", "no tensors", "text", "text as safetensors", "nothing"],
)
def test_a_source_of_another_kind_is_refused(tmp_path: Path, name: str, content: object, text: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=text) as raised:
        dumped(tmp_path, str(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)


def test_nothing_is_written_over_a_file_of_another_kind(tmp_path: Path) -> None:
    source = torch_file(tmp_path / "small.pth")
    with pytest.raises(InputError, match="small.pth does not end in .npz"):
        main(["small", "--weights", str(tmp_path / "new.npz"), source])


def test_wrong_input_is_one_line_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["weights", "vgg19", "--weights", "nowhere.pth", str(tmp_path / "out.npz")])
    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --weights nowhere.pth is not a file; pass a weights file or timm:NAME\n"


# --- reading ---


def npz(path: Path, **changes: Any) -> None:
    """A weights file of the small network with other statements about it, or other entries (an
    array each).
    """
    entries = {name: change for name, change in changes.items() if isinstance(change, np.ndarray)}
    statements = {name: change for name, change in changes.items() if name not in entries}
    info = {"format": 1, "network": "small", **ORIGIN, **statements}
    np.savez(path, **{INFO: np.array(json.dumps(info)), **arrays(), **entries})


def damage(path: Path) -> None:
    """Changes one value inside the kernel."""
    write_weights(path, "small", arrays(), ORIGIN)
    content = path.read_bytes()
    values = arrays()["features.0.weight"].tobytes()
    path.write_bytes(content.replace(values, b"\x00" + values[1:]))


def truncate(path: Path) -> None:
    write_weights(path, "small", arrays(), ORIGIN)
    path.write_bytes(path.read_bytes()[:-100])


def huge(path: Path) -> None:
    """A header that promises more values than any memory holds."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**26,)})
    npz(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", header.getvalue())


def unclosed(path: Path) -> None:
    """A header whose text has no end."""
    npz(path)
    text = b"{'descr': '<f4', 'shape': (4,"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def encrypted(path: Path) -> None:
    """The flag that says that a password is needed, in every entry."""
    npz(path)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset] |= 1
            position = content.find(signature, position + 4)
    path.write_bytes(bytes(content))


def single_array(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)


MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda path: None, "is not a file"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or no .npz"),
    "text": (lambda path: path.write_bytes(b"text"), "damaged or no .npz"),
    "one array": (single_array, "damaged or no .npz"),
    "program": (lambda path: np.savez(path, **{INFO: np.array(Program(), object)}), "damaged or no .npz"),
    "truncated": (truncate, "damaged or no .npz"),
    "a changed value": (damage, "damaged or no .npz"),
    "a header that promises too much": (huge, r"more is left over"),
    "a header without end": (unclosed, "damaged or no .npz"),
    "encrypted": (encrypted, "damaged or no .npz"),
    "its entry too deep": (lambda path: npz(path, **{INFO: np.array("[" * 20_000)}), "damaged or no .npz"),
    "its entry too long": (lambda path: npz(path, **{INFO: np.array(" " * 30_000)}), "was not written by teacher_export.weights"),
    "torch's file": (torch_file, "was not written by teacher_export.weights"),
    "another program's": (lambda path: np.savez(path, **arrays()), "was not written by teacher_export.weights"),
    "its entry no text": (lambda path: npz(path, **{INFO: np.zeros(3)}), "was not written by teacher_export.weights"),
    "its entry no JSON": (lambda path: npz(path, **{INFO: np.array("{")}), "was not written by teacher_export.weights"),
    "its entry of something else": (lambda path: npz(path, **{INFO: np.array("{}")}), "was not written by teacher_export.weights"),
    "newer": (lambda path: npz(path, format=2), "has format 2, this version reads 1"),
    "another network": (lambda path: npz(path, network="vgg19"), "is of the network vgg19, not small"),
    "another shape": (lambda path: npz(path, **{"features.0.bias": np.zeros(5, np.float32)}), r"features.0.bias has shape \(5,\)"),
    "another type": (lambda path: npz(path, **{"features.0.bias": np.zeros(4)}), "features.0.bias is float64 instead of float32"),
    "one too many": (lambda path: npz(path, more=np.zeros(4, np.float32)), "more is left over"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_refused_with_the_command_that_makes_a_right_one(tmp_path: Path, kind: str) -> None:
    make, text = MALFORMED[kind]
    make(tmp_path / "small.npz")
    with pytest.raises(InputError, match=text) as raised:
        read_weights(tmp_path / "small.npz", "small")
    assert str(tmp_path / "small.npz") in str(raised.value)
    assert str(raised.value).endswith("make one with `python -m teacher_export.weights small --weights small.pth small.npz`")


def test_without_weights_vgg19_says_how_to_get_them() -> None:
    with pytest.raises(InputError, match="loss.vgg is not set") as raised:
        load_vgg19("", 0, np.float32)
    for text in (
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "python -m teacher_export.weights vgg19 --weights vgg19-dcbb9e9d.pth vgg19.npz",
        "loss.vgg=vgg19.npz",
        "loss.vgg=random",
    ):
        assert text in str(raised.value)

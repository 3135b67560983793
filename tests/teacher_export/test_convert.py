"""The convert command: released files of every spelling, what it refuses and says, and the way
back. Tiny models of all three kinds.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.released import FULL_SIZE, discriminator_to_released, model_to_released
from spn_jax.checkpoints.store import FOLDER, METADATA, load_discriminator, load_model, read_info
from spn_jax.config import Config, ModelConfig
from spn_jax.errors import InputError
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.spn import SPN
from teacher_export.convert import describe_left_out, main
from teacher_export.frameworks import torch
from tests.tiny import CHANNELS, CONFIG_FILE, tiny
from tests.trainer import ROOT, last_arrays, saved_arrays

KINDS = {
    "spn": (),
    "spn-probabilistic": (
        "model.variational=true",
        "model.latent_channels=4",
        "model.spade_hidden_up_to_prior=true",
        "model.discriminator=instance_norm",
    ),
    "spl": ("model.decoder=region_norm", "model.prior_levels=3", "model.prior_encoder_slope=0.1"),
}
kinds = pytest.mark.parametrize("kind", KINDS)
OTHERS = ("adversarial_loss.real_label", "tresnet_xL_hold.body.layer1.0.bn1.num_batches_tracked", "vgg_loss.vgg.slice1.0.weight")
Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """A tiny model and its two networks under the released names."""

    config: Config
    model: SPN
    generator: Tensors
    discriminator: Tensors

    @property
    def settings(self) -> list[str]:
        """The arguments that describe the model."""
        return ["--config", str(CONFIG_FILE), *KINDS[self.config.model.kind]]

    def published(self) -> Tensors:
        """The authors' training object."""
        return (
            prefixed("generator.module.", self.generator)
            | prefixed("discriminator.module.", self.discriminator)
            | {name: torch.zeros((), dtype=torch.int64) for name in OTHERS}
        )


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def tensors(arrays: dict[str, np.ndarray]) -> Tensors:
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def parameters(module: nnx.Module) -> dict[str, Any]:
    return jax.device_get(named_arrays(nnx.as_pure(nnx.state(module))))


def source_of(kind: str) -> Source:
    config, rng = tiny(*KINDS[kind]), np.random.default_rng(1)
    channels = {level: CHANNELS[level] for level in config.model.prior_levels}
    model = SPN(config.model, channels, rng=rng)
    discriminator = Discriminator(config.model, rng=rng, dtype="float32")
    return Source(
        config,
        model,
        tensors(model_to_released(parameters(model), config.model, channels)),
        tensors(discriminator_to_released(parameters(discriminator), config.model)),
    )


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    return {kind: source_of(kind) for kind in KINDS}


@pytest.fixture
def spn(sources: dict[str, Source]) -> Source:
    return sources["spn"]


def save(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def assert_same_tensors(path: Path, expected: Tensors) -> None:
    written = torch.load(path, weights_only=True)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype and written[name].shape == tensor.shape
        assert written[name].numpy().tobytes() == tensor.numpy().tobytes(), name


LAYOUTS: dict[str, Callable[[Tensors, Tensors], dict[str, Any]]] = {
    "bare": lambda g, d: g | d,
    "module": lambda g, d: prefixed("module.", g | d),
    "networks": lambda g, d: prefixed("generator.", g) | prefixed("discriminator.", d),
    "published": lambda g, d: prefixed("generator.module.", g) | prefixed("discriminator.module.", d),
    "nested": lambda g, d: {"generator": g, "discriminator": {"module": d}},
}


@pytest.mark.parametrize(
    ("kind", "layout"), [*(("spn", layout) for layout in LAYOUTS), ("spn-probabilistic", "published"), ("spl", "bare")]
)
def test_every_spelling_of_a_file_gives_the_same_checkpoint(sources: dict[str, Source], kind: str, layout: str, tmp_path: Path) -> None:
    source = sources[kind]
    file = save(tmp_path / "released.pt", LAYOUTS[layout](source.generator, source.discriminator))
    main([file, str(tmp_path / "run"), *source.settings])
    assert os.listdir(tmp_path / "run") == [FOLDER]
    written = last_arrays(tmp_path / "run")
    expected = {f"model/{name}": array for name, array in parameters(source.model).items()}
    assert {n: a.tobytes() for n, a in written.items() if n.startswith("model/")} == {n: a.tobytes() for n, a in expected.items()}
    assert {name.partition(".")[0] for name in written if name.startswith("training/")} == {"training/discriminator", "training/spectral"}
    main([str(tmp_path / "run"), str(tmp_path / "back.pt"), "--to-torch"])
    assert_same_tensors(tmp_path / "back.pt", LAYOUTS["published"](source.generator, source.discriminator))


@kinds
def test_the_checkpoint_is_opened_like_a_run_s(
    sources: dict[str, Source], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sources[kind]
    file = save(tmp_path / "released.pt", source.published())
    main([file, str(tmp_path / "run"), "--model", kind, *source.settings, "data.crop=center"])
    said = capsys.readouterr().out
    loaded = load_model(tmp_path / "run")
    assert loaded.step == 0 and loaded.config == dataclasses.replace(
        source.config, data=dataclasses.replace(source.config.data, crop="center")
    )
    assert loaded.info == read_info(tmp_path / "run" / FOLDER / "0")
    assert loaded.info["model"] == kind and "data" not in loaded.info
    assert loaded.info["teacher"] == {
        "channels": {str(level): CHANNELS[level] for level in sorted(source.config.model.prior_levels)},
        "origin": "released checkpoint",
        "identity": None,
    }
    assert loaded.info["converted_from"] == {
        "file": "released.pt",
        "sha256": hashlib.sha256((tmp_path / "released.pt").read_bytes()).hexdigest(),
    }

    rng = np.random.default_rng(0)
    image, mask = jnp.asarray(rng.random((1, 32, 32, 3), np.float32)), jnp.asarray(rng.random((1, 32, 32, 1)) < 0.3, jnp.float32)
    noise = jnp.asarray(rng.standard_normal((1, 2, 1, 1, 4), np.float32)) if source.model.variational else None
    complete = nnx.jit(lambda model: model(image, mask, noise).image)
    np.testing.assert_array_equal(complete(loaded.model), complete(source.model))

    total = sum(array.size for array in parameters(source.model).values())
    assert f"{file}: {kind}, {total:,} parameters in prior learner and generator\n" in said
    heads = ", ".join(f"l={level} {CHANNELS[level]}" for level in sorted(source.config.model.prior_levels))
    assert f"\ndistillation heads: {heads} channels\n" in said
    assert f"left out: {len(OTHERS)} entries that belong to neither\n  " + "\n  ".join(OTHERS) + "\n" in said
    assert f"wrote {tmp_path / 'run' / FOLDER / '0'}\n" in said


@kinds
def test_the_discriminator_comes_along(sources: dict[str, Source], kind: str, tmp_path: Path) -> None:
    source = sources[kind]
    main([save(tmp_path / "released.pt", source.published()), str(tmp_path / "run"), *source.settings])
    discriminator = Discriminator(source.config.model, rng=np.random.default_rng(0), dtype="float32")
    loaded = load_discriminator(tmp_path / "run" / FOLDER / "0")
    assert loaded is not None
    assert loaded.keys() == parameters(discriminator).keys()
    back = tensors(discriminator_to_released(jax.device_get(loaded), source.config.model))
    assert back.keys() == source.discriminator.keys()
    assert all(torch.equal(back[name], source.discriminator[name]) for name in back)


def test_a_file_without_discriminator_gives_a_checkpoint_without(spn: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([save(tmp_path / "released.pt", spn.generator), str(tmp_path / "run"), *spn.settings])
    said = capsys.readouterr().out
    assert "discriminator: there is none in the file" in said and "\nleft out: nothing\n" in said
    assert {name.partition("/")[0] for name in last_arrays(tmp_path / "run")} == {"model"}
    assert load_discriminator(tmp_path / "run" / FOLDER / "0") is None
    main([str(tmp_path / "run"), str(tmp_path / "back.pt"), "--to-torch", "--no-module"])
    assert "discriminator: there is none in the checkpoint" in capsys.readouterr().out
    assert_same_tensors(tmp_path / "back.pt", prefixed("generator.", spn.generator))


def test_a_run_is_exported_as_it_is_evaluated(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The moving average, and the discriminator without the optimisers beside it."""
    main([str(reference), str(tmp_path / "run.pt"), "--to-torch"])
    assert (
        f"{reference / FOLDER / '6'}: spn, step 6, parameters of prior learner and generator (their moving average"
        in capsys.readouterr().out
    )
    main([str(tmp_path / "run.pt"), str(tmp_path / "run"), "--config", str(CONFIG_FILE)])
    there, back = saved_arrays(reference / FOLDER / "6"), last_arrays(tmp_path / "run")
    assert any("spectral" in name for name in back) and any("discriminator" in name for name in back)
    assert not [name for name in back if back[name].tobytes() != there[name.replace("model/", "ema/")].tobytes()]


def refused(arguments: list[str], tmp_path: Path) -> str:
    """The error's text; nothing was written beside the input."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        main(arguments)
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_listed_and_nothing_is_left_behind(spn: Source, tmp_path: Path) -> None:
    content = spn.published()
    content["generator.module.gff.0.wait"] = content.pop("generator.module.gff.0.weight")
    content["discriminator.module.conv5.0.weight_u"] = torch.zeros(2)
    content["generator.module.gff.1.bias"] = content["generator.module.gff.1.bias"].bfloat16()
    del content["generator.module.decoder.6.bias"]
    file = save(tmp_path / "released.pt", content)
    said = refused([file, str(tmp_path / "run"), *spn.settings], tmp_path)
    beginning, _, problems = said.partition(": ")
    assert beginning == f"{file} does not fit the model spn"
    assert set(problems.split("; ")) == {
        "generator.module.gff.0.weight is missing",
        "generator.module.gff.0.wait is left over",
        "generator.module.decoder.6.bias is missing",
        "discriminator.module.conv5.0.weight_u has shape (2,) instead of (1,)",
        "generator.module.gff.1.bias is bfloat16 instead of float32",
    }


def test_kinds_that_contradict_are_refused(sources: dict[str, Source], tmp_path: Path) -> None:
    file = save(tmp_path / "released.pt", sources["spl"].generator)
    run = str(tmp_path / "run")
    said = refused([file, run, "--model", "spn"], tmp_path)
    assert (
        said.startswith(f"{file}, whose names are those of spl, does not fit the model spn: ") and "decoder.9.weight is left over" in said
    )
    said = refused([file, run, "--config", str(CONFIG_FILE)], tmp_path)
    assert said.startswith(f"{file}, whose names are those of spl, does not fit the model spn: ")
    said = refused([file, run, "--model", "spl", "--config", str(CONFIG_FILE)], tmp_path)
    assert said.startswith(f"--model spl contradicts --config {CONFIG_FILE}, whose model is spn")
    # the kind is recognised, and the published model is larger
    said = refused([file, run], tmp_path)
    beginning = f"{file} does not fit the model spl (if its sizes are not the published ones, describe them with --config): "
    assert said.startswith(beginning) and "rdbs.15.lff.weight is missing" in said


def test_without_a_config_the_heads_are_the_published_ones(spn: Source, tmp_path: Path) -> None:
    sizes = [f"model.{field.name}={getattr(spn.config.model, field.name)}" for field in dataclasses.fields(ModelConfig)]
    file = save(tmp_path / "released.pt", spn.published())
    said = refused([file, str(tmp_path / "run"), *sizes], tmp_path)
    beginning, _, problems = said.partition(": ")
    assert beginning == f"{file} does not fit the model spn (if its sizes are not the published ones, describe them with --config)"
    assert len(problems.split("; ")) == 6  # kernel and bias of three heads, and nothing else
    assert f"generator.module.feature_mapping.bias has shape ({CHANNELS[3]},) instead of (152,)" in problems


@pytest.mark.parametrize("around", [["state_dict"], ["model"], ["checkpoint", "params"]])
def test_a_dictionary_around_everything_is_taken_off(
    spn: Source, around: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = spn.published()
    for name in reversed(around):
        content = {name: content}
    file = save(tmp_path / "released.pt", content)
    main([file, str(tmp_path / "run"), *spn.settings])
    assert capsys.readouterr().out.startswith(f"{file}: read what lies in its only entry {'.'.join(around)}\n{file}: spn, ")
    written, expected = last_arrays(tmp_path / "run"), parameters(spn.model)
    assert not [name for name in expected if written[f"model/{name}"].tobytes() != expected[name].tobytes()]
    assert load_discriminator(tmp_path / "run" / FOLDER / "0") is not None


def test_dictionaries_with_a_meaning_of_their_own_stay(spn: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([save(tmp_path / "released.pt", {"generator": {"module": spn.generator}}), str(tmp_path / "run"), *spn.settings])
    assert "only entry" not in capsys.readouterr().out
    said = refused([save(tmp_path / "judge.pt", {"discriminator": {"module": spn.discriminator}}), str(tmp_path / "new")], tmp_path)
    assert "judge.pt holds a discriminator and no generator (discriminator.module.conv1.0.weight_orig, discriminator.module." in said
    assert f"and {len(spn.discriminator) - 3} more)" in said
    said = refused([save(tmp_path / "vgg.pt", {"vgg_loss": {"a": torch.zeros(1)}}), str(tmp_path / "new")], tmp_path)
    assert "vgg.pt holds nothing of spn, spn-probabilistic, spl (vgg_loss.a); it must hold a generator" in said


def test_a_file_without_generator(tmp_path: Path) -> None:
    file, run = save(tmp_path / "empty.pt", {}), str(tmp_path / "run")
    assert refused([file, run], tmp_path).startswith(f"{file} is empty; it must hold a generator")
    assert refused([save(tmp_path / "inside.pt", {"state_dict": {}}), run], tmp_path).startswith(f"{tmp_path / 'inside.pt'} is empty; ")
    assert "encoder_conv1.weight is missing" in refused([file, run, "--model", "spl"], tmp_path)


def test_one_entry_is_left_out() -> None:
    assert describe_left_out(["vgg_loss.a"]) == "1 entry that belongs to neither\n  vgg_loss.a"


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["alone", "left out", "nested"])
def test_code_in_a_file_is_not_executed(spn: Source, where: str, tmp_path: Path) -> None:
    code = Malicious(tmp_path / "executed")
    content = {"alone": code, "left out": {**spn.generator, "vgg_loss.x": code}, "nested": {"generator": {"x": code}}}[where]
    file = save(tmp_path / "released.pt", content)
    said = refused([file, str(tmp_path / "run"), *spn.settings], tmp_path)
    assert said.startswith(f"{file} is not a torch file of tensors alone (it was read without executing anything); it must hold")


def test_entries_that_are_no_tensors_are_listed(spn: Source, tmp_path: Path) -> None:
    content = {**spn.generator, "epoch": 3, "options": {"names": ["a"]}, "gff": {"0.bias": torch.zeros(1)}}
    said = refused([save(tmp_path / "released.pt", content), str(tmp_path / "run"), *spn.settings], tmp_path)
    assert "epoch is no dense tensor (int); options.names is no dense tensor (list); gff.0.bias is there twice; it must hold" in said
    endless: dict[str, Any] = {}
    endless["again"] = endless
    assert "is no dense tensor (dict)" in refused([save(tmp_path / "endless.pt", endless), str(tmp_path / "run")], tmp_path)
    assert "holds a list; it must hold" in refused([save(tmp_path / "list.pt", [torch.zeros(1)]), str(tmp_path / "run")], tmp_path)
    sparse = {"gff.0.bias": torch.zeros(2).to_sparse()}
    assert "gff.0.bias is no dense tensor (Tensor)" in refused([save(tmp_path / "sparse.pt", sparse), str(tmp_path / "run")], tmp_path)


@pytest.mark.parametrize("content", [b"", b"no torch file", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_file_that_is_none_of_torch_s(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "released.pt").write_bytes(content)
    assert str(tmp_path / "released.pt") in refused([str(tmp_path / "released.pt"), str(tmp_path / "run")], tmp_path)


def test_a_file_cut_short(spn: Source, tmp_path: Path) -> None:
    file = Path(save(tmp_path / "released.pt", spn.generator))
    file.write_bytes(file.read_bytes()[:-1000])
    assert "is not a torch file of tensors alone" in refused([str(file), str(tmp_path / "run")], tmp_path)


def test_inputs_and_outputs_that_cannot_be(spn: Source, tmp_path: Path) -> None:
    file = save(tmp_path / "released.pt", spn.generator)
    (tmp_path / "full" / "of").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    new = str(tmp_path / "new")

    def wrong(*arguments: str) -> str:
        return refused([*arguments], tmp_path)

    assert "is not a file; pass a released .pt file" in wrong(str(tmp_path / "none.pt"), new)
    assert "is a folder; pass a released .pt file, or --to-torch" in wrong(str(tmp_path / "full"), new)
    assert "already holds something; choose a new folder" in wrong(file, str(tmp_path / "full"), *spn.settings)
    assert "is a file; choose a new folder" in wrong(file, file, *spn.settings)
    assert "cannot be written" in wrong(file, f"{file}/inside", *spn.settings)
    assert "--no-module is about the names that --to-torch writes" in wrong(file, new, "--no-module")
    assert "--to-torch takes kind and settings from the checkpoint" in wrong(new, file, "--to-torch", "--model", "spn")
    assert "exists; choose another name" in wrong(str(tmp_path / "empty"), file, "--to-torch")
    assert "holds no complete checkpoint" in wrong(str(tmp_path / "empty"), new, "--to-torch")
    assert "config has no setting 'model.widht'" in wrong(file, new, *spn.settings, "model.widht=3")
    # a folder that is there and holds nothing will do
    main([file, str(tmp_path / "empty"), *spn.settings])
    assert "cannot be written" in wrong(str(tmp_path / "empty"), f"{file}/inside.pt", "--to-torch")


def test_nothing_is_left_of_a_checkpoint_that_cannot_be_written(spn: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, target: str) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("spn_jax.checkpoints.store.os.rename", fail)
    said = refused([save(tmp_path / "released.pt", spn.generator), str(tmp_path / "run"), *spn.settings], tmp_path)
    assert said.endswith("run cannot be written (No space left on device); choose another folder or free space")


@pytest.mark.parametrize(("changes", "said"), [({"config": {"model": "oops"}}, "model='oops' instead"), ({"teacher": None}, "channels")])
def test_a_checkpoint_with_damaged_settings_is_not_exported(spn: Source, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    main([save(tmp_path / "released.pt", spn.generator), str(tmp_path / "run"), *spn.settings])
    path = tmp_path / "run" / FOLDER / "0" / METADATA
    content = json.loads(path.read_text())
    content["custom_metadata"] |= changes
    path.write_text(json.dumps(content))
    assert said in refused([str(tmp_path / "run"), str(tmp_path / "back.pt"), "--to-torch"], tmp_path)


def test_the_command_line_ends_with_one_sentence_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "teacher_export.convert", str(tmp_path / "none.pt"), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'none.pt'} is not a file; pass a released .pt file\n"


def test_help_says_what_may_be_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("adversarial_loss.*", "without executing anything", "--to-torch", *FULL_SIZE))

"""Imports go one way; a boundary that nobody checks is gone within a month."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = (
    *("config", "errors", "runtime/files", "training/losses", "metrics/image", "metrics/sets", "runtime/sharding", "runtime/log"),
    "drawing/figures",
)
KEY_FILES = (
    *(
        f"spn_jax/{name}.py"
        for name in (*LEAVES, "checkpoints/store", "evaluate", "training/step", "train", "models/spn", "data/pipeline", "data/teacher")
    ),
    "teacher_export/__main__.py",
)


def imports(path: Path) -> set[str]:
    """Every module that `path` imports anywhere, functions included, as absolute dotted names; `from a import b` gives `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def imported(path: Path, *forbidden: str) -> list[str]:
    """The imports of `path` that are one of the modules `forbidden` or lie inside one."""
    return sorted(name for name in imports(path) for module in forbidden if f"{name}.".startswith(f"{module}."))


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def check(paths: list[Path], *forbidden: str) -> None:
    assert paths
    wrong = {str(path.relative_to(ROOT)): imported(path, *forbidden) for path in paths}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("path", KEY_FILES)
def test_the_files_these_rules_are_about_exist(path: str) -> None:
    assert (ROOT / path).is_file()


def test_library_knows_neither_torch_nor_tensorflow_nor_the_export() -> None:
    check(files("spn_jax/**/*.py"), "torch", "torchvision", "timm", "tensorflow", "tensorflow_datasets", "teacher_export")


def test_leaves_import_nothing_of_ours_but_config_errors_and_files() -> None:
    for path in files(*(f"spn_jax/{name}.py" for name in LEAVES)):
        ours = {name.rpartition(".")[0] for name in imported(path, "spn_jax")}
        assert ours <= {"spn_jax.config", "spn_jax.errors", "spn_jax.runtime.files"}, path


def test_photos_and_windows_need_no_jax() -> None:
    check(files("spn_jax/filling/photos.py", "spn_jax/filling/windows.py"), "jax", "flax", "spn_jax.models", "spn_jax.filling.inpainter")


def test_data_imports_no_jax_and_no_models() -> None:
    check(files("spn_jax/data/*.py"), "jax", "flax", "spn_jax.models", "spn_jax.training.step", "spn_jax.train")


def test_models_and_step_import_no_data() -> None:
    check(files("spn_jax/models/*.py", "spn_jax/training/step.py"), "grain", "array_record", "spn_jax.data", "spn_jax.train")


def test_step_runs_where_grain_is_not_installed() -> None:
    program = "import sys; sys.modules['grain'] = sys.modules['array_record'] = None; import spn_jax.training.step"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_this_checker_sees_imports_in_functions_and_relative_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    module = tmp_path / "spn_jax" / "data" / "images.py"
    module.parent.mkdir(parents=True)
    module.write_text("import numpy\nfrom ..models import spn\n\ndef f():\n    import jax.numpy as jnp\n")
    assert imported(module, "jax", "spn_jax.models", "torch") == ["jax.numpy", "spn_jax.models.spn"]

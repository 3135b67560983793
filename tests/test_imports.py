"""Imports between packages go one way; a boundary that nobody checks is gone within a month."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = ("config", "errors", "settings")
RUNS_MODELS = (*BASE, "runtime", "pretrained", "models", "checkpoints", "data", "drawing")
# {part: what it may import beside itself and the version}: packages and modules of spn_jax.
# Everything else is forbidden.
PARTS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "settings": ("errors",),
    "config": ("errors", "settings"),
    "runtime": ("errors",),
    "pretrained": ("errors",),
    "metrics": ("errors",),
    "drawing": ("errors",),
    "models": BASE,
    "data": (*BASE, "runtime.files", "runtime.progress"),
    "checkpoints": (*BASE, "runtime", "models", "pretrained"),
    "filling": RUNS_MODELS,
    "evaluation": (*RUNS_MODELS, "metrics", "filling"),
    "training": (*RUNS_MODELS, "evaluation"),
    "ablations": (*RUNS_MODELS, "evaluation", "training"),
    "views": (*RUNS_MODELS, "evaluation", "filling", "training.gradients"),
    "onnx_files": (*BASE, "runtime.files", "models", "checkpoints", "filling"),
    "demo": (*BASE, "runtime", "pretrained", "drawing", "filling"),
    # Commands: options, then a call. Nobody imports them.
    "train": (*BASE, "runtime", "training"),
    "evaluate": (*BASE, "runtime", "checkpoints", "data.masks", "evaluation"),
    "predict": (*BASE, "runtime", "pretrained", "filling"),
    "export": (*BASE, "runtime", "pretrained", "checkpoints", "filling", "onnx_files"),
    "ablate": (*BASE, "runtime", "checkpoints", "evaluation", "training.processes", "ablations"),
    "visualize": (*BASE, "runtime", "drawing", "views"),
    # What programs outside import
    "__init__": ("checkpoints.store", "filling.inpainter"),
    "checkpoint": ("checkpoints.store",),
}
COMMANDS = ("train", "evaluate", "predict", "export", "ablate", "visualize", "demo.__main__")
LONGEST_COMMAND = 150  # lines


def imports(path: Path) -> set[str]:
    """Every module that `path` imports anywhere, functions included, as absolute dotted names;
    `from a import b` gives `a.b`.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def imported(path: Path, *modules: str) -> list[str]:
    """The imports of `path` that are one of the modules or lie inside one."""
    return sorted(name for name in imports(path) for module in modules if f"{name}.".startswith(f"{module}."))


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def check(paths: list[Path], *forbidden: str) -> None:
    assert paths
    wrong = {str(path.relative_to(ROOT)): imported(path, *forbidden) for path in paths}
    assert not {path: names for path, names in wrong.items() if names}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "spn_jax").with_suffix("").parts[0]


def test_every_part_is_in_the_table_and_there() -> None:
    assert {part_of(path) for path in files("spn_jax/**/*.py")} == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    allowed = ("__version__", part, *PARTS[part])
    for path in files(f"spn_jax/{part}.py", f"spn_jax/{part}/**/*.py"):
        permitted = imported(path, *(f"spn_jax.{name}" for name in allowed))
        assert set(imported(path, "spn_jax")) <= set(permitted), path


@pytest.mark.parametrize("command", COMMANDS)
def test_nobody_imports_a_command_and_none_is_long(command: str) -> None:
    own = ROOT / "spn_jax" / f"{command.replace('.', '/')}.py"
    assert len(own.read_text().splitlines()) <= LONGEST_COMMAND
    check([path for path in files("spn_jax/**/*.py", "teacher_export/**/*.py", "scripts/*.py") if path != own], f"spn_jax.{command}")


@pytest.mark.parametrize("package", files("spn_jax/*/__init__.py"), ids=lambda path: path.parent.name)
def test_packages_import_nothing_and_say_what_is_in_them(package: Path) -> None:
    assert not imports(package)
    assert ast.get_docstring(ast.parse(package.read_text()))


def test_library_knows_neither_torch_nor_tensorflow_nor_the_export() -> None:
    check(files("spn_jax/**/*.py"), "torch", "torchvision", "timm", "tensorflow", "tensorflow_datasets", "teacher_export")


def test_photos_and_windows_need_no_jax() -> None:
    check(files("spn_jax/filling/photos.py", "spn_jax/filling/windows.py"), "jax", "flax", "spn_jax.models", "spn_jax.filling.inpainter")


def test_data_and_what_it_takes_from_runtime_import_no_jax() -> None:
    check(files("spn_jax/data/*.py", "spn_jax/runtime/files.py", "spn_jax/runtime/progress.py"), "jax", "flax")


def test_models_and_step_import_no_data() -> None:
    step = [f"spn_jax/training/{name}.py" for name in ("state", "gradients", "accumulation", "losses", "step")]
    check(files("spn_jax/models/*.py", *step), "grain", "array_record", "spn_jax.data", "spn_jax.training.loop")


def test_what_fills_with_onnx_files_needs_no_package_that_writes_them() -> None:
    check(files("spn_jax/filling/*.py"), "onnx")


def test_step_runs_where_grain_is_not_installed() -> None:
    program = "import sys; sys.modules['grain'] = sys.modules['array_record'] = None; import spn_jax.training.step"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


OURS = ("spn_jax", "teacher_export", "scripts", "configs", "tests")


def file_of(module: str) -> Path | None:
    """The file of a module of ours; of a package its `__init__.py`, or the folder where there is
    none.
    """
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py", place) if path.exists()), None)


@functools.cache
def defined(path: Path) -> set[str]:
    """Names that a module binds anywhere outside functions and classes, and those that it lists in
    `__all__`.
    """
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())] if path.is_file() else []
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            if isinstance(node, ast.Assign) and any(isinstance(name, ast.Name) and name.id == "__all__" for name in node.targets):
                names.update(ast.literal_eval(node.value))
            nodes.extend(ast.iter_child_nodes(node))
    return names


def broken_imports(path: Path) -> list[str]:
    """The imports of `path` of modules of ours, or of names in them, that are not there."""
    return [name for name in sorted(imports(path)) if name.split(".")[0] in OURS and not is_there(name)]


def is_there(name: str) -> bool:
    """Whether a dotted name is a module of ours or something that one defines."""
    if file_of(name) is not None:
        return True
    module, _, attribute = name.rpartition(".")
    return bool(module) and (holder := file_of(module)) is not None and attribute in defined(holder)


def test_every_import_of_ours_names_something_that_is_there() -> None:
    """mypy cannot tell: `ignore_missing_imports`, which other packages need, has it pass over
    modules of ours that are missing.
    """
    paths = [path for package in OURS for path in files(f"{package}/**/*.py")]
    broken = {str(path.relative_to(ROOT)): broken_imports(path) for path in paths}
    assert len(paths) > 200 and not {path: names for path, names in broken.items() if names}


def test_this_checker_sees_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    part = tmp_path / "spn_jax" / "data"
    part.mkdir(parents=True)
    (part / "__init__.py").touch()
    (part / "images.py").write_text(
        "import os.path as path\nA, (B, *C) = 1, (2,)\nif A:\n    D: int = 3\nclass E:\n    inner = 4\ndef f(): g = 5\n"
    )
    lines = [
        *(
            "import numpy",
            "import spn_jax.data.images",
            "from spn_jax.data import images",
            "from spn_jax.data.images import A, B, C, D, E, f, path",
        ),
        *("def later():", "    from spn_jax.data.images import inner", "    from .images import g", "    import spn_jax.gone"),
        *("    from spn_jax.gone.further import x", "    from spn_jax.data import masks"),
    ]
    (part / "user.py").write_text("\n".join(lines))
    expected = ["data.images.g", "data.images.inner", "data.masks", "gone", "gone.further.x"]
    assert broken_imports(part / "user.py") == [f"spn_jax.{name}" for name in expected]


def test_this_checker_sees_imports_in_functions_and_relative_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    module = tmp_path / "spn_jax" / "data" / "images.py"
    module.parent.mkdir(parents=True)
    module.write_text("import numpy\nfrom ..models import spn\n\ndef f():\n    import jax.numpy as jnp\n")
    assert imported(module, "jax", "spn_jax.models", "torch") == ["jax.numpy", "spn_jax.models.spn"]

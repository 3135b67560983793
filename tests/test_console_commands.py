"""The console commands that an installation brings: each is the `cli` of the module that
`python -m` runs.
"""

import importlib
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
COMMANDS = {
    "spn-train": "spn_jax.train",
    "spn-evaluate": "spn_jax.evaluate",
    "spn-predict": "spn_jax.predict",
    "spn-export": "spn_jax.export",
    "spn-demo": "spn_jax.demo.__main__",
    "spn-ablate": "spn_jax.ablate",
    "spn-visualize": "spn_jax.visualize",
}


def test_every_command_is_the_module_of_its_name() -> None:
    scripts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {name: f"{module}:cli" for name, module in COMMANDS.items()}
    for module in COMMANDS.values():
        assert callable(importlib.import_module(module).cli)

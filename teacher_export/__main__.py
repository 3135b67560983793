"""`python -m teacher_export --config configs/celeba.py --weights FILE|timm:NAME|random [section.key=value ...]`."""

import argparse
from collections.abc import Sequence

from spn_jax.config import load_config
from spn_jax.errors import run_command


def main(arguments: Sequence[str]) -> None:
    """Exports the teacher's features of the training photos. InputError for wrong input."""
    parser = argparse.ArgumentParser("python -m teacher_export", description="Writes the teacher's features of the training photos.")
    parser.add_argument("--config", required=True, help="one of configs/*.py")
    parser.add_argument(
        "--weights",
        required=True,
        help="file of the ASL release, timm:NAME (downloaded, for example timm:tresnet_l.miil_in1k) or random (teacher.seed)",
    )
    parser.add_argument("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the config's")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)

    # After the cheap checks: importing torch takes seconds.
    from teacher_export.export import export
    from teacher_export.frameworks import torch
    from teacher_export.teachers import load_teacher

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    export(config, load_teacher(config.teacher.name, options.weights, config.teacher.seed, device))


if __name__ == "__main__":
    run_command(main)

"""Exports a teacher's features of the training photos.

python -m teacher_export --config configs/celeba.py --weights FILE|timm:NAME|random \\
    [section.key=value ...]
"""

import argparse
from collections.abc import Sequence

from spn_jax.config import EXPORT_KEYS, Config, load_config
from spn_jax.errors import run_command
from spn_jax.settings import help_text
from teacher_export.processes import Share, find_share


def main(arguments: Sequence[str]) -> None:
    """Exports the teacher's features of the training photos. Raises InputError for wrong input."""
    options = parse(arguments)
    config = load_config(options.config, options.overrides)
    share = find_share(options.process, options.processes)

    # This comes after the cheap checks, since importing torch takes seconds.
    from teacher_export.export import export
    from teacher_export.teachers import load_teacher

    device = options.device or default_device(share)
    teacher = load_teacher(config.teacher, options.weights, device, config.data.image_size)
    export(config, teacher, share, verify=options.verify)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m teacher_export",
        description="Writes the teacher's features of the training photos.",
        epilog=help_text(Config, *EXPORT_KEYS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="one of configs/*.py")
    parser.add_argument(
        "--weights",
        help="file of the network's release, random (teacher.seed), pretrained (downloaded; of timm: and torchvision: teachers) or, "
        "of tresnet_l, timm:NAME (downloaded, for example timm:tresnet_l.miil_in1k); some teachers have none, "
        "and efficientnet_lite0 has those of a package",
    )
    parser.add_argument("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--processes", type=int, metavar="N", help="processes that share the export, where torchrun or SLURM do not tell")
    parser.add_argument("--process", type=int, metavar="I", help="number of this one, from 0")
    parser.add_argument("--verify", action="store_true", help="read every record of a complete cache again and restore damaged shards")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the config's, see below")
    return parser.parse_intermixed_args(arguments)


def default_device(share: Share) -> str:
    """Returns this process's GPU among those of its machine, or the CPU."""
    from teacher_export.frameworks import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{share.local}" if share.local is not None and share.local < torch.cuda.device_count() else "cuda"


if __name__ == "__main__":
    run_command(main)

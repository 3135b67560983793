"""Puts the measurements of `benchmark_gpu.sh` into one Markdown table, and that into a page."""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spn_jax.errors import InputError
from spn_jax.runtime.files import write_atomically

BEGIN, END = "<!-- begin: scripts/benchmark.py table -->", "<!-- end: scripts/benchmark.py table -->"
FILE = re.compile(r"(.+)-(\d+)\.jsonl")  # NAME-BATCH.jsonl


@dataclasses.dataclass(frozen=True)
class Row:
    """A program in some numbers on a batch; None is what it does not tell or did not come to."""

    name: str
    batch: int
    forward_s: float | None = None
    step_s: float | None = None
    peak_gb: float | None = None
    share: float | None = None  # of the rate of a large matrix product
    failed: str | None = None  # why there are no more numbers, such as "out of memory"


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Declares `benchmark.py table`."""
    part.add_argument("folder", type=Path, help="with NAME-BATCH.jsonl of each measurement")
    part.add_argument(
        "--twin",
        type=Path,
        metavar="FILE",
        help='training steps of a PyTorch program, one a line: {"name": "amp", "batch": 8, "seconds": 0.1}; '
        '"peak_gb" may be added, and "failed": "out of memory" may stand in the place of the seconds',
    )
    part.add_argument("--write", type=Path, metavar="PAGE", help=f"puts the table into a page, between {BEGIN} and {END}")
    part.set_defaults(run=run, overrides=[])


def run(options: argparse.Namespace) -> str:
    """The table, in Markdown, which is also written where that is asked for."""
    if options.overrides:
        raise InputError(f"table measures nothing and takes no settings; leave out {' '.join(options.overrides)}")
    devices, ours = read_folder(options.folder)
    text = table(devices, [*ours, *(read_twin(options.twin) if options.twin else ())])
    if options.write:
        write_atomically(options.write, with_block(options.write.read_text(), text, str(options.write)))
    return text


def read_folder(folder: Path) -> tuple[list[str], list[Row]]:
    """The devices that were measured, and a row for each file NAME-BATCH.jsonl."""
    files = {path: match for path in sorted(folder.glob("*.jsonl")) if (match := FILE.fullmatch(path.name))}
    if not files:
        raise InputError(f"{folder} holds no NAME-BATCH.jsonl; bash scripts/benchmark_gpu.sh {folder} makes them")
    devices, rows = set(), []
    for path, match in files.items():
        lines = read_lines(path)
        devices |= {line["device"] for line in lines if "device" in line}
        passes = {line["what"]: line for line in lines if "what" in line}
        seconds = {what: line["median_s"] for what, line in passes.items()}
        step = passes.get("step", {})
        rows.append(
            Row(
                name=match[1],
                batch=int(match[2]),
                forward_s=seconds.get("forward"),
                step_s=seconds.get("step"),
                peak_gb=step.get("peak_gb"),
                share=step.get("share_of_matrix_product"),
                failed=next((line["failed"] for line in lines if "failed" in line), None if step else "no step"),
            )
        )
    return sorted(devices), rows


def read_twin(file: Path) -> list[Row]:
    """The rows of another program."""
    rows = []
    for line in read_lines(file):
        if not isinstance(line.get("name"), str) or not isinstance(line.get("batch"), int) or not ("seconds" in line or "failed" in line):
            raise InputError(f"{file}: {json.dumps(line)} needs name, batch, and seconds or failed")
        name = f"PyTorch: {line['name']}"
        rows.append(Row(name, line["batch"], step_s=line.get("seconds"), peak_gb=line.get("peak_gb"), failed=line.get("failed")))
    return rows


def read_lines(file: Path) -> list[Mapping[str, Any]]:
    """The JSON objects of a file, one a line."""
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON objects, one a line: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise InputError(f"{file} must hold a JSON object a line")
    return lines


def table(devices: Sequence[str], rows: Sequence[Row]) -> str:
    """The devices, and one line for each row, smaller batches first."""
    return "\n".join([f"Measured on {' and '.join(devices)}." if devices else "No measurement came to its end.", "", *table_lines(rows)])


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "| numbers | batch | forward ms | step ms | photos/s | peak GB | of the device's rate |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: row.batch):  # programs of one batch stay in their order
        step = row.failed or number(row.step_s, 1000)
        speed = "-" if row.failed or not row.step_s else f"{row.batch / row.step_s:.1f}"
        share = "-" if row.share is None else f"{row.share:.0%}"
        yield f"| {row.name} | {row.batch} | {number(row.forward_s, 1000)} | {step} | {speed} | {number(row.peak_gb, 1)} | {share} |"


def number(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{factor * value:.1f}"


def with_block(page: str, block: str, name: str) -> str:
    """The page with the block between its two marks."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise InputError(f"{name} needs the lines {BEGIN} and {END}, once each and in this order")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.partition(END)[2]}"

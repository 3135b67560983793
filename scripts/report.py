"""Writes a page about one or more runs.

`python scripts/report.py RUN [RUN ...] --output report.html`: a RUN is a trainer's work directory,
an evaluation's output folder, or a folder that holds both (such as a run of spn_jax.ablate). Its
settings, curves, tables and pictures go into one HTML file that needs no other file and loads
nothing.
"""

import argparse
import base64
import html
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# makes the script run from a copy that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spn_jax.drawing import figures  # noqa: E402
from spn_jax.errors import InputError, run_command  # noqa: E402
from spn_jax.runtime.files import check_writable, write_atomically  # noqa: E402
from spn_jax.views import curves  # noqa: E402

DEPTH = 3  # levels of folders below a RUN that are searched; checkpoints lie deeper
CHECKPOINTS = "checkpoints"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{overflow-x:auto;background:#f5f5f5;padding:1rem;font-size:13px;line-height:1.35}img{max-width:100%;height:auto}"
    "figure{margin:1rem 0}figcaption{color:#555}summary{cursor:pointer}"
)


def main(arguments: Sequence[str]) -> None:
    """Runs the command line. Raises InputError for wrong input."""
    parser = argparse.ArgumentParser(prog="python scripts/report.py", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder; several are compared")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.html")
    options = parser.parse_args(arguments)
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {options.output} must end in .html")
    runs = named_runs(options.runs)
    check_writable(options.output.parent)
    write_atomically(options.output, page(runs))
    print(f"written: {options.output}")


def named_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns {name: folder}. A name is as many of the path's last folders as make it unique.
    Raises InputError if there is no folder, or one is given twice.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"run {folder} is not a folder; pass a run's work directory or an evaluation's output")
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise InputError("a run was given twice; leave one out")
    for count in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders, strict=True))


def page(runs: Mapping[str, Path]) -> str:
    """Returns the HTML text. Raises InputError if a run has nothing to show."""
    title = html.escape(f"spn_jax: {', '.join(runs)}")
    body = [f"<h1>{title}</h1>", *compared(runs), *(text for name, folder in runs.items() for text in section(name, folder))]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{"".join(body)}</body>\n</html>\n'


def compared(runs: Mapping[str, Path]) -> Iterator[str]:
    """Yields the curves of all runs in one picture."""
    logs = {name: file.parent for name, folder in runs.items() for file in found(folder, "metrics.jsonl")[:1]}
    lines = {name: figures.read_metrics(folder / "metrics.jsonl") for name, folder in logs.items()}
    lines = {name: of_run for name, of_run in lines.items() if of_run}
    if lines:
        picture = curves.page(lines, {name: logs[name] for name in lines})
        yield "<h2>Curves</h2>" + image(figures.png(picture), "Losses and scores over the steps.")


def section(name: str, folder: Path) -> Iterator[str]:
    """Yields tables, pictures and settings of a run. Raises InputError if there is nothing."""
    tables = found(folder, "results.md")
    pictures = [file for file in found(folder, "*.png") if file.name != "loss_curves.png"]
    settings = [*found(folder, "config.txt"), *found(folder, "parameters.txt")]
    if not (tables or pictures or settings or found(folder, "metrics.jsonl")):
        raise InputError(f"run {folder} holds neither results.md, config.txt, metrics.jsonl nor a picture; pass a run's folder")
    yield f"<h2>{html.escape(name)}</h2>"
    for file in tables:
        yield f"<h3>{html.escape(label(file.parent, folder))}</h3><pre>{html.escape(file.read_text(encoding='utf-8'))}</pre>"
    for file in pictures:
        yield image(file.read_bytes(), label(file, folder))
    for file in settings:
        text = html.escape(file.read_text(encoding="utf-8"))
        yield f"<details><summary>{html.escape(label(file, folder))}</summary><pre>{text}</pre></details>"


def found(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of this name in a run, except those of checkpoints, hidden files and single
    result pictures.
    """
    files = [file for depth in range(DEPTH) for file in sorted(folder.glob("*/" * depth + pattern))]
    passed_over = (CHECKPOINTS, "composites", "tensorboard")
    return [file for file in files if not any(part in passed_over or part.startswith(".") for part in file.relative_to(folder).parts)]


def label(path: Path, folder: Path) -> str:
    """Returns the label of a run's file on the page."""
    inside = path.relative_to(folder).as_posix()
    return "results" if inside == "." else inside


def image(data: bytes, caption: str) -> str:
    source = base64.b64encode(data).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{source}"><figcaption>{text}</figcaption></figure>'


if __name__ == "__main__":
    run_command(main)

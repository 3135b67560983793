"""The page about runs holds everything in one file, escaped, and says when there is nothing to
show.
"""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import report
from spn_jax.errors import InputError


class Reader(HTMLParser):
    """Collects what a browser would load, and the text it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def make_run(folder: Path, rate: float) -> Path:
    (folder / "train" / "checkpoints" / "2").mkdir(parents=True)
    (folder / "evaluation" / "composites" / "ours").mkdir(parents=True)
    (folder / "train" / "config.txt").write_text(f"optimizer.learning_rate = {rate}\ndata.train_photos = <script>alert(1)</script>\n")
    lines = [{"step": step, "generator/loss": rate / step} for step in (1, 2)]
    (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "evaluation" / "results.md").write_text("| PSNR | 20 & more |\n")
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("grid.png", "loss_curves.png", "composites/ours/a.png"):
        picture.save(folder / "evaluation" / name)
    return folder


def test_two_runs_are_one_file_that_loads_nothing(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "run", rate) for name, rate in (("a", 1.0), ("b", 2.0))]
    report.main([*map(str, runs), "--output", str(tmp_path / "page.html")])
    reader = Reader()
    reader.feed((tmp_path / "page.html").read_text())
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert len(reader.sources) == 1 + 2  # curves of both, and each one's grid
    assert "script" not in reader.tags and reader.text.count("<script>alert(1)</script>") == 2
    assert reader.text.count("| PSNR | 20 & more |") == 2
    assert "a/run" in reader.text and "optimizer.learning_rate = 2.0" in reader.text


@pytest.mark.parametrize(
    ("runs", "output", "text"),
    [
        (["nowhere"], "page.html", "run nowhere is not a folder"),
        (["empty"], "page.html", "run empty holds neither results.md, config.txt, metrics.jsonl nor a picture"),
        (["empty", "./empty"], "page.html", "a run was given twice"),
        (["empty"], "page.pdf", "--output page.pdf must end in .html"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[str], output: str, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(InputError, match=text):
        report.main([*runs, "--output", output])
    assert not Path(output).exists()

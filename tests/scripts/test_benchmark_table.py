"""The table of a GPU's measurements, of lines made by hand, and the script that makes lines."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark_table import BEGIN, END, with_block
from spn_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FORWARD = {"device": "1 x NVIDIA X", "what": "forward", "median_s": 0.004, "peak_gb": 1.0, "share_of_matrix_product": 0.9}
STEP = {"device": "1 x NVIDIA X", "what": "step", "median_s": 0.0501, "peak_gb": 7.25, "share_of_matrix_product": 0.414}
FULL = {"failed": "out of memory"}
PAGE = f"# Page\n\n{BEGIN}\nold\n{END}\nend\n"


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
    for name, lines in files.items():
        (folder / f"{name.replace('_', '-')}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table(*arguments: object) -> None:
    runpy.run_path(str(ROOT / "scripts" / "benchmark.py"))["main"](["table", *map(str, arguments)])


def test_measurements_failures_and_the_twin_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, tf32_16=[FORWARD, FULL], bf16_rematerialised_2=[FORWARD, STEP], tf32_2=[FULL])
    twin = [{"name": "amp", "batch": 2, "seconds": 0.08}, {"name": "amp", "batch": 16, "failed": "out of memory"}]
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    table(folder, "--twin", write(tmp_path, twin=twin) / "twin.jsonl", "--write", page)
    wanted = [
        "Measured on 1 x NVIDIA X.",
        "",
        "| numbers | batch | forward ms | step ms | photos/s | peak GB | of the device's rate |",
        "|---|---|---|---|---|---|---|",
        "| bf16-rematerialised | 2 | 4.0 | 50.1 | 39.9 | 7.2 | 41% |",
        "| tf32 | 2 | - | out of memory | - | - | - |",
        "| PyTorch: amp | 2 | - | 80.0 | 25.0 | - | - |",
        "| tf32 | 16 | 4.0 | out of memory | - | - | - |",
        "| PyTorch: amp | 16 | - | out of memory | - | - | - |",
    ]
    assert capsys.readouterr().out.splitlines() == wanted
    assert page.read_text() == "\n".join(["# Page", "", BEGIN, *wanted, END, "end", ""])


def test_a_table_is_written_again_over_the_last_one() -> None:
    once = with_block(PAGE, "new", "page")
    assert with_block(once, "new", "page") == once
    assert "old" not in once


@pytest.mark.parametrize(
    ("files", "arguments", "text"),
    [
        ({}, [], "holds no NAME-BATCH.jsonl"),
        ({"tf32_2": [FULL], "twin": [{"name": "amp", "batch": 2}]}, ["--twin", "twin.jsonl"], "needs name, batch, and seconds or failed"),
        ({"tf32_2": [FULL]}, ["--twin", "nothing.jsonl"], "cannot be read as JSON objects"),
        ({"tf32_2": [FULL]}, ["train.batch_size=2"], "takes no settings; leave out train.batch_size=2"),
    ],
)
def test_what_makes_no_table_is_said(
    files: dict[str, Any], arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, **files))
    with pytest.raises(InputError, match=re.escape(text)):
        table(tmp_path, *arguments)


@pytest.mark.parametrize("page", ["nothing", f"{END}\n{BEGIN}\n", f"{PAGE}{PAGE}"])
def test_a_page_needs_both_marks_once(page: str) -> None:
    with pytest.raises(InputError, match="page needs the lines"):
        with_block(page, "new", "page")


def test_the_page_on_performance_has_the_marks() -> None:
    assert "new" in with_block((ROOT / "docs" / "performance.md").read_text(), "new", "page")


# Stands for Python: a step that does not fit from batch 2 on. The table is made by the real one.
FAKE = """#!{python}
import subprocess, sys
words = sys.argv[1:]
if words[1] == "table":
    sys.exit(subprocess.run([{python!r}, *words]).returncode)
with open(words[words.index("--json") + 1], "w") as file:
    file.write({line!r} + "\\n")
if words[words.index("--batch") + 1] != "1":
    sys.exit("RESOURCE_EXHAUSTED: Out of memory")
"""


def test_the_script_measures_everything_and_ends_with_the_table(tmp_path: Path) -> None:
    page, fake, twin = tmp_path / "page.md", tmp_path / "python", tmp_path / "twin.jsonl"
    page.write_text(PAGE)
    fake.write_text(FAKE.format(python=sys.executable, line=json.dumps(STEP)))
    fake.chmod(0o755)
    twin.write_text(json.dumps({"name": "eager", "batch": 1, "seconds": 1}))
    environment = os.environ | {"PYTHON": str(fake), "PAGE": str(page), "TWIN": str(twin), "BATCHES": "1 2"}
    command = ["bash", "scripts/benchmark_gpu.sh", str(tmp_path / "results")]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "tf32, batch 2: out of memory, see" in ended.stderr
    lines = page.read_text().splitlines()
    names = ["bf16", "bf16-rematerialised", "float32", "tf32"]
    assert [line.split(" | ")[:1] for line in lines if line.startswith("| ") and " | 1 | " in line] == [
        [f"| {name}"] for name in [*names, "PyTorch: eager"]
    ]
    assert [line.split(" | ")[3] for line in lines if " | 2 | " in line] == ["out of memory"] * len(names)

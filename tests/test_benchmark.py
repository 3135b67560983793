"""The benchmark runs, and its shares add up."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "benchmark.py"


def test_shares_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["evaluation", "--config", "configs/tiny.py", "--count", "8", "eval.batch_size=4"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")][2:]
    assert printed.startswith("8 photos at 32 pixels, batches of 4")
    assert [row[0] for row in rows] == ["decoding", "model", "metrics"]
    assert sum(float(row[2].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.2)


def test_step_is_timed_with_its_arithmetic_and_memory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(
        ["step", "--config", "configs/tiny.py", "--batch", "2", "--pass", "forward", "--repeats", "2", "--json", str(tmp_path / "numbers")]
    )
    measured = json.loads((tmp_path / "numbers").read_text())
    assert (measured["what"], measured["size"], measured["batch"], measured["numbers"]) == ("forward", 32, 2, "float32")
    assert 0 < measured["least_s"] <= measured["median_s"] <= measured["largest_s"]
    assert measured["images_per_s"] == pytest.approx(2 / measured["median_s"])
    assert measured["tflop_per_s"] == pytest.approx(measured["tflop"] / measured["median_s"])
    assert "| forward | 32 | 2 | float32 |" in capsys.readouterr().out


def test_timing_a_step_needs_no_data_loader() -> None:
    program = "import sys; sys.modules['grain'] = sys.modules['array_record'] = sys.modules['cv2'] = None; import scripts.benchmark_step"
    subprocess.run([sys.executable, "-c", program], cwd=SCRIPT.parent.parent, check=True)

"""The benchmark runs, and its shares add up."""

import runpy
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

"""The table of a sweep: its form, the differences picture by picture, the paper's figures."""

import json
import math

import numpy as np
import pytest

from spn_jax.ablations import tables as sweep_tables
from spn_jax.ablations.tables import Entry
from spn_jax.errors import InputError
from spn_jax.evaluation import bins, paper, tables
from spn_jax.evaluation.tables import Results

HOLES = np.array([0.1, 0.3, 0.5, 0.55])


def results(psnr: list[float], **of_all: float) -> Results:
    records = {
        "hole": HOLES,
        "bin": bins.bins_of(HOLES),
        "psnr": np.array(psnr),
        "ssim": np.linspace(0.5, 0.8, 4),
        "mae": np.full(4, 0.0154),
    }
    return Results(records, {"All": of_all} if of_all else {}, missing={} if of_all else {"fid": "no weights"})


ENTRIES = [
    Entry(("4",), "blocks-4", 38_898_995, results([20, 22, 24, 26], fid=41.0)),
    Entry(("8",), "spn", 50_702_643, results([21, 23, 25, 28], fid=36.82)),
    Entry(("12_x",), "blocks-12", None, None),
]


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("| ")]


def test_a_row_a_run_and_a_column_a_score_in_the_papers_order_and_units() -> None:
    header, *rows = cells(sweep_tables.text_table(["blocks"], ENTRIES, "deterministic"))
    assert header == ["blocks", "run", "parameters", "ssim", "psnr", "mae_x10", "fid"]
    assert rows[0] == ["4", "blocks-4", "38,898,995", "0.6500 ± 0.1265", "23.00 ± 2.53", "0.1540 ± 0.0000", "41.00"]
    assert rows[2] == ["12_x", "blocks-12", "-", "not yet", "-", "-", "-"]
    assert len({len(line) for line in sweep_tables.text_table(["blocks"], ENTRIES, "deterministic").splitlines()}) == 1


def test_a_score_that_could_not_be_computed_says_why() -> None:
    entry = Entry(("x",), "spn", 1, results([20, 21, 22, 23]))
    assert cells(sweep_tables.text_table(["h"], [entry], "deterministic"))[1][-1] == "no weights"


def test_latex_has_the_same_numbers_and_escapes_names() -> None:
    latex = sweep_tables.latex_table(["blocks_n"], ENTRIES, "deterministic")
    assert r"blocks\_n & run & parameters & SSIM $\uparrow$ & PSNR $\uparrow$ & MAE, grey, $\times 10$ $\downarrow$ & FID" in latex
    assert r"8 & spn & 50,702,643 & 0.6500 $\pm$ 0.1265 & 24.25 $\pm$" in latex and r"12\_x" in latex
    assert latex.count(r"\\") == 4


def test_differences_are_of_the_same_pictures() -> None:
    header, *rows = cells(sweep_tables.differences_table(["blocks"], ENTRIES, "spn"))
    assert header == ["blocks", "run", "ssim", "psnr", "mae_x10"]
    interval = 1.96 * np.std([1, 1, 1, 2], ddof=1) / 2
    assert rows == [["4", "blocks-4", "+0.0000 ± 0.0000", f"-1.25 ± {interval:.2f}", "+0.0000 ± 0.0000"]]


def test_identical_pictures_are_left_out_of_the_differences() -> None:
    entries = [Entry(("a",), "a", 1, results([math.inf, 22, 24, 26])), Entry(("b",), "b", 1, results([20, 23, 25, 27]))]
    assert cells(sweep_tables.differences_table(["h"], entries, "b"))[1][3] == "-1.00 ± 0.00"


def test_one_run_has_no_differences_and_other_pictures_are_refused() -> None:
    assert sweep_tables.differences_table(["h"], ENTRIES[1:], "spn") == ""
    assert sweep_tables.differences_table(["h"], ENTRIES, "blocks-12") == ""
    other = results([1, 2, 3, 4])
    moved = Results({**other.records, "hole": HOLES[::-1]}, other.of_sets)
    with pytest.raises(InputError, match="evaluated on other pictures"):
        sweep_tables.differences_table(["h"], [ENTRIES[1], Entry(("x",), "x", 1, moved)], "spn")


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("3", ["64 x 64, 128 x 128", "0.884", "29.45", "0.158", "41.04"]),
        ("4", ["12 blocks, 62M", "0.886", "29.61", "0.155", "42.50"]),
        ("5", ["SPL w/ S_prior^L", "0.881", "29.21", "0.163", "42.30"]),
    ],
)
def test_the_papers_figures_stand_apart_as_printed(table: str, row: list[str]) -> None:
    block = sweep_tables.paper_block(table, ["256 images, the paper 100"])
    assert tables.NOT_COMPARABLE in block and "What differs: 256 images, the paper 100." in block
    assert cells(block)[0] == ["paper's row", "ssim", "psnr", "mae_x10", "fid"] and row in cells(block)
    assert f"Table {table}, Paris StreetView" in block


def test_charts_without_numbers_are_quoted_as_what_they_are() -> None:
    seven, eight = (sweep_tables.paper_block(f"fig{n}", ["x"]) for n in (7, 8))
    assert "Ours w/ Concat" in seven and "psnr 28.4 to 29.8" in seven and "Bars without numbers" in seven
    assert "HRNet (ADE20K)" in eight and "not in the paper's text" in eight
    assert sweep_tables.paper_block("weights", ["x"]) == ""
    low, high = paper.CHARTS[7].axes["psnr"]
    assert float(low) < 29.69 < float(high)  # SPN's own figure lies on the axis


def test_json_and_back() -> None:
    given = {
        name: entry.results for name, entry in (("blocks-4", ENTRIES[0]), ("same", Entry((), "same", 1, results([math.inf, 1, 2, 3]))))
    }
    content = json.loads(tables.as_json({name: of for name, of in given.items() if of is not None}, {}))
    for name, of in given.items():
        back = sweep_tables.results_from_json(content, name)
        assert of is not None
        assert sweep_tables.over_all(back, "deterministic").means == sweep_tables.over_all(of, "deterministic").means
        assert back.records["psnr"].tolist() == of.records["psnr"].tolist() and back.missing == of.missing

    told = json.loads(sweep_tables.as_json({"table": "4"}, ENTRIES, "deterministic"))
    assert told["table"] == "4" and [row["run"] for row in told["rows"]] == ["blocks-4", "spn", "blocks-12"]
    assert told["rows"][1]["scores"]["mae"] == pytest.approx(0.0154) and told["rows"][2]["scores"] is None

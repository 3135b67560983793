import json
import math
import re

import numpy as np
import pytest

from spn_jax.errors import InputError
from spn_jax.evaluation import bins, paper, tables


def records(holes: list[float], psnr: list[float]) -> dict[str, np.ndarray]:
    n = len(holes)
    return {
        "hole": np.array(holes),
        "bin": bins.bins_of(np.array(holes)),
        "psnr": np.array(psnr, np.float32),
        "ssim": np.linspace(0.5, 0.9, n),
        "mae": np.full(n, 0.0154),
    }


def test_bins_are_open_below_and_closed_above() -> None:
    rows = bins.rows_of(records([0.2, 0.2001, 0.4, 0.4001, 0.6, 0.6001], [1, 2, 3, 4, 5, 6]))
    assert [(row.bin, row.images) for row in rows] == [("0-20%", 1), ("20-40%", 2), ("40-60%", 2), ("60-100%", 1), ("All", 6)]
    assert [row.means["psnr"] for row in rows] == [1, 2.5, 4.5, 6, 3.5]


def test_every_picture_is_in_one_row_and_in_all() -> None:
    holes = np.concatenate([np.linspace(0, 1, 101), [0.0, 1.0]])
    rows = bins.rows_of(records(list(holes), list(np.ones(103))))
    assert rows[-1].bin == "All"
    assert rows[-1].images == sum(row.images for row in rows[:-1]) == 103
    assert rows[0].bin == "0%" and rows[0].images == 2


def test_tenths_decide_where_they_are_known() -> None:
    measured, tenths = np.array([0.1999, 0.2001, 0.4013, 0.6003, 0.0]), np.array([2, 1, 3, 5, 0])
    assert bins.bins_of(measured, tenths).tolist() == ["20-40%", "0-20%", "20-40%", "40-60%", "0-20%"]
    assert bins.bins_of(measured).tolist() == ["0-20%", "20-40%", "40-60%", "60-100%", "0%"]


def test_the_papers_rows_are_shown_even_when_empty() -> None:
    rows = bins.rows_of(records([0.5], [20]))
    assert [(row.bin, row.images) for row in rows] == [("20-40%", 0), ("40-60%", 1), ("All", 1)]
    assert math.isnan(rows[0].means["psnr"])


def test_infinite_psnr_is_left_out_of_the_mean_and_said_so() -> None:
    method = records([0.0, 0.3, 0.3], [np.inf, 20, 30])
    total = bins.rows_of(method)[-1]
    assert (total.means["psnr"], total.identical, total.images) == (25, 1, 3)
    assert total.means["ssim"] == pytest.approx(0.7)
    assert "spn: 1 of 3 results equal the photo" in tables.text_table({"spn": method})


def test_all_identical_is_an_infinite_mean() -> None:
    assert bins.rows_of(records([0.0], [np.inf]))[0].means["psnr"] == math.inf


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_of(text: str) -> dict[tuple[str, str], list[str]]:
    """{(score, method): cells} of the lines of a text table."""
    return {(row[0], row[1]): row[2:] for row in map(cells, text.splitlines()) if len(row) > 2}


def test_text_table_has_a_line_a_method_and_a_column_a_bin() -> None:
    spn, mean = records([0.3, 0.3, 0.5], [25.123, 27.123, 20]), records([0.3, 0.3, 0.5], [18, 18, 15])
    text = tables.text_table({"spn": spn, "mean": mean})
    lines = text.split("\n\n")[0].splitlines()
    assert cells(lines[0]) == ["score", "method", "20-40%", "40-60%", "All"]
    assert cells(lines[2]) == ["images", "", "2", "1", "3"]
    assert [cells(line)[:2] for line in lines[3:6]] == [["psnr", "spn"], ["psnr", "mean"], ["ssim", "spn"]]
    # s = sqrt(2) of two pictures; of one there is no interval
    assert cells(lines[3])[2:4] == ["26.12 ± 1.96", "20.00"]
    assert len({len(line) for line in lines}) == 1
    assert "1.96 s / sqrt(n) (normal approximation" in text


def test_interval_is_196_standard_errors_over_finite_values() -> None:
    psnr = [20.0, 23.0, 28.0, np.inf]
    row = bins.rows_of(records([0.3] * 4, psnr))[0]
    assert row.intervals["psnr"] == pytest.approx(1.96 * np.std(psnr[:3], ddof=1) / np.sqrt(3))
    assert row.intervals["mae"] == pytest.approx(0, abs=1e-12)
    assert all(math.isnan(interval) for interval in bins.rows_of(records([0.3], [20]))[0].intervals.values())


def test_layout_of_tenths_is_half_open_and_drops_nothing() -> None:
    holes = np.array([0.0, 0.1, 0.1001, 0.3, 0.6, 0.61])
    method = records(list(holes), [20.0] * 6) | {"tenth": bins.bins_of(holes, layout="tenths")}
    assert method["tenth"].tolist() == ["0%", "0-10%", "10-20%", "20-30%", "50-60%", "60-100%"]
    rows = bins.rows_of(method, "tenths")
    assert [row.bin for row in rows] == ["0%", "0-10%", "10-20%", "20-30%", "30-40%", "40-50%", "50-60%", "60-100%", "All"]
    assert sum(row.images for row in rows[:-1]) == rows[-1].images == 6
    tenths = np.arange(6)
    assert bins.bins_of(np.zeros(6), tenths, "tenths").tolist() == [f"{10 * t}-{10 * t + 10}%" for t in tenths]


def test_a_score_that_all_methods_lack_for_one_reason_has_one_line() -> None:
    scored = records([0.3, 0.5], [20, 21])
    both = {name: tables.Results(scored, missing={"fid": "no weights"}) for name in ("spn", "mean")}
    table = table_of(tables.text_table(both))
    assert table["fid", ""] == ["no weights"] * 3 and ("fid", "spn") not in table
    assert table_of(tables.text_table({"spn": both["spn"]}))["fid", "spn"] == ["no weights"] * 3
    empty = {name: tables.Results(records([0.3], [20]), missing={"fid": "no weights"}) for name in ("spn", "mean")}
    assert table_of(tables.text_table(empty))["fid", ""] == ["no weights", "-", "no weights"]


def test_probabilistic_layout_shows_0_to_20_always() -> None:
    assert [row.bin for row in bins.rows_of(records([0.5], [20]), "probabilistic")] == ["0-20%", "20-40%", "40-60%", "All"]


def test_scores_of_sets_stand_in_their_bins_and_a_missing_score_says_why() -> None:
    scored = records([0.3, 0.5], [20, 21])
    fid = {"All": {"fid": 12.345, "kid": 0.012345, "kid_std": 0.001}, "40-60%": {"fid": 20.0}}
    missing = {"lpips_alex": "no weights"}
    spn = tables.Results(scored, fid, ["FID is of the last checkpoint."], missing)
    text = tables.text_table({"spn": spn, "mean": scored})
    table = table_of(text)
    assert table["fid", "spn"] == ["-", "20.00", "12.35"] or table["fid", "spn"] == ["-", "20.00", "12.34"]
    assert table["fid", "mean"] == ["-", "-", "-"]
    assert table["kid", "spn"][-1].startswith("0.0123") and not any(score == "kid_std" for score, _ in table)
    assert table["lpips_alex", "spn"] == ["no weights"] * 3
    assert "Warning: FID over fewer than 2,048 images depends on their number: 40-60% (1), All (2)." in text
    assert "\nspn: FID is of the last checkpoint.\n" in text

    content = json.loads(tables.as_json({"spn": spn}, {}))
    assert content["rows"]["spn"][-1]["kid_std"] == 0.001 and "fid" not in content["rows"]["spn"][0]
    assert content["missing"] == {"spn": missing} and content["notes"] == {"spn": ["FID is of the last checkpoint."]}
    header, _, _, total = [line.split("\t") for line in tables.tsv_table({"spn": spn}).splitlines()]
    assert dict(zip(header, total, strict=True))["fid"] == "12.345"
    with pytest.raises(ValueError, match="no scores that tables know"):
        tables.text_table({"spn": tables.Results(scored, {"All": {"fidd": 1.0}})})


def test_no_warning_of_fid_from_2048_images_on() -> None:
    enough = records([0.3] * 2048, [20.0] * 2048)
    assert "Warning" not in tables.text_table({"spn": tables.Results(enough, {"All": {"fid": 1.0}})})


def test_what_is_measured_inside_the_hole_needs_one() -> None:
    at_borders = records([0.0, 0.3, 1.0], [math.inf, 20.0, 20.0]) | {"border_mae": np.array([0.0, 0.2, 0.0])}
    # no border without a hole, nor without a known pixel
    assert tables.rows_of(at_borders)[-1].means["border_mae"] == 0.2
    of_holes = records([0.0, 0.3, 0.3], [math.inf, 20.0, 20.0]) | {"hole_mae": np.array([0.0, 0.2, 0.3])}
    by_bin = {row.bin: row.means["hole_mae"] for row in bins.rows_of(of_holes)}
    assert by_bin["All"] == by_bin["20-40%"] == pytest.approx(0.25)
    assert math.isnan(by_bin["0%"])


def test_means_over_samples_stand_beside_the_best_of_them() -> None:
    method = with_diversity([0.3, 0.3], [0.02, 0.04]) | {"psnr_mean": np.array([18.0, 19.0]), "diversity_lpips": np.array([0.1, 0.2])}
    text = tables.text_table({"spn": method}, "probabilistic")
    table = table_of(text)
    assert table["psnr", "spn"][-1] == "20.00 ± 0.00"
    assert table["psnr_mean", "spn"][-1].startswith("18.50 ± ")
    assert table["diversity_lpips", "spn"][-1].startswith("0.1500 ± ")
    assert "the one of best PSNR is scored" in text


def test_methods_on_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="same pairs"):
        tables.text_table({"a": records([0.3], [1]), "b": records([0.5], [1])})
    with pytest.raises(ValueError, match="same pairs"):
        tables.text_table({"a": records([0.3], [1]), "b": records([0.31], [1])})


def test_names_of_methods_cannot_break_a_table() -> None:
    method = records([0.3], [1])
    assert r"| a\|b " in tables.text_table({"a|b": method})
    for make in (tables.text_table, tables.tsv_table, tables.latex_table):
        with pytest.raises(InputError, match="neither tabs nor line breaks: 'a\\\\tb'"):
            make({"a\tb": method})


def test_tsv_has_every_digit() -> None:
    lines = [line.split("\t") for line in tables.tsv_table({"spn": records([0.3, 0.3], [1 / 3, 1 / 3])}).splitlines()]
    scores = ["psnr", "ssim", "mae"]
    assert lines[0] == ["method", "hole", "images", "identical", *scores, *(f"{score}_ci95" for score in scores), "source"]
    assert float(lines[1][4]) == np.float32(1 / 3)
    assert [line[1] for line in lines[1:]] == ["20-40%", "40-60%", "All"]
    assert {line[-1] for line in lines[1:]} == {"measured"}


def check_tabulars(text: str) -> None:
    """What a LaTeX run would stumble over: cells of a line, pairs of braces and dollars, characters
    with a meaning.
    """
    open_columns = None
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        if found := re.fullmatch(r"\\begin\{tabular\}\{(l+r*)\}", line):
            open_columns = len(found[1])
        elif line == r"\end{tabular}":
            open_columns = None
        elif open_columns is not None and line != r"\hline":
            assert line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == open_columns - 1, line
        assert line.count("$") % 2 == 0 and line.count("{") == line.count("}"), line
        assert not re.search(r"(?<!\\)[%#_]", line), line
    assert open_columns is None


def test_latex_is_a_plain_tabular_that_escapes_names() -> None:
    method = tables.Results(with_diversity([0.3, 0.5], [0.02, 0.03]), {"All": {"fid": 5.0}}, [], {"kid": "no weights, 50 % & more"})
    text = tables.latex_table({"open_cv 100%": method, "mean": records([0.3, 0.5], [20, 20])})
    check_tabulars(text)
    assert text.startswith("\\begin{tabular}{llrrr}\n")
    assert r"PSNR $\uparrow$ & open\_cv 100\% & 20.00 & 20.00 & 20.00 $\pm$ 0.00 \\" in text
    assert r" & mean & " in text and r"no weights, 50 \% \& more" in text
    for macro in ("toprule", "multirow", "usepackage"):
        assert macro not in text
    for label in (r"20--40\,\%", r"FID $\downarrow$", r"Diversity, L1 $\uparrow$"):
        assert label in text
    assert "% ± is half of the 95 % interval" in text


def test_every_printed_score_has_a_label_in_latex() -> None:
    scores = {score.removesuffix("_mean") for score in bins.SCORES if score not in tables.NOT_PRINTED}
    assert scores <= tables.LATEX_LABELS.keys()


@pytest.mark.parametrize("kind", ["deterministic", "probabilistic"])
def test_the_papers_figures_stand_with_ours_where_they_may(kind: str) -> None:
    quotation = paper.quote("paris_streetview", kind, [])
    assert quotation.comparable
    methods = {"spn": tables.Results(records([0.1, 0.3, 0.3, 0.5], [30, 20, 21, 19]), {"All": {"fid": 50.0}})}
    text = tables.text_table(methods, kind, quotation)
    table = table_of(text)
    bins = ["20-40%", "40-60%", "All"]
    assert table["score", "method"] == ["0-20%", *bins]
    expected = ["-", "29.76", "24.67", "29.69"] if kind == "deterministic" else ["35.03", "28.71", "23.66", "28.56"]
    assert table["psnr", "SPN (quoted)"] == expected
    assert table["mae_x10", "spn"][-1] == "0.1540 ± 0.0000" and ("mae", "spn") not in table
    assert table["mae_x10", "SPN (quoted)"][-1] == ("0.154" if kind == "deterministic" else "0.179")
    assert ("ssim_gaussian", "SPN (quoted)") not in table
    assert tables.NOT_COMPARABLE not in text and "What differs" not in text
    assert "(quoted): Zhang et al." in text
    # where the paper disagrees with itself
    assert ("0.886 and 0.154" in text) == (kind == "deterministic")
    check_tabulars(tables.latex_table(methods, kind, quotation))
    assert "SPN (quoted)" in tables.latex_table(methods, kind, quotation)


def test_the_papers_figures_of_other_images_stand_apart() -> None:
    quotation = paper.quote("places2", "deterministic", ["4 images, the paper 12,000"])
    methods = {"spn": records([0.1, 0.3, 0.3, 0.5], [30, 20, 21, 19])}
    ours = tables.text_table(methods)
    text = tables.text_table(methods, quotation=quotation)
    assert text.startswith(ours + "\n### From the paper (different images and masks; not comparable)\n\n| score")
    assert "quoted" not in ours and "What differs: 4 images, the paper 12,000." in text
    table = table_of(text[len(ours) :])
    assert table["score", "method"] == ["20-40%", "40-60%", "All"]
    assert table["mae_x10", "SPN"] == ["0.158", "0.351", "0.185"]

    latex = tables.latex_table(methods, quotation=quotation)
    check_tabulars(latex)
    assert latex.count(r"\begin{tabular}") == 2 and "\n" + tables.NOT_COMPARABLE + "\n" in latex


def test_files_tell_quoted_figures_from_measured_ones() -> None:
    methods = {"SPN": records([0.3, 0.5], [20, 19])}
    for differences, source in ([], "quoted"), (["another size"], "quoted, not comparable"):
        quotation = paper.quote("celebahq", "probabilistic", differences)
        header, *lines = [line.split("\t") for line in tables.tsv_table(methods, "probabilistic", quotation).splitlines()]
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        assert [row["source"] for row in rows] == ["measured"] * 4 + [source] * 12
        assert float(rows[3]["mae_x10"]) == pytest.approx(0.154) and float(rows[3]["mae"]) == pytest.approx(0.0154)
        assert rows[-1]["method"] == "SPN (quoted)" and rows[-1]["hole"] == "All"
        assert [rows[-1][score] for score in ("psnr", "ssim", "mae", "mae_x10", "fid")] == ["28.90", "0.881", "nan", "0.160", "4.08"]
        content = json.loads(tables.as_json(methods, {}, "probabilistic", quotation))["paper"]
        assert (content["comparable"], content["heading"]) == (not differences, tables.NOT_COMPARABLE if differences else "quoted")
        assert {"method": "DSI", "score": "fid", "hole": "0-20%", "printed": "7.15"} in content["figures"]


def with_diversity(holes: list[float], diversity: list[float]) -> dict[str, np.ndarray]:
    return records(holes, [20.0] * len(holes)) | {"diversity": np.array(diversity, np.float32)}


def test_diversity_is_a_column_where_a_method_has_it_and_a_dash_where_one_has_not() -> None:
    methods = {"mean": records([0.3], [18]), "spn": with_diversity([0.3], [0.03125])}
    table = table_of(tables.text_table(methods))
    assert (table["diversity", "mean"], table["diversity", "spn"]) == (["-", "-", "-"], ["0.0312", "-", "0.0312"])
    assert "diversity" not in tables.text_table({"mean": methods["mean"]})

    header, first, *_, total = [line.split("\t") for line in tables.tsv_table(methods).splitlines()]
    column = header.index("diversity")
    assert (total[0], total[column], first[0], first[column]) == ("spn", "0.03125", "mean", "nan")
    content = json.loads(tables.as_json(methods, {}))
    assert content["rows"]["spn"][-1]["diversity"] == 0.03125 == content["images"]["spn"]["diversity"][0]
    assert "diversity" not in content["rows"]["mean"][-1]


def test_pictures_without_a_hole_are_left_out_of_the_mean_of_diversity() -> None:
    method = with_diversity([0.0, 0.3, 0.5], [0.0, 0.02, 0.04])
    assert bins.rows_of(method)[-1].means["diversity"] == pytest.approx(0.03)
    assert tables.diversity_in_words(method, 5) == (
        "mean pairwise distance between samples inside the hole: 0.0300 (of 1; over 2 pictures, 5 samples each)\n"
    )
    one, none = with_diversity([0.3], [0.02]), with_diversity([0.0], [0.0])
    assert "over 1 picture, 2 samples each" in tables.diversity_in_words(one, 2)
    assert "not defined, no picture has a hole" in tables.diversity_in_words(none, 2)
    assert json.loads(tables.as_json({"spn": none}, {}))["rows"]["spn"][-1]["diversity"] is None


def test_json_is_strict_and_keeps_every_picture() -> None:
    text = tables.as_json({"spn": records([0.0, 0.3], [np.inf, 20])}, {"step": 7})
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["about"] == {"step": 7}
    assert content["images"]["spn"]["psnr"] == [None, 20]
    assert content["images"]["spn"]["hole"] == [0, 0.3]
    assert content["images"]["spn"]["bin"] == ["0%", "20-40%"]
    total = content["rows"]["spn"][-1]
    assert total.pop("ci95") == {"psnr": None, "ssim": pytest.approx(0.392), "mae": 0}
    assert total == {"hole": "All", "images": 2, "identical": 1, "psnr": 20, "ssim": 0.7, "mae": 0.0154}

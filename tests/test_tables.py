import json
import math

import numpy as np
import pytest

from spn_jax import tables


def records(holes: list[float], psnr: list[float]) -> dict[str, np.ndarray]:
    n = len(holes)
    return {
        "hole": np.array(holes),
        "bin": tables.bins_of(np.array(holes)),
        "psnr": np.array(psnr, np.float32),
        "ssim": np.linspace(0.5, 0.9, n),
        "mae": np.full(n, 0.0154),
    }


def test_bins_are_open_below_and_closed_above() -> None:
    rows = tables.rows_of(records([0.2, 0.2001, 0.4, 0.4001, 0.6, 0.6001], [1, 2, 3, 4, 5, 6]))
    assert [(row.bin, row.images) for row in rows] == [("0-20%", 1), ("20-40%", 2), ("40-60%", 2), ("60-100%", 1), ("All", 6)]
    assert [row.means["psnr"] for row in rows] == [1, 2.5, 4.5, 6, 3.5]


def test_every_picture_is_in_one_row_and_in_all() -> None:
    holes = np.concatenate([np.linspace(0, 1, 101), [0.0, 1.0]])
    rows = tables.rows_of(records(list(holes), list(np.ones(103))))
    assert rows[-1].bin == "All"
    assert rows[-1].images == sum(row.images for row in rows[:-1]) == 103
    assert rows[0].bin == "0%" and rows[0].images == 2


def test_tenths_decide_where_they_are_known() -> None:
    measured, tenths = np.array([0.1999, 0.2001, 0.4013, 0.6003, 0.0]), np.array([2, 1, 3, 5, 0])
    assert tables.bins_of(measured, tenths).tolist() == ["20-40%", "0-20%", "20-40%", "40-60%", "0-20%"]
    assert tables.bins_of(measured).tolist() == ["0-20%", "20-40%", "40-60%", "60-100%", "0%"]


def test_the_papers_rows_are_shown_even_when_empty() -> None:
    rows = tables.rows_of(records([0.5], [20]))
    assert [(row.bin, row.images) for row in rows] == [("20-40%", 0), ("40-60%", 1), ("All", 1)]
    assert math.isnan(rows[0].means["psnr"])


def test_infinite_psnr_is_left_out_of_the_mean_and_said_so() -> None:
    method = records([0.0, 0.3, 0.3], [np.inf, 20, 30])
    total = tables.rows_of(method)[-1]
    assert (total.means["psnr"], total.identical, total.images) == (25, 1, 3)
    assert total.means["ssim"] == pytest.approx(0.7)
    assert "spn: 1 of 3 results equal the photo" in tables.text_table({"spn": method})


def test_all_identical_is_an_infinite_mean() -> None:
    assert tables.rows_of(records([0.0], [np.inf]))[0].means["psnr"] == math.inf


def test_text_table_puts_methods_side_by_side() -> None:
    spn, mean = records([0.3, 0.5], [25.123, 20]), records([0.3, 0.5], [18, 15])
    lines = tables.text_table({"spn": spn, "mean": mean}).splitlines()
    assert lines[0].split("|")[1:6] == ["   hole ", " images ", " psnr spn ", " psnr mean ", " ssim spn "]
    assert lines[2].replace(" ", "") == "|20-40%|1|25.12|18.00|0.5000|0.5000|0.0154|0.0154|"
    assert len({len(line) for line in lines}) == 1


def test_methods_on_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="same pairs"):
        tables.text_table({"a": records([0.3], [1]), "b": records([0.5], [1])})


def test_tsv_has_every_digit() -> None:
    lines = [line.split("\t") for line in tables.tsv_table({"spn": records([0.3, 0.3], [1 / 3, 1 / 3])}).splitlines()]
    assert lines[0] == ["method", "hole", "images", "identical", "psnr", "ssim", "mae"]
    assert float(lines[1][4]) == np.float32(1 / 3)
    assert [line[1] for line in lines[1:]] == ["20-40%", "40-60%", "All"]


def with_diversity(holes: list[float], diversity: list[float]) -> dict[str, np.ndarray]:
    return records(holes, [20.0] * len(holes)) | {"diversity": np.array(diversity, np.float32)}


def test_diversity_is_a_column_where_a_method_has_it_and_a_dash_where_one_has_not() -> None:
    methods = {"mean": records([0.3], [18]), "spn": with_diversity([0.3], [0.03125])}
    lines = tables.text_table(methods).splitlines()
    assert lines[0].replace(" ", "").endswith("|diversitymean|diversityspn|")
    assert lines[2].replace(" ", "").endswith("|-|0.0312|")
    assert len({len(line) for line in lines}) == 1
    assert "diversity" not in tables.text_table({"mean": methods["mean"]})

    header, *_, total = [line.split("\t") for line in tables.tsv_table(methods).splitlines()]
    assert (header[-1], total[0], total[-1]) == ("diversity", "spn", "0.03125")
    assert tables.tsv_table(methods).splitlines()[1].endswith("\tnan")
    content = json.loads(tables.as_json(methods, {}))
    assert content["rows"]["spn"][-1]["diversity"] == 0.03125 == content["images"]["spn"]["diversity"][0]
    assert "diversity" not in content["rows"]["mean"][-1]


def test_pictures_without_a_hole_are_left_out_of_the_mean_of_diversity() -> None:
    method = with_diversity([0.0, 0.3, 0.5], [0.0, 0.02, 0.04])
    assert tables.rows_of(method)[-1].means["diversity"] == pytest.approx(0.03)
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
    assert content["rows"]["spn"][-1] == {"hole": "All", "images": 2, "identical": 1, "psnr": 20, "ssim": 0.7, "mae": 0.0154}

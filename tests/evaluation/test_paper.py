import pytest

from spn_jax.errors import InputError
from spn_jax.evaluation import paper

# Sums of the columns, added up by a program from the text of the paper and not from the figures in
# paper.py: a slip changes one.
COLUMN_SUMS: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("deterministic", "places2"): {
        "ssim": (6.888, 5.642, 6.739),
        "psnr": (198.73, 164.85, 206.44),
        "mae": (1.644, 3.604, 1.9),
        "fid": (88.01, 247.96, 64.85),
    },
    ("deterministic", "celeba"): {
        "ssim": (6.535, 5.871, 6.426),
        "psnr": (214.04, 175.71, 221.39),
        "mae": (0.686, 1.694, 0.857),
        "fid": (74.89, 105.28, 52.29),
    },
    ("deterministic", "paris_streetview"): {
        "ssim": (7.146, 6.062, 6.894),
        "psnr": (227.47, 188.53, 226.69),
        "mae": (1.071, 2.679, 1.488),
        "fid": (348.09, 735.94, 371.76),
    },
    ("probabilistic", "celebahq"): {
        "ssim": (2.897, 2.649, 2.277, 2.609),
        "psnr": (103.94, 81.16, 68.2, 84.42),
        "mae": (0.128, 0.456, 0.993, 0.522),
        "fid": (19.19, 38.41, 65.7, 19.09),
    },
    ("probabilistic", "paris_streetview"): {
        "ssim": (1.91, 1.74, 1.423, 1.667),
        "psnr": (66.99, 54.87, 44.94, 54.49),
        "mae": (0.112, 0.312, 0.796, 0.44),
        "fid": (74.49, 118.09, 198.96, 114.97),
    },
}
METHODS = {"deterministic": ["EC", "MFE", "RFR", "RN", "WF", "CTSDG", "SPL", "SPN"], "probabilistic": ["PIC", "DSI", "SPN"]}
# dashes in the paper
NO_FIGURES = {("deterministic", "celeba"): ["WF"], ("probabilistic", "paris_streetview"): ["DSI"]}
OWN = {"own_images": True, "masks": 12_000, "image_size": 256, "quantise": "truncate"}


@pytest.mark.parametrize("kind, data_set", COLUMN_SUMS)
def test_columns_add_up_to_those_of_the_paper(kind: str, data_set: str) -> None:
    figures = paper.figures(data_set, kind)
    for score, sums in COLUMN_SUMS[kind, data_set].items():
        for bin, total in zip(paper.BINS[kind], sums, strict=True):
            column = [figure for figure in figures if (figure.score, figure.bin) == (score, bin)]
            expected = [method for method in METHODS[kind] if method not in NO_FIGURES.get((kind, data_set), [])]
            assert [figure.method for figure in column] == expected
            assert sum(float(figure.printed) for figure in column) == pytest.approx(total, abs=1e-9), (score, bin)
            assert {len(figure.printed.split(".")[1]) for figure in column} == {3 if score in ("ssim", "mae") else 2}
    assert {figure.table for figure in figures} == {paper.TABLES[kind]}


@pytest.mark.parametrize("kind, data_set", COLUMN_SUMS)
def test_larger_holes_score_worse(kind: str, data_set: str) -> None:
    """A figure in the wrong column would break the order of the bins."""
    quotation = paper.quote(data_set, kind, [])
    for score in ("psnr", "ssim", "mae", "fid"):
        for method in quotation.methods(score):
            row = [float(quotation.printed(method, score, bin) or "nan") for bin in paper.BINS[kind][:-1]]
            assert row == sorted(row, reverse=score in ("psnr", "ssim")), (method, score)


def test_figures_are_as_printed() -> None:
    quotation = paper.quote("celeba", "deterministic", [])
    assert quotation.printed("SPN", "mae", "40-60%") == "0.200"  # the zeros stay
    assert quotation.printed("WF", "psnr", "All") is None
    assert quotation.printed("SPL", "psnr", "All") == "33.23"


def test_further_tables_agree_with_table_1_but_where_the_note_says() -> None:
    quotation = paper.quote("paris_streetview", "deterministic", [])

    def row(method: str) -> list[str | None]:
        return [quotation.printed(method, score, "All") for score in ("ssim", "psnr", "mae", "fid")]

    of: dict[tuple[int, str], list[str]] = {}
    for figure in (*paper.ablations(3), *paper.ablations(4), *paper.ablations(5)):
        of.setdefault((figure.table, figure.method), []).append(figure.printed)
    assert of[3, "64 x 64 (SPL)"] == row("SPL")
    assert of[3, "64 x 64, 128 x 128, 256 x 256 (SPN)"] == of[4, "8 blocks, 50M (SPN)"] == row("SPN")
    ours, theirs = of[5, "SPL w/ ASL"], row("SPL")
    assert (ours[0], ours[2], theirs[0], theirs[2]) == ("0.886", "0.154", "0.882", "0.161")
    assert (ours[1], ours[3]) == (theirs[1], theirs[3])
    assert all(number in quotation.notes[0] for number in ("0.886", "0.154", "0.882", "0.161", "SPL"))
    assert float(quotation.printed("WF", "fid", "20-40%") or "nan") < float(quotation.printed("SPN", "fid", "20-40%") or "nan")
    assert "33.20" in quotation.notes[1] and "34.00" in quotation.notes[1]
    assert paper.quote("celeba", "deterministic", []).notes == (paper.FID_NOTE,)


def test_costs_are_of_the_same_methods() -> None:
    assert {kind: list(costs) for kind, costs in paper.COSTS.items()} == METHODS
    assert (paper.COSTS["deterministic"]["SPN"].parameters, paper.COSTS["deterministic"]["SPN"].seconds) == ("50M", "0.05")


@pytest.mark.parametrize(
    "data_set, kind, settings",
    [
        ("celeba", "deterministic", {"images": 12_000, "crop": "center", "samples": 1}),
        ("places2", "deterministic", {"images": 12_000, "crop": "none", "samples": 1}),
        ("celebahq", "probabilistic", {"images": 2_800, "crop": "none", "samples": 5}),
        ("paris_streetview", "probabilistic", {"images": 100, "crop": "none", "samples": 5}),
    ],
)
def test_the_papers_protocol_has_no_differences(data_set: str, kind: str, settings: dict) -> None:
    settings = OWN | settings
    assert paper.differences(data_set, kind, **settings) == []
    others = {"own_images": False, "masks": 11_999, "image_size": 64, "quantise": "round", "images": 99, "samples": 3}
    others["crop"] = "none" if settings["crop"] == "center" else "center"
    others |= {"raw_results": True, "inception": "file another.pth, sha256 0123"}
    checked = settings | {"inception": "file pt_inception-2015-12-05-6726825d.pth, sha256 0123"}
    assert paper.differences(data_set, kind, **checked) == []
    for name, other in others.items():
        assert len(paper.differences(data_set, kind, **settings | {name: other})) == 1, name
    every = paper.differences(data_set, kind, **others)
    assert len(every) == len(others)
    assert not paper.quote(data_set, kind, every).comparable


def test_one_of_a_kind_is_counted_as_one() -> None:
    alone = OWN | {"images": 1, "crop": "none", "samples": 1}
    assert paper.differences("paris_streetview", "probabilistic", **alone) == [
        "1 image, the paper 100",
        "the best of 1 completion, the paper of 5",
    ]


def test_what_the_paper_does_not_have_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="no data set facades; it has places2, celeba"):
        paper.quote("facades", "deterministic", [])
    with pytest.raises(InputError, match="no probabilistic figures for celeba; it has them for celebahq, paris_streetview"):
        paper.quote("celeba", "probabilistic", [])
    with pytest.raises(InputError, match="kind random must be"):
        paper.figures("celeba", "random")

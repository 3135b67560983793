"""Holds the printed figures of the paper's tables, and tells when ours may be compared with them.

The paper is Zhang et al., Pattern Recognition 2023. A figure is a string, so that 0.890 stays
0.890. MAE is printed times ten there ("x 10^-1": 0.154 means 0.0154, as on the axis of the paper's
Fig. 7). "SPN" is the row "Ours". A dash in the paper is a missing figure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from spn_jax.errors import InputError, counted

PRINTED_MAE = 10  # the paper prints the mean absolute error times this


@dataclass(frozen=True)
class DataSet:
    """A data set of the paper's tables.

    images: number of its test images, in the order of their list.
    """

    name: str
    images: int
    test_set: str
    cropped: bool = False  # to a centred square, before the resizing to 256 x 256


DATA_SETS = {
    "places2": DataSet("Places2", 12_000, "the first 12,000 images of the validation set"),
    "celeba": DataSet("CelebA", 12_000, "the first 12,000 images of the test set, cropped to a square about the centre", cropped=True),
    "paris_streetview": DataSet("Paris StreetView", 100, "the 100 test images"),
    "celebahq": DataSet("CelebA-HQ", 2_800, "2,800 test images"),
}
IMAGE_SIZE = 256
MASKS = 12_000  # irregular masks of Liu et al. (ECCV 2018)
# completions of an image; the one of best PSNR counts
SAMPLES = {"deterministic": 1, "probabilistic": 5}

# Columns: Places2, CelebA, Paris StreetView, each with 20-40 %, 40-60 %, All.
_TABLE_1 = """
ssim  EC     0.847 0.695 0.832  0.922 0.815 0.905  0.880  0.740 0.849
ssim  MFE    0.816 0.652 0.804  0.916 0.807 0.900  0.872  0.707 0.834
ssim  RFR    0.856 0.704 0.839  0.931 0.838 0.917  0.893  0.763 0.863
ssim  RN     0.875 0.726 0.855  0.941 0.852 0.925  0.891  0.756 0.861
ssim  WF     0.855 0.647 0.820  -     -     -      0.895  0.765 0.864
ssim  CTSDG  0.848 0.696 0.837  0.923 0.819 0.907  0.888  0.746 0.855
ssim  SPL    0.894 0.759 0.875  0.950 0.869 0.935  0.911  0.790 0.882
ssim  SPN    0.897 0.763 0.877  0.952 0.871 0.937  0.916  0.795 0.886
psnr  EC     24.17 20.32 25.07  29.47 24.08 30.34  27.65  22.81 27.50
psnr  MFE    22.89 19.13 23.94  29.03 23.85 30.13  27.22  22.07 27.07
psnr  RFR    24.38 20.42 25.48  30.33 25.09 31.38  28.32  23.71 28.36
psnr  RN     25.44 21.08 26.37  31.17 25.51 32.17  28.44  23.53 28.37
psnr  WF     24.57 19.31 24.77  -     -     -      28.66  23.88 28.21
psnr  CTSDG  24.16 20.36 25.54  29.48 24.21 30.62  28.08  23.39 28.11
psnr  SPL    26.47 22.05 27.55  32.17 26.43 33.23  29.34  24.47 29.38
psnr  SPN    26.65 22.18 27.72  32.39 26.54 33.52  29.76  24.67 29.69
mae   EC     0.221 0.456 0.248  0.111 0.274 0.140  0.148  0.364 0.204
mae   MFE    0.266 0.542 0.296  0.119 0.284 0.145  0.159  0.412 0.226
mae   RFR    0.212 0.445 0.240  0.099 0.237 0.121  0.134  0.324 0.182
mae   RN     0.187 0.412 0.218  0.091 0.229 0.115  0.136  0.337 0.187
mae   WF     0.216 0.583 0.285  -     -     -      0.132  0.330 0.185
mae   CTSDG  0.220 0.452 0.237  0.109 0.267 0.135  0.138  0.338 0.189
mae   SPL    0.164 0.363 0.191  0.080 0.203 0.102  0.115  0.292 0.161
mae   SPN    0.158 0.351 0.185  0.077 0.200 0.099  0.109  0.282 0.154
fid   EC      9.63 23.04  6.08  10.41 14.40 7.24   43.45  87.70 44.95
fid   MFE    21.07 48.74 15.38  11.12 15.42 7.95   47.22 100.85 50.33
fid   RFR     8.43 21.82  5.27  10.22 14.57 7.15   37.51  77.15 39.44
fid   RN      9.27 25.00  6.10  11.39 18.00 8.16   64.78 134.00 66.54
fid   WF      7.75 42.46  9.37  -     -     -      33.20  73.31 38.36
fid   CTSDG  15.88 42.19 12.36  11.32 17.57 8.14   46.52  98.76 49.19
fid   SPL     8.30 23.98  5.56  10.27 12.94 6.88   41.41  93.41 46.13
fid   SPN     7.68 20.73  4.73  10.16 12.38 6.77   34.00  70.76 36.82
"""

# Columns: CelebA-HQ, Paris StreetView, each with 0-20 %, 20-40 %, 40-60 %, All.
_TABLE_2 = """
ssim  PIC  0.962 0.875 0.742 0.860  0.944 0.844  0.660 0.802
ssim  DSI  0.964 0.880 0.758 0.868  -     -      -     -
ssim  SPN  0.971 0.894 0.777 0.881  0.966 0.896  0.763 0.865
psnr  PIC  33.80 26.56 22.13 27.49  31.96 26.16  21.28 25.93
psnr  DSI  34.42 26.92 22.75 28.03  -     -      -     -
psnr  SPN  35.72 27.68 23.32 28.90  35.03 28.71  23.66 28.56
mae   PIC  0.046 0.161 0.359 0.187  0.067 0.185  0.473 0.261
mae   DSI  0.044 0.155 0.329 0.175  -     -      -     -
mae   SPN  0.038 0.140 0.305 0.160  0.045 0.127  0.323 0.179
fid   PIC   8.82 16.44 27.82  8.71  40.42 72.43 120.10 68.00
fid   DSI   7.15 12.98 21.34  6.30  -     -      -     -
fid   SPN   3.22  8.99 16.54  4.08  34.07 45.66  78.86 46.97
"""

TABLES = {"deterministic": 1, "probabilistic": 2}
BINS = {"deterministic": ("20-40%", "40-60%", "All"), "probabilistic": ("0-20%", "20-40%", "40-60%", "All")}
_COLUMNS = {"deterministic": ("places2", "celeba", "paris_streetview"), "probabilistic": ("celebahq", "paris_streetview")}

# The other tables are for Paris StreetView, deterministic, all hole ratios: ssim, psnr, mae, fid.
_ABLATION_SCORES = ("ssim", "psnr", "mae", "fid")
_ABLATIONS = {
    3: {  # sizes of the priors for P = 256
        "64 x 64 (SPL)": ("0.882", "29.38", "0.161", "46.13"),
        "64 x 64, 128 x 128": ("0.884", "29.45", "0.158", "41.04"),
        "64 x 64, 128 x 128, 256 x 256 (SPN)": ("0.886", "29.69", "0.154", "36.82"),
    },
    4: {  # SPADE residual blocks in the middle, and parameters
        "4 blocks, 38M": ("0.881", "29.40", "0.162", "41.00"),
        "8 blocks, 50M (SPN)": ("0.886", "29.69", "0.154", "36.82"),
        "12 blocks, 62M": ("0.886", "29.61", "0.155", "42.50"),
    },
    5: {  # what SPL learns its prior from
        "SPL w/ ASL": ("0.886", "29.38", "0.154", "46.13"),
        "SPL w/ S_prior^L": ("0.881", "29.21", "0.163", "42.30"),
    },
}


@dataclass(frozen=True)
class Chart:
    """A bar chart of the paper. Its bars have no numbers, so they can only be compared by eye.

    axes: {score: (lowest, highest)} of the numbers along the axis, as printed; empty if the paper's
        text holds none.
    said: what the paper's text concludes from it.
    """

    bars: tuple[str, ...]
    axes: Mapping[str, tuple[str, str]]
    said: str


# Figures 7 and 8 are for Paris StreetView, deterministic. MAE is not times ten there.
CHARTS = {
    7: Chart(
        ("Ours Full", "Ours w/o S", "Ours w/o Multi-Scale", "Ours w/ Concat"),
        {"ssim": ("0.865", "0.89"), "psnr": ("28.4", "29.8"), "mae": ("0.0145", "0.018"), "fid": ("0", "50")},
        "without distillation a significant decline, with a single-scale prior a large one; SPADE facilitates joint modelling",
    ),
    8: Chart(
        ("ASL", "YoloV5 (MS COCO)", "HRNet (ADE20K)", "edge maps"),
        {},
        "edge maps are worst; object-level tasks, as detection and multi-label classification, may be better to learn from",
    ),
}


@dataclass(frozen=True)
class Weight:
    """A loss weight (sections 3.3.1 and 3.3.2): the values that the paper tried, its choice, and
    our settings.
    """

    tried: tuple[str, ...]
    chosen: str
    settings: tuple[str, ...]


WEIGHTS = {
    "lambda1": Weight(("0.1", "1", "10"), "10", ("loss.reconstruction",)),
    "lambda2": Weight(("0.1", "1", "10"), "1", ("loss.adversarial_weight",)),
    "lambda3": Weight(("0.1", "1", "10"), "10", ("loss.feature_matching", "loss.perceptual")),
    "lambda4": Weight(("0.1", "1", "10"), "1", ("loss.diversity",)),
    "lambda5": Weight(("0.01", "0.05", "0.1"), "0.05", ("loss.kl",)),
}


@dataclass(frozen=True)
class Cost:
    """Parameters and seconds an image on one RTX 3090 ("GTX3090" in the paper), which does not
    state batch, precision and what was timed.
    """

    parameters: str
    seconds: str


# These are from Table 6, and for the probabilistic models from the text of section 4.6.
COSTS = {
    "deterministic": {
        "EC": Cost("21M", "0.03"),
        "MFE": Cost("130M", "0.05"),
        "RFR": Cost("30M", "0.02"),
        "RN": Cost("11M", "0.04"),
        "WF": Cost("49M", "0.06"),
        "CTSDG": Cost("52M", "0.05"),
        "SPL": Cost("45M", "0.04"),
        "SPN": Cost("50M", "0.05"),
    },
    "probabilistic": {"PIC": Cost("10M", "0.03"), "DSI": Cost("256M", "25"), "SPN": Cost("68M", "0.07")},
}

# Inconsistencies of the paper, by data set and kind.
_NOTES = {
    ("paris_streetview", "deterministic"): (
        "The paper has two figures each for SPL's SSIM and MAE on Paris StreetView: 0.882 and 0.161 in Tables 1 and 3, 0.886 and 0.154 "
        "(which Table 1 gives for SPN) in Table 5; PSNR and FID are the same there.",
        "The paper's text says that SPN has the best FID of all compared models; in Table 1 WF has a lower one for 20-40 % on Paris "
        "StreetView (33.20; SPN 34.00).",
    ),
}


@dataclass(frozen=True)
class Figure:
    """One figure of the paper, as printed; MAE is times PRINTED_MAE."""

    table: int
    method: str
    score: str  # psnr, ssim, mae, fid
    bin: str  # "20-40%", ..., "All"
    printed: str


def figures(data_set: str, kind: str) -> tuple[Figure, ...]:
    """Returns every figure of Table 1 (deterministic) or 2 (probabilistic) for a data set, in the
    paper's order; none if the table lacks it.

    Args:
        data_set: one of DATA_SETS.
        kind: deterministic or probabilistic.

    Raises:
        InputError: there is no such data set or kind.
    """
    _check(data_set, kind)
    if data_set not in _COLUMNS[kind]:
        return ()
    text = _TABLE_1 if kind == "deterministic" else _TABLE_2
    return tuple(figure for line in text.strip().splitlines() for figure in _of_line(line.split(), data_set, kind))


def _of_line(cells: Sequence[str], data_set: str, kind: str) -> Iterator[Figure]:
    score, method, *values = cells
    bins = BINS[kind]
    first = _COLUMNS[kind].index(data_set) * len(bins)
    for bin, printed in zip(bins, values[first : first + len(bins)], strict=True):
        if printed != "-":
            yield Figure(TABLES[kind], method, score, bin, printed)


def ablations(table: int) -> tuple[Figure, ...]:
    """Returns the figures of Table 3, 4 or 5: Paris StreetView, deterministic, all hole ratios.
    Raises KeyError for another table.
    """
    return tuple(
        Figure(table, name, score, "All", printed)
        for name, row in _ABLATIONS[table].items()
        for score, printed in zip(_ABLATION_SCORES, row, strict=True)
    )


@dataclass(frozen=True)
class Quotation:
    """The paper's figures for a data set, and the reasons, if any, why they cannot be compared with
    ours.
    """

    data_set: str
    kind: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether images and definitions of the scores are the paper's. The masks of its pairs were
        never published.
        """
        return not self.differences

    @property
    def source(self) -> str:
        """The source of the figures, for people."""
        return f"Zhang et al., Pattern Recognition 2023, Table {TABLES[self.kind]}, {DATA_SETS[self.data_set].name}"

    def methods(self, score: str) -> list[str]:
        """Returns the methods that have a figure of this score, in the paper's order."""
        return list(dict.fromkeys(figure.method for figure in self.figures if figure.score == score))

    def printed(self, method: str, score: str, bin: str) -> str | None:
        """Returns a figure as printed, None if the paper has none."""
        found = (f.printed for f in self.figures if (f.method, f.score, f.bin) == (method, score, bin))
        return next(found, None)


def notes_of(data_set: str) -> tuple[str, ...]:
    """Returns the paper's inconsistencies about a data set, deterministic."""
    return _NOTES.get((data_set, "deterministic"), ())


# the published file; its SHA-256 was checked against its name when it was dumped
PYTORCH_FID = "pt_inception-2015-12-05-6726825d"
FID_NOTE = "that the paper's FID has pytorch-fid's Inception is an assumption"


def quote(data_set: str, kind: str, differences: Sequence[str]) -> Quotation:
    """Returns the paper's figures, to be shown with ours.

    Args:
        data_set, kind: as of `figures`.
        differences: the result of `differences`. If there are any, the figures are shown in a
            separate block.

    Raises:
        InputError: there is no such data set or kind, or the paper has no figures of this kind for
            it.
    """
    found = figures(data_set, kind)
    if not found:
        raise InputError(f"the paper has no {kind} figures for {data_set}; it has them for {', '.join(_COLUMNS[kind])}")
    return Quotation(data_set, kind, found, (*_NOTES.get((data_set, kind), ()), FID_NOTE), tuple(differences))


def differences(
    data_set: str,
    kind: str,
    *,
    own_images: bool,
    images: int,
    masks: int,
    image_size: int,
    crop: str,
    quantise: str,
    samples: int,
    raw_results: bool = False,
    inception: str | None = None,
) -> list[str]:
    """Lists, a clause each, how an evaluation differs from the paper's; empty if images and
    definitions are the same.

    Args:
        data_set, kind: as of `figures`.
        own_images: whether the images are known to be those of DATA_SETS[data_set].test_set.
        images, masks: their numbers; the paper draws from all 12,000 irregular masks.
        image_size, crop, quantise: data.image_size, data.crop and eval.quantise.
        samples: completions of an image.
        raw_results: whether results were scored with their files' pixels where the photo was known.
        inception: the origin of Inception's weights; None without FID.

    Raises:
        InputError: there is no such data set or kind.
    """
    _check(data_set, kind)
    of_paper = DATA_SETS[data_set]
    wanted = {
        f"the images are not known to be the paper's ({of_paper.name}: {of_paper.test_set})": own_images,
        f"{counted(images, 'image')}, the paper {of_paper.images:,}": images == of_paper.images,
        f"{counted(masks, 'mask')}, the paper the {MASKS:,} irregular ones": masks == MASKS,
        f"images of {image_size} pixels, the paper {IMAGE_SIZE}": image_size == IMAGE_SIZE,
        f"images are {_crop(crop == 'center')}, in the paper {_crop(of_paper.cropped)}": (crop == "center") == of_paper.cropped,
        f"8-bit values by quantise={quantise}, the released program truncates": quantise == "truncate",
        f"the best of {counted(samples, 'completion')}, the paper of {SAMPLES[kind]}": samples == SAMPLES[kind],
        "known pixels are not the photo's own in all results": not raw_results,
        f"Inception's weights are those of {inception}, not pytorch-fid's": inception is None or PYTORCH_FID in inception,
    }
    return [difference for difference, same in wanted.items() if not same]


def _crop(cropped: bool) -> str:
    return "cropped to a square" if cropped else "not cropped"


def _check(data_set: str, kind: str) -> None:
    if data_set not in DATA_SETS:
        raise InputError(f"the paper has no data set {data_set}; it has {', '.join(DATA_SETS)}")
    if kind not in TABLES:
        raise InputError(f"kind {kind} must be deterministic or probabilistic")

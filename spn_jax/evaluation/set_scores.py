"""Computes FID, KID, P-IDS and U-IDS of sets of pictures, bin by bin, from Inception's features."""

import warnings
from collections.abc import Mapping

import numpy as np

from spn_jax.errors import InputError
from spn_jax.evaluation.bins import ALL, LAYOUTS, Records
from spn_jax.metrics import sets as distances

NOT_COMPUTED = "not computed"


def score_sets(
    truth: Mapping[str, np.ndarray], completed: Mapping[str, np.ndarray], records: Records, layout: str
) -> tuple[dict[str, dict[str, float]], dict[str, str], list[str]]:
    """Returns the scores `OF_SETS` of one method.

    Args:
        truth, completed: features (n, d) of photos and completed photos, in the records' order.
            "inception" has pytorch-fid's resizing and serves all scores but fid_clean, which takes
            "inception_clean" with clean-fid's.
        layout: one of `LAYOUTS`.

    Returns:
        {bin: {score: value}}, without what cannot be computed; {score: why not, in a few words};
            sentences for the reader.
    """
    of_sets: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    notes: list[str] = []
    names = records[LAYOUTS[layout].key]
    for bin in LAYOUTS[layout].bins:
        chosen = np.flatnonzero(names == bin.name)
        # The features of all pictures stay in their files.
        of_bin = {kind: (truth[kind], completed[kind]) for kind in truth}
        if bin is not ALL:
            of_bin = {kind: (photos[chosen], results[chosen]) for kind, (photos, results) in of_bin.items()}
        real, fake = of_bin["inception"]
        if not len(real):
            continue
        scores = of_sets.setdefault(bin.name, {})
        if len(real) < 2:
            missing |= dict.fromkeys(("fid", "fid_clean", "kid"), "under 2 images")
        else:
            scores["fid"] = distances.frechet_distance(real, fake)
            scores["fid_clean"] = distances.frechet_distance(*of_bin["inception_clean"])
            scores["kid"], scores["kid_std"] = distances.kernel_distance(real, fake)
        if len(real) < distances.IDS_LEAST:
            few = f"under {distances.IDS_LEAST:,} images"
            missing = dict.fromkeys(("p_ids", "u_ids"), few) | missing
        elif missing.get("p_ids") != NOT_COMPUTED:
            try:
                scores["p_ids"], scores["u_ids"], converged = _ids(real, fake)
                if not converged:
                    notes.append(f"P-IDS and U-IDS of {bin.name}: the linear SVM did not converge")
            except InputError as error:  # scikit-learn is not installed; the other scores are still computed
                missing |= dict.fromkeys(("p_ids", "u_ids"), NOT_COMPUTED)
                notes.append(str(error))
    return of_sets, missing, notes


def _ids(real: np.ndarray, fake: np.ndarray) -> tuple[float, float, bool]:
    """Returns P-IDS, U-IDS, and whether the fit converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p_ids, u_ids = distances.ids(real, fake)
    return p_ids, u_ids, not any("converge" in str(warning.message) for warning in caught)

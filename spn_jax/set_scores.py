"""Scores of whole sets of pictures, bin by bin: FID, KID, P-IDS and U-IDS from Inception's features."""

import warnings

import numpy as np

from spn_jax import distances, tables
from spn_jax.errors import InputError


def score_sets(
    truth: np.ndarray, completed: np.ndarray, records: tables.Records, layout: str
) -> tuple[dict[str, dict[str, float]], dict[str, str], list[str]]:
    """The scores `tables.OF_SETS` of one method.

    Args:
        truth, completed: features (n, d) of photos and completed photos, row by row those of the records.
        layout: one of `tables.LAYOUTS`.

    Returns:
        {bin: {score: value}}, without what cannot be computed; {score: why it was not, in a few words}; sentences for the reader.
    """
    of_sets: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    notes: list[str] = []
    names = records[tables.LAYOUTS[layout].key]
    for bin in tables.LAYOUTS[layout].bins:
        chosen = np.arange(len(names)) if bin is tables.ALL else np.flatnonzero(names == bin.name)
        if not len(chosen):
            continue
        real, fake = truth[chosen], completed[chosen]
        scores = of_sets.setdefault(bin.name, {})
        if len(chosen) < 2:
            missing |= dict.fromkeys(("fid", "kid"), "under 2 images")
        else:
            scores["fid"] = distances.frechet_distance(real, fake)
            scores["kid"], scores["kid_std"] = distances.kernel_distance(real, fake)
        if len(chosen) < distances.IDS_LEAST:
            missing |= dict.fromkeys(("p_ids", "u_ids"), f"under {distances.IDS_LEAST:,} images")
        elif "p_ids" not in missing or missing["p_ids"].startswith("under"):
            try:
                scores |= _ids(real, fake, bin.name, notes)
            except InputError as error:  # scikit-learn is not installed: the rest goes on
                missing |= dict.fromkeys(("p_ids", "u_ids"), "not computed")
                notes.append(str(error))
    return of_sets, missing, notes


def _ids(real: np.ndarray, fake: np.ndarray, bin: str, notes: list[str]) -> dict[str, float]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p_ids, u_ids = distances.ids(real, fake)
    if any("onverge" in str(warning.message) for warning in caught):
        notes.append(f"P-IDS and U-IDS of {bin}: the linear SVM did not converge")
    return {"p_ids": p_ids, "u_ids": u_ids}

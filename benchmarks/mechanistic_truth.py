"""Which assumptions hold, from expected counts: sizes in natural-log fold change over genes.

Counts cannot show a change of all genes together, so expression is each gene's share of the genes
compared, in counts of a cell of average depth; a tenth of a count is added before the logarithm, so
that genes with next to no counts do not count. The perturbation's own gene is left out of both.

Expected counts come as two halves whose errors are independent; squares are products of halves.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

__all__ = ["BLOCKED", "REGION", "truth_table"]

REGION = 0.05  # RMS log-fold change below which an effect or a change is as good as none
BLOCKED = 0.5  # slope on the control's response below which a response is blocked
PSEUDOCOUNT = 0.1

Expected = dict[tuple[str, str], np.ndarray]  # (perturbation, medium) → (2, times, genes) counts


def truth_table(
    expected: Expected, genes: list[str], times: tuple[float, ...], drift: bool
) -> pd.DataFrame:
    """Say of every assumption and condition whether it holds.

    Parameters
    ----------
    expected
        Of perturbations and "control", in media "baseline" and, where there is one, another.
    drift
        Whether to say if the necessary assumption holds.

    Returns
    -------
    DataFrame with assumption, perturbation, media, time_from, time_to, last, size, holds. Sizes:

    - silent_at_baseline: RMS effect in baseline medium, root mean square over times
    - steady: RMS change of a condition between two times; necessary: of controls in baseline medium
    - steady_vs_control: the same less the control's own change in that medium
    - no_response: slope of the perturbation's response on the control's, over genes, at the last
      time

    `last` tells the change between the last two times from those between other pairs of times; the
    other assumptions have one row, without times.
    """
    levels = {}

    def level(perturbation: str, media: str, own: str) -> np.ndarray:
        key = (perturbation, media, own)
        if key not in levels:
            levels[key] = _log_level(expected, perturbation, media, np.array(genes) != own)
        return levels[key]

    rows = []
    for perturbation, media in expected:
        treated = level(perturbation, media, perturbation)
        control = level("control", media, perturbation)
        where = {"perturbation": perturbation, "media": media}
        for i, j in combinations(range(len(times)), 2):
            pair = {"time_from": times[i], "time_to": times[j], "last": i == len(times) - 2}
            change, baseline = (x[:, j] - x[:, i] for x in (treated, control))
            unedited = perturbation == "control"
            name = "necessary" if unedited and media == "baseline" else "steady"
            if name == "steady" or drift:
                rows.append({"assumption": name} | where | pair | {"size": _rms(change)})
            if not unedited:
                size = _rms(change - baseline)
                rows.append({"assumption": "steady_vs_control"} | where | pair | {"size": size})
        if perturbation == "control":
            continue
        if media == "baseline":
            size = _rms(treated - control)
            rows.append({"assumption": "silent_at_baseline"} | where | {"size": size})
        else:
            resting = [level(p, "baseline", perturbation) for p in (perturbation, "control")]
            slope = _slope((treated - resting[0])[:, -1], (control - resting[1])[:, -1])
            rows.append({"assumption": "no_response"} | where | {"size": slope})
    columns = ["assumption", "perturbation", "media", "time_from", "time_to", "last", "size"]
    table = pd.DataFrame(rows, columns=columns)
    table["last"] = table["last"].isna() | (table["last"] == True)  # noqa: E712
    limit = np.where(table["assumption"] == "no_response", BLOCKED, REGION)
    return table.assign(holds=table["size"] < limit)


def _log_level(expected: Expected, perturbation: str, media: str, genes: np.ndarray) -> np.ndarray:
    """(2, times, genes) log of counts, as shares of the genes compared."""
    depth = expected["control", "baseline"][..., genes].sum(axis=-1).mean()
    counts = expected[perturbation, media][..., genes]
    return np.log(depth * counts / counts.sum(axis=-1, keepdims=True) + PSEUDOCOUNT)


def _rms(halves: np.ndarray) -> float:
    """Root mean square of (2, ...) halves, without their errors."""
    return float(np.sqrt(max(np.mean(halves[0] * halves[1]), 0.0)))


def _slope(response: np.ndarray, control: np.ndarray) -> float:
    """Slope of a response (2, genes) on the control's."""
    cross = response[0] @ control[1] + response[1] @ control[0]
    return float(cross / (2 * control[0] @ control[1]))

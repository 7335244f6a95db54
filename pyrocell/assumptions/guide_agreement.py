"""Whether the guides of a perturbation do the same: what one of them has of its own.

Each guide is set against the other guides of its perturbation, cells of the same medium and time
beside each other. Guides may differ in strength, and some of their cells may not have responded:
the mean of a guide's cells is then a function of the effect f alone, near a straight line with a
bend, so what lies along f and f² is taken out of the contrast. The rest is off-target: its root
mean square over genes is below the region if the guides agree. One guide at most is taken to be
off, each as likely as the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyrocell.assumptions.testability import CELLS_OF_A_GUIDE
from pyrocell.contrasts.evidence import ContrastEstimate, log_mean_exp, log_size_evidence
from pyrocell.contrasts.grids import between, normalised, realised
from pyrocell.contrasts.levels import ConditionLevels
from pyrocell.screen.screen import Screen

__all__ = [
    "AGREE",
    "Found",
    "GuideContrast",
    "GuideGroups",
    "OffTarget",
    "guide_contrasts",
    "guide_groups",
    "one_is_off",
]

AGREE = 0.9  # prior probability that all guides of a perturbation agree
Found = dict[str, "np.ndarray | float"]  # what `OffTarget.of` gives
_SMALLEST, _LARGEST = 1 / 20, 30  # sizes considered, in units of the region


@dataclass(frozen=True)
class GuideGroups:
    """Cells by condition and guide.

    Attributes
    ----------
    of_cell
        (N,) group of every cell.
    condition, guide
        (groups,) of each; the guide is -1 for controls and where it is not known.
    n_cells
        (groups,).
    """

    of_cell: np.ndarray
    condition: np.ndarray
    guide: np.ndarray
    n_cells: np.ndarray


def guide_groups(screen: Screen) -> GuideGroups:
    """Groups of the cells of a screen with guides."""
    assert screen.cell_guide is not None  # asked of screens with guides alone
    n_guides = len(screen.guides) + 1
    guide = np.where(screen.is_control[screen.cell_condition], -1, screen.cell_guide)
    code = screen.cell_condition * n_guides + guide + 1
    met, of_cell, n_cells = np.unique(code, return_inverse=True, return_counts=True)
    return GuideGroups(of_cell, met // n_guides, met % n_guides - 1, n_cells)


@dataclass(frozen=True)
class GuideContrast:
    """A guide against the other guides of its perturbation, in one medium.

    Attributes
    ----------
    perturbation, media, guide
        Labels, and number of the guide.
    weights
        By group.
    conditions
        {condition: weight} of the conditions that it is taken over, summing to one.
    """

    perturbation: str
    media: str
    guide: int
    weights: Mapping[int, float]
    conditions: Mapping[int, float]


def guide_contrasts(screen: Screen, groups: GuideGroups) -> list[GuideContrast]:
    """Every guide with cells enough, against the others of its perturbation, medium by medium."""
    table = pd.DataFrame(
        {"condition": groups.condition, "guide": groups.guide, "n": groups.n_cells}
    )
    table = table[(table["guide"] >= 0) & (table["n"] >= CELLS_OF_A_GUIDE)]
    names = screen.conditions.loc[table["condition"], ["perturbation", "media"]]
    table = table.assign(
        perturbation=names["perturbation"].to_numpy(), media=names["media"].to_numpy()
    )
    out = []
    for (perturbation, medium), mine in table.groupby(["perturbation", "media"], sort=False):
        for guide in dict.fromkeys(mine["guide"]):
            parts = []
            for c, here in mine.groupby("condition"):
                own, others = here[here["guide"] == guide], here[here["guide"] != guide]
                if len(own) and len(others):
                    told = 1 / (1 / own["n"].sum() + 1 / others["n"].sum())
                    parts.append((int(str(c)), own, others, float(told)))
            whole = sum(told for *_, told in parts)
            weights: dict[int, float] = {}
            for _, own, others, told in parts:
                share = told / whole
                weights[int(own.index[0])] = share
                for row, n in others["n"].items():
                    weights[int(str(row))] = -share * n / others["n"].sum()
            if weights:
                conditions = {c: told / whole for c, *_, told in parts}
                out.append(
                    GuideContrast(str(perturbation), str(medium), int(guide), weights, conditions)
                )
    return out


class OffTarget:
    """What guides have of their own, from levels of groups of cells.

    Parameters
    ----------
    levels
        Of `GuideGroups`.
    effect
        (C, G) effects of conditions, natural log.
    loading
        (d, G) axes of the cells' resting state.
    region
        Root mean square below which a guide does what the others do.
    """

    def __init__(
        self,
        levels: ConditionLevels,
        effect: np.ndarray,
        loading: np.ndarray,
        region: float,
        min_count: float,
    ):
        self.levels, self.effect, self.loading = levels, effect, loading
        self.min_count = min_count
        low = between(_SMALLEST * region, region)
        self.sizes = np.concatenate([low, between(region, _LARGEST * region)])
        self.inside = self.sizes < region

    def of(self, screen: Screen, contrast: GuideContrast) -> Found:
        """Evidence of one contrast.

        Returns
        -------
        `against`: log Bayes factor of every size outside the region against the inside; `p_rope`
        with sizes log-uniform; `size`, `lower`, `upper` of the root mean square; `n_genes`.
        """
        levels = self.levels
        found = levels.contrast(contrast.weights)
        variance = found.variance + levels.batch_variance(contrast.weights)
        genes = levels.expected[list(contrast.weights)].min(0) >= self.min_count
        carried = screen.genotype[list(contrast.conditions)].any(0)
        targets = screen.target[carried]
        genes[targets[targets >= 0]] = False  # each guide cuts its own target where it does
        if not genes.any():
            return {"against": np.zeros(1), "p_rope": np.nan, "size": np.nan, "n_genes": 0}
        effect = sum(w * self.effect[c] for c, w in contrast.conditions.items())
        value = _without(found.value[genes], variance[genes], np.asarray(effect)[genes])
        noisy = ContrastEstimate(
            value, variance[genes], np.sqrt(found.spread) * self.loading[:, genes]
        )
        log, square = log_size_evidence(noisy, self.sizes, self.loading[:, genes])
        inside = self.inside
        steps = np.gradient(np.log(self.sizes))
        weights = np.where(inside, 0.5 / inside.sum(), 0.5 / (~inside).sum())
        flat = normalised(log + np.log(steps))
        size, lower, upper = realised(square, normalised(log + np.log(weights)), 0.9)
        return {
            "against": log[~inside] - log_mean_exp(log[inside]),
            "p_rope": float(flat[inside].sum()),
            "size": size,
            "lower": lower,
            "upper": upper,
            "n_genes": int(genes.sum()),
        }


def _without(value: np.ndarray, variance: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """A contrast without what lies along an effect and its square, by weighted least squares."""
    if not effect.any():
        return value
    basis = np.stack([effect, effect**2], 1)
    root = 1 / np.sqrt(variance)
    fitted, *_ = np.linalg.lstsq(basis * root[:, None], value * root, rcond=1e-6)
    return value - basis @ fitted


def one_is_off(against: Sequence[np.ndarray], prior: float) -> tuple[np.ndarray, np.ndarray]:
    """The same for a perturbation, and for each guide the probability that it agrees.

    Parameters
    ----------
    against
        For each guide, log Bayes factors of sizes outside the region against all agreeing.
    prior
        Probability that all agree.

    Returns
    -------
    (sizes,) log Bayes factors of one guide being off by each size, and (guides,) probabilities.
    """
    each = np.stack(against)  # (guides, sizes)
    together = log_mean_exp(each)
    odds = np.log1p(-prior) - np.log(prior) - np.log(len(each)) + log_mean_exp(each.T)
    top = max(0.0, float(odds.max()))
    weight = np.exp(odds - top)
    return together, 1 - weight / (np.exp(-top) + weight.sum())

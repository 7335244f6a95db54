"""Can this fit be believed: every check as a line that can fail, with the reason and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binom

from pyrocell.posterior.effect_checks import FEW_TO_JUDGE, disagreements
from pyrocell.posterior.guides import response_share
from pyrocell.report.perturbations import measured_effects
from pyrocell.report.quality import KEPT_BEST, convergence

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["LEVELS", "overall", "verdicts"]

LEVELS = ("bad", "look", "good", "not tested")
_NAMES = 5  # that are written out
_AGAINST, _SHUFFLED = "effects against the counts alone", "labels shuffled"
_FEW_CELLS = 20
_OUTSIDE = 0.05  # share of a perturbation's well-counted genes outside the counts' own 99%
_MANY = 0.1  # share of conditions of which that may be said
# Slope of the counts' own effects on those reported: shrinkage makes it 1 or more.
_SLOPE, _ERRORS = 0.9, 3
_ENOUGH_INSIDE, _POOR_INSIDE = 0.9, 0.8  # share of genes in the predictive band
_CHANCE = 0.01  # probability of so many genes outside the band, below which it is not chance
_INFORMATIVE, _FEWEST_GENES = 1.0, 10  # width of a band over its value, and genes with such a band
_STATISTICS = {"mean": "mean", "variance": "variance", "zero_fraction": "fraction of zeros"}


class Verdict(NamedTuple):
    """One check."""

    check: str
    value: str
    level: str
    verdict: str
    reason: str
    remedy: str


def verdicts(model: PyroCell, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Judge a fit by what could be wrong with it.

    Parameters
    ----------
    model, tables
        A trained model, and the tables of its report.

    Returns
    -------
    DataFrame with a row per check: check; value, as text; level, "good", "look" (look at it before
    you believe what depends on it), "bad", or "not tested"; verdict, in a few words; reason and
    remedy, whole sentences. Docs: "Can this fit be believed?".
    """
    found = [
        _training(model),
        *_predictive(tables.get("predictive_check")),
        _against_counts(model, tables),
        *_of_effects(tables["effect_checks"]),
        _shuffled(model, tables.get("shuffle_check")),
        _cells(tables.get("perturbations")),
        _layout(tables["aliased"]),
    ]
    return pd.DataFrame([v for v in found if v is not None], columns=list(Verdict._fields))


def overall(found: pd.DataFrame) -> tuple[str, str]:
    """The worst level of all checks, and a sentence that says what it means."""
    bad, look = (found.loc[found["level"] == level, "check"].tolist() for level in ("bad", "look"))
    if bad:
        return "bad", f"Do not use these effects before this is mended: {_some(bad)}."
    if look:
        return "look", f"The fit can be believed but for what this touches: {_some(look)}."
    silent = found.loc[found["level"] == "not tested", "check"].tolist()
    if {_AGAINST, _SHUFFLED} <= set(silent):
        return "look", (
            "Nothing that was done tests the effects: counts are too few to compare them with, and "
            "labels were not shuffled. Shuffle them before you believe a list."
        )
    if silent:
        return "good", f"Every check that was made is good. Not tested: {_some(silent)}."
    return "good", "The fit can be believed: every check is good."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
    return ", ".join(map(str, names[:_NAMES])) + more


# ---------------------------------------------------------------------- training
def _training(model: PyroCell) -> Verdict:
    """Judge by the best epoch, not by the slope at the end alone."""
    history, name = model.history, "training"
    course = convergence(history)
    value = f"ELBO {course.elbo:.2f} nats per cell after {len(history)} epochs"
    cells = "held-out" if course.held_out else "training"
    if course.verdict == KEPT_BEST:
        return Verdict(
            name, value, "good", KEPT_BEST,
            "The held-out evidence fell towards the end, so the parameters are those of its best "
            "epoch.", "",
        )  # fmt: skip
    past = _fell_since(history)
    if past is not None:
        epoch, fall = past
        return Verdict(
            name, value, "bad", "trained too long",
            f"The held-out evidence was highest at epoch {epoch} of {len(history)} and fell by "
            f"{fall:.2f} nats per cell since: the model has learned its training cells by heart.",
            f"Train for about {epoch} epochs (max_epochs={epoch}; --max-epochs {epoch}).",
        )  # fmt: skip
    said = {
        "converged": ("good", f"The evidence of {cells} cells stood still at the end.", ""),
        "still rising": (
            "look",
            f"The evidence of {cells} cells still rose by {course.rise:.2f} ± {course.error:.2f} "
            "nats per cell over the last quarter.",
            f"Train longer (max_epochs={2 * len(history)}; --max-epochs {2 * len(history)}).",
        ),
        "falling": (
            "bad",
            f"The evidence of {cells} cells fell by {-course.rise:.2f} ± {course.error:.2f} nats "
            "per cell over the last quarter.",
            "Train shorter (max_epochs; --max-epochs).",
        ),
        "too short to tell": (
            "look",
            "There are too few checks of the evidence to tell whether training has arrived.",
            "Leave the number of epochs to pyrocell, or train longer (max_epochs; --max-epochs).",
        ),
    }[course.verdict]
    return Verdict(name, value, said[0], course.verdict, *said[1:])


def _fell_since(history: pd.DataFrame) -> tuple[int, float] | None:
    """Best epoch, and the fall since, where held-out evidence fell for a good part of training.

    Means of three checks are compared. A fall counts if it is above three standard errors of such a
    mean and above 2% of the whole rise, and if it began in the first 70% of training.
    """
    if "validation_elbo" not in history:
        return None
    curve = history["validation_elbo"]
    curve = curve[curve.ne(curve.shift())].dropna()
    if len(curve) < 8:
        return None
    running = curve.rolling(3).mean().dropna()
    best = int(np.argmax(running.to_numpy()))
    steps = np.diff(curve.to_numpy())
    error = 1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2) / np.sqrt(3)
    fall = float(running.iloc[best] - running.iloc[-1])
    whole = float(running.iloc[best] - running.iloc[0])
    early = running.index[best] < 0.7 * history.index[-1]
    if not early or fall <= max(3 * np.sqrt(2) * error, 0.02 * whole):
        return None
    return int(running.index[best]), fall


# ---------------------------------------------------------------------- counts
def _predictive(check: pd.DataFrame | None) -> list[Verdict]:
    """Genes in the predictive band, of those whose band is narrow enough to say something."""
    if check is None:
        return []
    found = []
    # of what the model expects: taken of what was seen, genes far off would be chosen
    width = (check["upper"] - check["lower"]) / check["expected"].abs().clip(lower=1e-12)
    for statistic, mine in check.groupby("statistic", sort=False):
        name = f"{_STATISTICS[str(statistic)]} of genes"
        told = mine[width[mine.index] <= _INFORMATIVE]
        if len(told) < min(_FEWEST_GENES, len(mine)):
            found.append(
                Verdict(
                    name, f"{len(told)} of {len(mine)} genes can tell", "not tested", "",
                    "Counts are so few that data drawn from the model may have nearly any "
                    f"{_STATISTICS[str(statistic)]} of a gene.", "",
                )
            )  # fmt: skip
            continue
        inside = float(told["inside"].mean())
        outside = int((~told["inside"]).sum())
        by_chance = binom.sf(outside - 1, len(told), 1 - _ENOUGH_INSIDE) >= _CHANCE
        level = "good" if inside >= _ENOUGH_INSIDE else "look"
        # effects are differences of means; of few genes some are outside by chance
        if statistic == "mean" and inside < _POOR_INSIDE and not by_chance:
            level = "bad"
        reason = (
            f"Of {len(told):,} genes that can tell, {inside:.0%} have their observed "
            f"{_STATISTICS[str(statistic)]} inside 99% of data drawn from the model"
        )
        worst = told[~told["inside"]].assign(
            away=lambda t: (t["observed"] - t["expected"]).abs() / (t["upper"] - t["lower"])
        )
        names = worst.nlargest(_NAMES, "away")["gene"].astype(str).tolist()
        reason += "." if level == "good" else f"; farthest off: {', '.join(names)}."
        remedy = "" if level == "good" else (
            "Look at these genes: are the counts raw, is a batch or cell type unnamed, is one gene "
            "most of a cell? Train longer if the evidence still rose."
        )  # fmt: skip
        found.append(Verdict(name, f"{inside:.0%} inside", level, "", reason, remedy))
    return found


def _against_counts(model: PyroCell, tables: dict[str, pd.DataFrame]) -> Verdict | None:
    """Effects of each condition beside what its counts alone allow."""
    name = _AGAINST
    found = tables.get("disagreement")
    if found is None:
        effects = measured_effects(model.screen, tables)
        if effects is None:
            return None
        share = response_share(model.fitted)
        found = disagreements(model.perturbation_effects, effects, share)
    judged = found[found["n_genes"] >= FEW_TO_JUDGE]
    if not len(judged):
        return Verdict(
            name, "", "not tested", "",
            f"No condition has {FEW_TO_JUDGE} genes with 50 counts in both groups of cells, so the "
            "counts alone allow nearly every effect.",
            "Look at lists (fdr) only, and at what is found with labels shuffled.",
        )  # fmt: skip
    far = judged["outside"] > _OUTSIDE
    flat = judged["slope"] + _ERRORS * judged["slope_se"] < _SLOPE
    off = judged[far | flat].sort_values("slope")
    precision = 1 / judged["slope_se"] ** 2
    slope = float((judged["slope"] * precision).sum() / precision.sum())
    error = float(precision.sum() ** -0.5)
    value = f"{len(off):,} of {len(judged):,} conditions off; slope {slope:.2f} ± {error:.2f}"
    if flat.any() or slope + _ERRORS * error < _SLOPE or far.sum() > max(1, _MANY * len(judged)):
        level = "bad"
    else:
        level = "look" if len(off) else "good"
    said = (
        f"The counts' own effects rise by {slope:.2f} ± {error:.2f} per unit of those reported (1: "
        "as large as reported; above: reported smaller than seen, as by shrinkage)"
    )
    if level == "good":
        return Verdict(name, value, level, "", f"{said}, and no condition stands out.", "")
    places = [
        f"{r.perturbation} in {r.media} (slope {r.slope:.2f}, {r.outside:.0%} of genes outside)"
        for r in off.itertuples()
    ]
    stand = f"; these stand out: {_some(places)}" if places else ""
    return Verdict(
        name, value, level, "effects and counts disagree",
        f"{said}{stand}. Outside: the posterior mean is not in the 99% interval of the counts.",
        "Read these conditions from perturbation_effects(shrunken=False). Are their labels right, "
        "do their cells come from few batches, do batches or donors respond differently?",
    )  # fmt: skip


def _of_effects(checks: pd.DataFrame) -> list[Verdict]:
    """The effect that all perturbations share."""
    found = []
    for check, value, verdict, _ in checks.itertuples(index=False):
        if not str(check).startswith("effect common"):
            continue
        good = verdict == "good"
        reason = (
            f"What all perturbations do alike has a root mean square of {value:.3f} (natural log) "
            "over the best-counted genes"
        )
        found.append(
            Verdict(
                str(check), f"{value:.3f}", "good" if good else "bad",
                "" if good else "controls differ from all others",
                reason + ("." if good else ": all labels differ from control in the same way."),
                "" if good else "Were controls handled, sorted or sequenced as the others were? "
                "Compare perturbations with each other, or take rarely active ones as control.",
            )
        )  # fmt: skip
    return found


def _shuffled(model: PyroCell, table: pd.DataFrame | None) -> Verdict | None:
    """What is found where labels mean nothing."""
    name = _SHUFFLED
    if not model.screen.perturbations:
        return None
    if table is None:
        return Verdict(
            name, "", "not tested", "",
            "Whether anything is found in these cells when labels mean nothing was not tried.",
            "Try it: model.shuffle_check(), in the shell --shuffle-check, or pyrocell check "
            "--shuffle before a fit; it takes a part of the time of the fit.",
        )  # fmt: skip
    worst = table.sort_values(["verdict", "excluding_zero"]).iloc[-1]
    good = bool((table["verdict"] == "good").all())
    value = f"{worst['excluding_zero']:.1%} of intervals, {worst['listed']:.2%} listed"
    return Verdict(
        name, value, "good" if good else "bad", "" if good else "effects where there are none",
        f"With labels shuffled within batch, medium and time, {worst['excluding_zero']:.1%} of 90% "
        f"intervals exclude zero and {worst['listed']:.2%} of the pairs are listed.",
        "" if good else "Effects of this screen are falsely certain. Name batches, donors and cell "
        "types that were not named, and read shrunken=False.",
    )  # fmt: skip


# ---------------------------------------------------------------------- the screen
def _cells(table: pd.DataFrame | None) -> Verdict | None:
    if table is None:
        return None
    few = table[table["n_cells"] < _FEW_CELLS].sort_values("n_cells")
    value = f"{len(few):,} of {len(table):,} perturbations below {_FEW_CELLS}"
    if not len(few):
        return Verdict("cells", value, "good", "", "Every perturbation has 20 cells or more.", "")
    names = [f"{k} ({n})" for k, n in zip(few["perturbation"], few["n_cells"])]
    return Verdict(
        "cells", value, "look", "few cells",
        f"Little can be said of perturbations with so few cells: {_some(names)}.",
        "What is not listed for them may still be there.",
    )  # fmt: skip


def _layout(aliased: pd.DataFrame) -> Verdict:
    mixed = aliased[~aliased["estimable"]]
    value = f"{len(mixed):,} of {len(aliased):,} contrasts not estimable"
    if not len(mixed):
        return Verdict(
            "layout", value, "good", "", "Every contrast can be told from the batches.", ""
        )
    more = f" (and {len(mixed) - 1:,} more)" if len(mixed) > 1 else ""
    return Verdict(
        "layout", value, "look", "mixed with batches",
        str(mixed["reason"].iloc[0]) + more + ".",
        "Read these contrasts together with the batches; tables/aliased names each.",
    )  # fmt: skip

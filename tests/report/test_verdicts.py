"""A fit that cannot be believed ends in a red line, and a good one does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell.report import convergence
from pyrocell.report.tables import collect
from pyrocell.report.verdicts import LEVELS, overall, verdicts
from pyrocell.training.best_epoch import mark

AGAINST = "effects against the counts alone"
STRONG = {"mean_library": 2000.0, "effect_rms": 0.4, "silent_fraction": 0.3, "batch_sd": 0.1}


@pytest.fixture(scope="module")
def model(make_screen, build):
    """Well-counted cells of few perturbations with effects to see, fitted long enough."""
    adata = make_screen(
        n_perturbations=6, n_genes=60, n_cells_per_condition=60, n_controls=200, **STRONG
    )
    model = build(adata)
    model.train(max_epochs=30, progress_bar=False)
    return model


@pytest.fixture(scope="module")
def tables(model):
    return collect(model, 50)


def level(found: pd.DataFrame, check: str) -> str:
    return found.set_index("check").loc[check, "level"]


def judged(model, tables, **changed) -> pd.DataFrame:
    """Verdicts with some tables replaced, and those that follow from them made again."""
    found = {k: v for k, v in tables.items() if k != "disagreement"} | changed
    return verdicts(model, found)


def curve(values: np.ndarray) -> pd.DataFrame:
    """A history that was checked at every epoch, its last parameters kept."""
    index = pd.RangeIndex(1, len(values) + 1, name="epoch")
    return mark(pd.DataFrame({"validation_elbo": values}, index=index), None)


def test_a_good_fit_has_no_red_line(model, tables):
    found = tables["verdicts"]
    assert not (found["level"] == "bad").any(), found[["check", "level", "reason"]].to_string()
    assert set(found["level"]) <= set(LEVELS)
    assert level(found, AGAINST) == "good" and overall(found)[0] in ("good", "look")
    for row in found.itertuples():
        assert row.reason.endswith(".") and (row.level in ("good", "not tested") or row.remedy)


@pytest.mark.parametrize("factor", [3.0, -1.0], ids=["three times as large", "of the other sign"])
def test_effects_that_counts_contradict_are_a_red_line(model, tables, factor):
    effects = tables["perturbation_effects"].copy()
    effects["mean"] *= factor
    found = judged(model, tables, perturbation_effects=effects)
    assert level(found, AGAINST) == "bad"
    assert overall(found)[0] == "bad" and AGAINST in overall(found)[1]


def test_labels_swapped_after_the_fit_are_named(model, tables):
    effects = tables["perturbation_effects"].copy()
    first, second = effects.groupby("perturbation")["mean"].std().nlargest(2).index
    swap = {first: second, second: first}
    effects["perturbation"] = effects["perturbation"].replace(swap)
    found = judged(model, tables, perturbation_effects=effects).set_index("check")
    assert found.loc[AGAINST, "level"] == "bad"
    assert first in found.loc[AGAINST, "reason"] and second in found.loc[AGAINST, "reason"]


def test_what_all_perturbations_do_alike_is_a_red_line(make_screen, build):
    adata = make_screen(
        n_perturbations=6,
        n_genes=60,
        n_cells_per_condition=60,
        n_controls=200,
        **(STRONG | {"effect_rms": 0.1}),
    )
    counts = adata.X.toarray()
    handled = (adata.obs["perturbation"] != "control").to_numpy()
    rng = np.random.default_rng(0)
    genes = rng.permutation(60)[:15]
    counts[np.ix_(handled, genes)] = rng.binomial(counts[np.ix_(handled, genes)].astype(int), 0.6)
    adata.X = counts
    model = build(adata)
    model.train(max_epochs=20, progress_bar=False)
    found = collect(model, 50)["verdicts"]
    assert level(found, "effect common to all perturbations") == "bad"


def test_training_is_judged_by_its_best_epoch(model, tables, monkeypatch):
    rng, epoch = np.random.default_rng(0), np.arange(60)
    noise = 0.05 * rng.normal(size=60)
    rising = -100 - 8 * np.exp(-epoch / 6)
    falls = rising - 0.02 * np.maximum(epoch - 25, 0)
    stands = rising + noise
    short = rising[:3]
    for values, expected in ((falls + noise, "bad"), (stands, "good"), (short, "look")):
        monkeypatch.setattr(type(model), "history", curve(values), raising=False)
        assert level(verdicts(model, tables), "training") == expected
    # The slope at the end alone calls a slow fall of half of the training converged.
    slow = rising - 0.2 * (epoch > 25) - 0.004 * np.maximum(epoch - 25, 0) + noise
    assert convergence(curve(slow)).verdict == "converged"
    monkeypatch.setattr(type(model), "history", curve(slow), raising=False)
    assert level(verdicts(model, tables), "training") == "bad"


def test_effects_found_where_labels_mean_nothing_are_a_red_line(model, tables):
    row = {"media": "baseline", "time": np.nan, "excluding_zero": 0.4, "listed": 0.1}
    row |= {"common": 0.01, "p_below_5": 0.05, "verdict": "poor"}
    found = judged(model, tables, shuffle_check=pd.DataFrame([row]))
    assert level(found, "labels shuffled") == "bad"
    assert level(tables["verdicts"], "labels shuffled") == "not tested"


def test_genes_whose_band_is_wide_are_no_evidence(model, tables):
    check = tables["predictive_check"].copy()
    check["lower"], check["upper"], check["inside"] = 0.0, 10 * check["expected"] + 1, True
    found = judged(model, tables, predictive_check=check)
    assert level(found, "mean of genes") == "not tested"
    off = tables["predictive_check"].copy()
    off["observed"], off["inside"] = off["upper"] * 3, False
    assert level(judged(model, tables, predictive_check=off), "mean of genes") == "bad"


def test_few_cells_and_mixed_contrasts_are_named(fitted):
    found = collect(fitted, 20)["verdicts"].set_index("check")
    assert found.loc["cells", "level"] == "look"
    few = fitted.screen.conditions.groupby("perturbation")["n_cells"].sum().drop("control")
    assert few[few < 20].index[0] in found.loc["cells", "reason"]


def test_a_fit_whose_effects_nothing_tests_is_not_called_good(tables):
    found = tables["verdicts"].assign(level="good")
    assert overall(found)[0] == "good"
    found.loc[found["check"].isin([AGAINST, "labels shuffled"]), "level"] = "not tested"
    level_, sentence = overall(found)
    assert level_ == "look" and "not shuffled" in sentence
    found.loc[found["check"] == "labels shuffled", "level"] = "good"
    assert overall(found)[0] == "good"


def test_a_few_genes_outside_by_chance_are_no_red_line(model, tables):
    """12 genes can tell and 3 are outside: so many are in one good fit of 50."""
    check = tables["predictive_check"]
    mean = check[check["statistic"] == "mean"]
    told = mean.assign(lower=0.9 * mean["expected"], upper=1.1 * mean["expected"])
    few = told.head(12).assign(inside=[True] * 9 + [False] * 3)
    assert level(judged(model, tables, predictive_check=few), "mean of genes") == "look"
    many = told.head(40).assign(inside=[True] * 30 + [False] * 10)
    assert level(judged(model, tables, predictive_check=many), "mean of genes") == "bad"

"""Held-out evaluation: nothing leaks, anchors are what they say, and the table is whole."""

from __future__ import annotations

import sys
import types

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import pyrocell
from pyrocell import metrics
from pyrocell.errors import ScreenError
from pyrocell.evaluation.anchors import ANCHORS, SeenCells
from pyrocell.evaluation.held_out import METRICS, _pseudobulks

FAST = {"max_epochs": 2, "gene_level": False}
pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")


@pytest.fixture(scope="module")
def screen(make_screen):
    """Five knockouts and a pair, two media, two times, two batches."""
    return make_screen(
        media=1, times=(1.0, 2.0), combinations=True, n_cells_per_condition=16, n_perturbations=5
    )


@pytest.fixture(scope="module")
def model(screen, build):
    return build(screen)


def evaluated(model, held_out, **options):
    options = {"n_samples": 8, "n_halves": 2, "min_cells": 4, "train": FAST} | options
    return metrics.evaluate(model, held_out, **options)


@pytest.fixture(scope="module")
def by_time(model):
    return evaluated(model, metrics.splits(model, "time", n_folds=2)[:1])


def test_every_condition_has_a_row_for_the_model_and_each_anchor(by_time):
    scores = by_time.scores
    groups = scores.groupby(["split", "perturbation", "media", "time"], dropna=False)["method"]
    assert len(groups) >= 2
    for _, methods in groups:
        assert list(methods) == ["pyrocell", *ANCHORS]
    assert set(METRICS) < set(scores) and list(by_time.summary.index) == ["pyrocell", *ANCHORS]
    assert scores["mse"].notna().all() and (scores["mse_noise"] > 0).all()
    own = scores.set_index("method").loc["pyrocell"]
    assert own["coverage"].between(0, 1).all() and (own["crps"] > 0).all()
    assert scores.loc[scores["method"] == "additive", "note"].str.contains("own change").all()
    again = by_time.predicted
    assert again.n_obs == len(scores) + len(groups)
    level = np.asarray(again.X)[(again.obs["method"] == "pyrocell").to_numpy()]
    lower = again.layers["lower"][(again.obs["method"] == "pyrocell").to_numpy()]
    assert np.isfinite(level).all() and (lower <= level + 0.5).all()


def test_counts_of_held_out_cells_change_no_prediction(screen, build):
    """The law of the whole: what is held out may be anything, and nobody notices."""
    name = sorted(set(screen.obs["perturbation"]) - {"control"})[-1]
    held = (screen.obs["perturbation"].astype(str).str.contains(name)).to_numpy()
    other = screen.copy()
    counts = other.X.toarray()
    counts[held] = counts[held][:, ::-1]  # depths stay
    other.X = sp.csr_matrix(counts)
    tables = [evaluated(build(adata), [name], external=()) for adata in (screen, other)]
    for method in ("pyrocell", "mean of the others", "no change"):
        first, second = (
            t.predicted[(t.predicted.obs["method"] == method).to_numpy()] for t in tables
        )
        np.testing.assert_array_equal(np.asarray(first.X), np.asarray(second.X))
    assert not tables[0].scores["mse"].equals(tables[1].scores["mse"])


def test_an_unseen_perturbation_is_the_mean_of_the_others_and_says_so(model):
    name = model.screen.perturbations[0]
    found = evaluated(model, [name])
    row = found.scores[found.scores["method"] == "pyrocell"].iloc[0]
    assert "never seen" in row["note"] and name in row["note"]
    additive = found.scores[found.scores["method"] == "additive"]
    assert additive["mse"].isna().all() and (additive["note"] != "").all()


def test_knowledge_is_handed_on_for_what_was_never_seen(model, monkeypatch):
    asked = []
    real = pyrocell.PyroCell.predict

    def predict(self, conditions, knowledge=None, **options):
        if knowledge is not None:
            asked.append((knowledge, set(conditions["perturbation"])))
            knowledge = "population"
        return real(self, conditions, knowledge=knowledge, **options)

    monkeypatch.setattr(pyrocell.PyroCell, "predict", predict)
    name = model.screen.perturbations[-1]
    found = evaluated(model, [name], knowledge="what is known")
    assert asked == [("what is known", {name})]
    assert "prior knowledge" in found.scores["note"].iloc[0]


def test_anchors_are_means_and_sums_of_changes(model):
    bulk, screen = _pseudobulks(model), model.screen
    a, b = screen.perturbations[:2]
    pair = screen.condition_of(f"{a}+{b}", "baseline", 2.0)
    seen = np.ones(len(screen.conditions), bool)
    seen[(screen.conditions["perturbation"] == f"{a}+{b}").to_numpy()] = False
    known = SeenCells(bulk, seen, 1)
    parts = [known.delta_of(screen.condition_of(n, "baseline", 2.0)) for n in (a, b)]
    np.testing.assert_allclose(known.additive(pair).delta, sum(parts))
    others = [screen.condition_of(n, "baseline", 2.0) for n in screen.perturbations]
    expected = np.mean([known.delta_of(c) for c in others], axis=0)
    np.testing.assert_allclose(known.mean_of_others(pair).delta, expected)
    seen[:] = True
    here, there = (screen.condition_of(a, "baseline", t) for t in (1.0, 2.0))
    seen[there] = False
    known = SeenCells(bulk, seen, 1)
    np.testing.assert_allclose(known.additive(there).delta, known.delta_of(here))
    assert known.additive(there).note == "own change in baseline at 1"


def test_a_level_is_matched_to_the_batches_of_the_cells_it_is_compared_with(model):
    bulk = _pseudobulks(model)
    pool = np.flatnonzero(bulk.screen.is_control[bulk.screen.cell_condition])
    batch = bulk.screen.cell_batch
    rows = np.flatnonzero(batch == 1)
    np.testing.assert_allclose(bulk.matched(pool, rows), bulk.level(pool[batch[pool] == 1]))


def test_no_gene_is_called_changed_among_random_halves_of_controls(make_screen, build):
    bulk = _pseudobulks(build(make_screen(n_genes=60, n_controls=200, seed=4)))
    pool = np.flatnonzero(bulk.screen.is_control[bulk.screen.cell_condition])
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        order = rng.permutation(pool)
        found.append(bulk.changed(order[:100], order[100:], np.arange(60)).any())
    assert np.mean(found) <= 0.2


def test_an_adata_is_evaluated_with_the_options_that_are_given(screen):
    pyrocell.PyroCell.setup_anndata(screen, media_key="media", time_key="time")
    small = {"n_latent": 2, "n_response": 2, "n_hidden": 16}
    held = [sorted(set(screen.obs["perturbation"]) - {"control"})[0]]
    found = evaluated(screen, {"perturbation": held, "time": [2.0]}, constructor=small)
    assert set(found.scores["time"]) == {2.0}
    with pytest.raises(ScreenError, match="min_cells"):
        evaluated(screen, {"perturbation": held}, constructor=small, min_cells=10_000)


# ---------------------------------------------------------------------- tools of others
class Evaluator:
    """What cell-eval's evaluator takes and gives."""

    def __init__(self, adata_pred, adata_real, control_pert, pert_col, num_threads, outdir):
        assert list(adata_pred.var_names) == list(adata_real.var_names)
        assert set(adata_pred.obs[pert_col]) == set(adata_real.obs[pert_col])
        assert control_pert in set(adata_real.obs[pert_col])
        assert adata_real.X.min() >= 0 and adata_pred.X.min() >= 0
        self.real, self.key, self.control = adata_real, pert_col, control_pert

    def compute(self, write_csv):
        assert not write_csv
        names = sorted(set(self.real.obs[self.key]) - {self.control})
        table = pd.DataFrame({"perturbation": names, "mse": 0.5, "overlap_at_N": 0.25})
        return table, table


def test_tools_of_others_score_the_same_predictions(model, by_time, monkeypatch):
    assert by_time.external.empty  # neither is installed here
    cell_eval = types.ModuleType("cell_eval")
    cell_eval.MetricsEvaluator = Evaluator
    scperteval = types.ModuleType("scperteval")
    scperteval.prepare = lambda adata, protocols, **options: adata

    def score(prepared, protocol, predictions):
        names = sorted(set(predictions.obs["perturbation"]) - {"control"})
        return types.SimpleNamespace(
            per_perturbation=pd.DataFrame({"perturbation": names, "score": 1.0})
        )

    scperteval.score = score
    for module in (cell_eval, scperteval):
        module.__spec__ = types.SimpleNamespace(name=module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    found = metrics.external_scores(by_time, model)
    assert set(found["tool"]) == {"cell_eval", "scperteval"}
    assert set(found["method"]) == {"pyrocell", "mean of the others", "additive", "no change"}
    assert set(found["metric"]) >= {"mse", "overlap_at_N", "pearson_ctrl"}
    asked = by_time.scores[["perturbation", "media", "time"]].drop_duplicates()
    assert len(found[["perturbation", "media", "time"]].drop_duplicates()) == len(asked)
    with pytest.raises(ScreenError, match="cell_eval"):
        metrics.external_scores(by_time, model, ["cell-eval"])

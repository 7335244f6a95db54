"""Questions of PerturbQA to a fitted model, and labels of pairs from prior knowledge."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell import metrics
from pyrocell.errors import ScreenError, UnknownLabelError


def test_strong_changes_are_changes_with_a_direction_and_keep_their_columns(fitted):
    name = fitted.screen.perturbations[0]
    genes = list(fitted.screen.genes)
    pairs = pd.DataFrame({"pert": [name] * len(genes) + ["XYZ"], "gene": [*genes, genes[0]]})
    found = metrics.perturbqa(fitted, pairs.assign(label=1), n_samples=40)
    assert list(found.columns[:3]) == ["perturbation", "gene", "label"]
    measured = found[found["answer"] == "measured"]
    assert len(measured) == len(genes)
    assert measured[["p_changed", "p_up"]].stack().between(0, 1, inclusive="neither").all()
    order = measured.sort_values("mean")
    assert order["p_up"].iloc[0] < 0.5 < order["p_up"].iloc[-1]
    last = found.iloc[-1]
    assert np.isnan(last["p_changed"]) and "knowledge" in last["answer"]
    wide = metrics.perturbqa(fitted, pairs[:-1], region=5.0, n_samples=40)
    assert (wide["p_changed"] <= measured["p_changed"]).all()


def test_questions_that_cannot_be_asked_are_named(fitted):
    name = fitted.screen.perturbations[0]
    with pytest.raises(UnknownLabelError, match='gene "nope"'):
        metrics.perturbqa(fitted, pd.DataFrame({"pert": [name], "gene": ["nope"]}))
    with pytest.raises(UnknownLabelError, match='column "gene"'):
        metrics.perturbqa(fitted, pd.DataFrame({"pert": [name]}))
    with pytest.raises(ScreenError, match="region"):
        pairs = pd.DataFrame({"pert": [name], "gene": [fitted.screen.genes[0]]})
        metrics.perturbqa(fitted, pairs, region=0.0)


def test_what_a_cluster_shares_comes_first(fitted):
    genes = list(fitted.screen.genes)
    sets = {"mine": genes[4:8], "others": genes[6:12], "elsewhere": ["none"]}
    found = metrics.perturbqa_sets(fitted, {"cluster": genes[4:8]}, sets, n_samples=20)
    assert list(found["gene_set"]) == ["mine", "others"] and set(found["kind"]) == {"genes"}
    assert found["p"].iloc[0] == pytest.approx(1 / 495)  # one choice of 4 of 12
    assert (found["q"] >= found["p"]).all()
    assert (found["lower"] <= found["alike"]).all() and (found["alike"] <= found["upper"]).all()
    singles = metrics.perturbqa_sets(
        fitted, [list(fitted.screen.perturbations)], {"all": genes}, n_samples=10
    )
    assert singles["kind"].item() == "perturbations" and singles["cluster"].item() == 0
    with pytest.raises(ScreenError, match="none of its 1 genes"):
        metrics.perturbqa_sets(fitted, [["none"]], sets, n_samples=10)


# ---------------------------------------------------------------------- labels of pairs
class Known:
    """A kernel over genes from features."""

    def __init__(self, features: pd.DataFrame):
        self.features = features

    def kernel(self, genes):
        rows = self.features.reindex(genes).fillna(0).to_numpy()
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(length > 0, length, 1)
        out = rows @ rows.T
        np.fill_diagonal(out, 1.0)
        return out


@pytest.fixture(scope="module")
def task() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Labels that follow products of features of both genes: training, test, features."""
    rng = np.random.default_rng(5)
    names = [f"p{i}" for i in range(120)] + [f"g{i}" for i in range(60)]
    features = pd.DataFrame(rng.normal(size=(180, 5)), index=names)
    weight = rng.normal(size=(5, 5))
    pairs = pd.DataFrame(
        [(p, g) for p in names[:120] for g in rng.choice(names[120:], 20, replace=False)],
        columns=["pert", "gene"],
    )
    left, right = (features.loc[pairs[c]].to_numpy() for c in ("pert", "gene"))
    signal = np.einsum("ni,ij,nj->n", left, weight, right)
    pairs["label"] = (rng.random(len(pairs)) < 1 / (1 + np.exp(-signal))).astype(int)
    test = pairs["pert"].isin(names[:40])
    return pairs[~test], pairs[test], features


def test_labels_of_new_perturbations_follow_from_what_is_known_of_them(task):
    train, test, features = task
    found = metrics.predict_pairs(train, test.drop(columns="label"), Known(features))
    label = test["label"].to_numpy()
    assert metrics.auroc_by_gene(test, found["score"]) > 0.75
    assert metrics.auroc_by_gene(test, found["probability"]) > 0.75
    assert metrics.expected_calibration_error(label, found["probability"]) < 0.06
    assert found.attrs["auroc"] > 0.7 and list(found["gene"]) == list(test["gene"])


def test_knowledge_of_other_genes_says_nothing_and_claims_nothing(task):
    train, test, features = task
    rng = np.random.default_rng(1)
    shuffled = pd.DataFrame(features.to_numpy()[rng.permutation(len(features))], features.index)
    found = metrics.predict_pairs(train, test, Known(shuffled))
    assert 0.42 < metrics.auroc_by_gene(test, found["score"]) < 0.58
    assert 0.42 < found.attrs["auroc"] < 0.58
    assert metrics.expected_calibration_error(test["label"], found["probability"]) < 0.06
    assert found["probability"].std() < 0.15


def test_a_perturbation_of_which_nothing_is_known_has_the_rate_of_the_gene(task):
    train, test, features = task
    some = features.drop(index=test["pert"].iloc[0])
    found = metrics.predict_pairs(train, test, [Known(some)])
    mine = found[found["perturbation"] == test["pert"].iloc[0]]
    assert not mine["known"].any() and np.allclose(mine["score"], 0)
    assert found["known"].mean() > 0.9


def test_pairs_that_cannot_be_learned_from_are_named(task):
    train, test, features = task
    with pytest.raises(UnknownLabelError, match='column "label"'):
        metrics.predict_pairs(train.drop(columns="label"), test, Known(features))
    with pytest.raises(ScreenError, match="0 or 1"):
        metrics.predict_pairs(train.assign(label=2), test, Known(features))
    with pytest.raises(ScreenError, match="at least 20"):
        metrics.predict_pairs(train[train["pert"] == "p50"], test, Known(features))
    with pytest.raises(ScreenError, match="named alike"):
        metrics.predict_pairs(train, test, Known(features.iloc[:0]))


def test_the_area_by_gene_is_the_mean_of_areas():
    pairs = pd.DataFrame({"gene": list("aabbc"), "label": [0, 1, 1, 0, 1]})
    assert metrics.auroc_by_gene(pairs, [0, 1, 0, 1, 5]) == 0.5
    assert np.isnan(metrics.auroc_by_gene(pairs[4:], [1]))

"""Networks: direct edges told from indirect ones, silence where nothing happens, honest labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import pyrocell
from pyrocell import PyroCell, simulate
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.network.edges import Effects, courses, sample_edges

TIMES = np.array([1.0, 2.0, 4.0, 8.0])


def effects_of(strength: np.ndarray, seed: int, noise: float = 0.05) -> Effects:
    """Effects of losing each regulator of a linear network, regulators by genes."""
    rng = np.random.default_rng(seed)
    n_reg, n_genes = strength.shape
    value = np.zeros((n_reg, len(TIMES), n_genes))
    for k in range(n_reg):

        def rate(t, x, k=k):
            lost = 1 - np.exp(x[:n_reg])
            lost[k] = 1.0
            return 0.7 * (lost @ strength - x)

        value[k] = solve_ivp(rate, (0, 8), np.zeros(n_genes), t_eval=TIMES).y.T
    true = value.copy()
    control = rng.normal(0, noise, (len(TIMES), n_genes))
    value = value + rng.normal(0, noise, value.shape) - control
    draws = true + rng.normal(0, noise, (20, *true.shape))
    lost = 1 - np.exp(draws[..., :n_reg])
    lost[:, np.arange(n_reg), :, np.arange(n_reg)] = 1.0
    return Effects(
        value=value,
        variance=np.full(value.shape, noise**2),
        control=np.full(value.shape[1:], noise**2),
        lost=lost,
        own=np.arange(n_reg),
        times=TIMES,
    )


def chain() -> np.ndarray:
    """0 → 1 → 2 among six regulators, and what 2 drives among 20 genes."""
    strength = np.zeros((6, 20))
    strength[0, 1] = strength[1, 2] = -1.5
    strength[2, [8, 9]] = -1.0, 0.8
    return strength


def test_indirect_effects_of_a_chain_are_no_edges():
    found = sample_edges(effects_of(chain(), 1), n_draws=30, seed=0)
    edges = chain() != 0
    assert found.probability[edges].min() > 0.8
    assert found.probability[0, 2] < 0.3  # through 1, though as strong as a direct effect
    assert found.probability[~edges].mean() < 0.03
    np.testing.assert_allclose(found.size.mean(0)[edges], chain()[edges], atol=0.4)


def test_a_gene_is_no_regulator_of_itself():
    found = sample_edges(effects_of(chain(), 2), n_draws=10)
    assert (found.probability[np.arange(6), np.arange(6)] == 0).all()


def test_without_effects_there_is_no_likely_edge():
    for seed in range(3):
        found = sample_edges(effects_of(np.zeros((6, 20)), seed), n_draws=20)
        assert found.probability.max() < 0.5


def test_the_same_seed_gives_the_same_network():
    first, again = (sample_edges(effects_of(chain(), 3), 5, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.size, again.size)


@given(st.lists(st.floats(0.1, 5.0), min_size=1, max_size=5))
def test_a_lasting_loss_is_felt_more_and_more_and_never_more_than_whole(steps):
    times = np.cumsum(steps)
    felt = courses(times).sum(2)  # of a loss of one from the start
    assert (np.diff(felt, axis=1) > -1e-9).all()
    assert (felt <= 1 + 1e-6).all() and (felt >= 0).all()


def test_one_stage_of_a_course_is_relaxation():
    felt = courses(TIMES)[1].sum(1)
    rate = 0.25 / np.median(TIMES)
    np.testing.assert_allclose(felt, -np.expm1(-rate * TIMES), atol=1e-6)


@pytest.fixture(scope="module")
def fitted() -> PyroCell:
    adata = simulate.screen(
        n_perturbations=4, n_genes=12, n_cells_per_condition=40, times=(1.0, 2.0, 4.0), seed=3
    )
    PyroCell.setup_anndata(adata, batch_key="batch", time_key="time", control="control",
                           perturbation_key="perturbation")  # fmt: skip
    model = PyroCell(adata)
    model.train(max_epochs=2, progress_bar=False)
    return model


def test_the_table_says_what_each_edge_rests_on(fitted):
    table = fitted.network(n_samples=20)
    assert set(table["rests_on"]) == {"timed"} and table["identified"].all()
    assert table["probability"].between(0, 1).all() and table["p_size"].between(0, 1).all()
    assert (table["lower"] <= table["upper"]).all()
    assert not (table["regulator"] == table["target"]).any()


def test_genes_that_were_not_perturbed_are_associations(fitted):
    genes = [g for g in fitted.screen.genes if g not in fitted.screen.perturbation_genes]
    gene, other = genes[:2]
    table = fitted.regulators(gene, virtual=True, n_samples=20)
    assert set(table["target"]) == {gene}
    virtual = table[table["rests_on"] == "virtual"]
    assert other in set(virtual["regulator"]) and not virtual["identified"].any()
    assert virtual["total"].isna().all()
    assert virtual["probability"].nunique() == 1  # the learned share, no more
    assert "virtual" not in set(fitted.regulators(gene, n_samples=20)["rests_on"])
    named = fitted.network(regulators=other, targets=gene, n_samples=20)
    assert named["rests_on"].tolist() == ["virtual"]


def test_wrong_names_are_told(fitted):
    gene = fitted.screen.genes[-1]
    with pytest.raises(UnknownLabelError, match="did you mean"):
        fitted.regulators(gene + "x")
    with pytest.raises(UnknownLabelError, match="regulator"):
        fitted.network(regulators=["nobody at all"])
    with pytest.raises(ScreenError, match="region"):
        fitted.network(region=-1.0)


def test_generalisation_has_its_anchors_in_the_same_table(fitted):
    names, genes = list(fitted.screen.perturbations), list(fitted.screen.genes)
    truth = pd.DataFrame({"regulator": names[:2] * 2, "target": [*genes[-2:], *genes[-3:-1]]})
    for kind in ("nothing", "genes", "regulators"):
        found = pyrocell.metrics.network_generalisation(
            fitted,
            truth,
            kind,
            n_folds=2,
            n_samples=5,
            train={"max_epochs": 1, "progress_bar": False},
        )
        assert {"model", "base rate", "co-expression", "|effect|"} == set(found["method"])
        assert found["auprc"].between(0, 1).all() and found["n_edges"].eq(4).all()
        assert found.set_index("method")["ece"].notna()[["model", "base rate"]].all()
    with pytest.raises(ScreenError, match="others="):
        pyrocell.metrics.network_generalisation(fitted, truth, "data sets")
    with pytest.raises(UnknownLabelError, match="did you mean"):
        pyrocell.metrics.network_generalisation(fitted, truth, "regulator")
    with pytest.raises(UnknownLabelError, match="target"):
        pyrocell.metrics.network_generalisation(fitted, truth[["regulator"]])


def test_a_network_is_drawn(fitted):
    table = fitted.network(n_samples=10)
    ax = pyrocell.pl.network(table, n_genes=5)
    assert len(ax.get_xticklabels()) == 5


def test_a_regulator_that_no_source_knows_is_predicted_as_the_mean(fitted):
    names, genes = list(fitted.screen.perturbations), list(fitted.screen.genes)
    truth = pd.DataFrame({"regulator": names, "target": genes[-1]})
    known = names[:-1]
    kernel = pd.DataFrame(0.5 * np.eye(len(known)) + 0.5, known, known)
    found = pyrocell.metrics.network_generalisation(
        fitted,
        truth,
        "regulators",
        knowledge=pyrocell.Knowledge.from_kernel(kernel),
        n_folds=len(names),
        n_samples=5,
        train={"max_epochs": 1, "progress_bar": False},
    )
    assert "knowledge alone" in set(found["method"])
    assert found["auprc"].between(0, 1).all()

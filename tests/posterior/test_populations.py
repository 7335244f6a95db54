"""Predicted populations against observed ones: good beats bad, and anchors say how good is good."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from pandas.testing import assert_frame_equal

from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.metrics import distribution_distance
from pyrocell.metrics.distances import METHODS

SHIFT = {"control": 0.0, "KO": 1.5, "inert": 0.0}


def screen(seed: int, shifts: dict[str, float], n: int = 60, n_genes: int = 6, times=(0.0,)):
    """Cells that a perturbation shifts along two genes; the time shifts all."""
    rng = np.random.default_rng(seed)
    parts, obs = [], []
    for time in times:
        for label, shift in shifts.items():
            x = rng.standard_normal((n, n_genes)) + time
            x[:, :2] += shift
            parts.append(x)
            obs += [(label, time)] * n
    obs = pd.DataFrame(obs, columns=["perturbation", "time"], index=map(str, range(len(obs))))
    return AnnData(
        np.concatenate(parts), obs, pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    )


@pytest.fixture(scope="module")
def observed() -> AnnData:
    return screen(0, SHIFT)


@pytest.mark.parametrize("method", METHODS)
def test_truth_explains_what_controls_do_not(observed, method):
    if method == "sinkhorn":
        pytest.importorskip("ot")
    names = ["distance", "control", "floor", "floor_upper", "explained"]
    good, half, none = (
        distribution_distance(screen(1, SHIFT | {"KO": s}), observed, method=method, n_splits=8)
        .set_index("perturbation")
        .loc["KO", names]
        for s in (1.5, 0.75, 0.0)
    )
    assert good["explained"] > 0.85 > half["explained"] > 0.3 > abs(none["explained"])
    assert good["distance"] < good["control"]
    assert good["control"] > good["floor_upper"] > good["floor"]


def test_the_replicate_of_an_unbiased_method_is_at_zero(observed):
    table = distribution_distance(screen(1, SHIFT), observed, n_splits=40)
    spread = table["floor_upper"] / 1.645  # of single splits
    assert (table["floor"].abs() < 4 * spread / 40**0.5).all()


def test_where_nothing_happened_nothing_is_explained():
    tables = [distribution_distance(screen(20 + i, SHIFT), screen(40 + i, SHIFT)) for i in range(8)]
    rows = pd.concat(tables).groupby("perturbation")
    assert rows["explained"].count()["inert"] <= 1  # of 8, with a noise floor of 95%
    assert rows["explained"].count()["KO"] == 8
    assert rows["control"].count()["control"] == 0
    inert = rows.get_group("inert")
    assert (inert["distance"] > inert["floor_upper"]).sum() <= 1


def test_all_populations_of_a_row_have_the_same_number_of_cells(observed):
    few = screen(1, SHIFT, n=11)
    assert (distribution_distance(few, observed)["n_compared"] == 11).all()
    assert (distribution_distance(observed, few)["n_compared"] == 5).all()
    assert (distribution_distance(observed, observed, max_cells=7)["n_compared"] == 7).all()
    sizes = distribution_distance(few, observed)[["n_predicted", "n_observed"]]
    assert sizes.to_numpy().tolist() == [[11, 60]] * 3


def test_controls_are_those_of_the_same_context():
    both = screen(0, SHIFT, times=(0.0, 5.0))
    table = distribution_distance(
        screen(1, SHIFT, times=(0.0, 5.0)), both, ["perturbation", "time"]
    )
    by_time = table.set_index(["perturbation", "time"])["control"].unstack()
    assert by_time.loc["KO", 5.0] == pytest.approx(by_time.loc["KO", 0.0], rel=0.5)
    assert by_time.loc["inert"].abs().max() < 0.2  # controls of the other time are 12 away


def test_the_same_seed_gives_the_same_table(observed):
    for method in ("energy", "matched"):
        first, second = (
            distribution_distance(screen(1, SHIFT), observed, method=method, n_splits=3)
            for _ in range(2)
        )
        pd.testing.assert_frame_equal(first, second)


def test_components_are_those_of_the_observed_cells_and_genes_are_matched_by_name():
    observed, predicted = screen(0, SHIFT, n_genes=20), screen(1, SHIFT, n_genes=20)
    whole = distribution_distance(predicted, observed, n_pcs=None, n_splits=4)
    reduced = distribution_distance(predicted, observed, n_pcs=5, n_splits=4)
    assert (reduced["n_compared"] == whole["n_compared"]).all()
    for name in ("KO", "inert"):
        explained = [t.set_index("perturbation").loc[name, "explained"] for t in (whole, reduced)]
        assert np.isnan(explained).all() or min(explained) > 0.8
    shuffled = predicted[:, np.random.default_rng(0).permutation(20)].copy()
    again = distribution_distance(shuffled, observed, n_pcs=5, n_splits=4)
    pd.testing.assert_frame_equal(again, reduced)


def test_sparse_and_dense_cells_give_one_answer(observed):
    sparse = observed.copy()
    sparse.X = sp.csr_matrix(observed.X)
    predicted = screen(1, SHIFT)
    tables = [distribution_distance(predicted, o, n_pcs=3, n_splits=3) for o in (observed, sparse)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


def test_a_representation_of_the_users_is_taken_as_it_is(observed):
    predicted = screen(1, SHIFT)
    for cells in (predicted, observed):
        cells.obsm["X_two"] = cells.X[:, :2]
    table = distribution_distance(predicted, observed, use_rep="X_two").set_index("perturbation")
    assert table.loc["KO", "explained"] > 0.8
    assert "X_two" in observed.obsm and list(observed.obs) == ["perturbation", "time"]


def test_options_of_the_scale_are_the_same_in_all_rows(observed):
    table = distribution_distance(screen(1, SHIFT), observed, method="mmd", n_splits=2)
    assert table.attrs["options"]["bandwidth"] > 0
    given = distribution_distance(observed, observed, method="mmd", n_splits=2, bandwidth=2.0)
    assert given.attrs["options"] == {"bandwidth": 2.0}


def test_too_few_cells_are_shown_not_scored(observed):
    few = screen(1, SHIFT)[[0, 60, 61]].copy()
    table = distribution_distance(few, observed).set_index("perturbation")
    assert table.loc["control", "n_compared"] == 1 and np.isnan(table.loc["control", "distance"])
    assert np.isfinite(table.loc["KO", "distance"])


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"groupby": "gene"}, UnknownLabelError, 'groupby="gene" is not in predicted.obs'),
        ({"control": "NT"}, UnknownLabelError, 'did you mean "control"'),
        ({"layer": "counts"}, UnknownLabelError, 'layer="counts"'),
        ({"use_rep": "X_pca"}, UnknownLabelError, 'use_rep="X_pca" is not in predicted.obsm'),
        ({"method": "energies"}, ValueError, 'did you mean "energy"'),
        ({"n_splits": 0}, ValueError, "n_splits=0 must be at least 1"),
        ({"max_cells": 1}, ValueError, "max_cells=1 must be at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(observed, options, error, says):
    with pytest.raises(error, match=says):
        distribution_distance(observed, observed, **options)


def test_predictions_that_do_not_fit_the_observed_cells_are_refused(observed):
    other = screen(1, {"control": 0.0, "MYC": 1.0})
    with pytest.raises(UnknownLabelError, match="no observed cells: MYC"):
        distribution_distance(other, observed)
    with pytest.raises(ScreenError, match="genes of observed are not in predicted: g5"):
        distribution_distance(observed[:, :5], observed)
    broken = observed.copy()
    broken.X[3, 2] = np.nan
    with pytest.raises(ScreenError, match="NaN"):
        distribution_distance(broken, observed)


def test_a_modality_is_compared_as_it_would_be_alone():
    predicted, observed = screen(1, SHIFT), screen(2, SHIFT)
    alone = distribution_distance(predicted, observed, n_splits=3)
    both = [MuData({"rna": a, "prot": a[::2, :2].copy()}) for a in (predicted, observed)]
    assert_frame_equal(distribution_distance(*both, view="rna", n_splits=3), alone)
    of_proteins = distribution_distance(*both, view="prot", n_splits=3)
    assert (of_proteins["n_observed"] <= alone["n_observed"]).all()
    with pytest.raises(UnknownLabelError, match='view="rnaa" .* did you mean "rna"'):
        distribution_distance(*both, view="rnaa")
    with pytest.raises(ScreenError, match="leave it out"):
        distribution_distance(predicted, observed, view="rna")

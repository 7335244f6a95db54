"""Which guides a cell has."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrocell.errors import PyrocellError
from pyrocell.preprocess import assign_guides, read_10x


def drawn(n=600, k=12, own=40.0, ambient=0.2, seed=0, having=None):
    """Counts of guides, and which cell has which; the last guide is in no cell."""
    rng = np.random.default_rng(seed)
    guide = rng.integers(k - 1, size=n) if having is None else having
    counts = rng.poisson(ambient, (n, k))
    counts[np.arange(n), guide] += rng.poisson(own * rng.gamma(3, 1 / 3, n))
    return counts, guide


def test_calls_are_right_where_guides_are_well_captured(lanes):
    folder, truth = lanes
    adata = read_10x(folder)
    calls = assign_guides(
        adata.obsm["guides"],
        names=adata.uns["guides"].index,
        cells=adata.obs_names,
        batch=adata.obs["batch"],
        depth=np.asarray(adata.X.sum(1)).ravel(),
    )
    right = (calls.cells["guides"] == truth["guides"]).mean()
    # 2 % of own counts are as low as ambient ones; the standard error of 238 cells is 1 %.
    assert right > 0.94
    assert calls.cells["probability"].mean() == pytest.approx(right, abs=0.04)


def test_a_guide_that_nobody_has_is_called_in_nobody():
    for ambient in (0.02, 0.2, 1.0):
        counts, _ = drawn(ambient=ambient)
        calls = assign_guides(counts)
        assert calls.guides["n_cells"].iloc[-1] == 0
        assert calls.probability[:, -1].max() < 0.5


def test_a_guide_of_two_cells_is_called_in_both():
    having = np.r_[np.full(2, 10), np.arange(598) % 10]
    counts, _ = drawn(having=having)
    assert list(np.flatnonzero(assign_guides(counts).called[:, 10].toarray())) == [0, 1]


def test_ambient_counts_are_those_of_the_lane():
    quiet, loud = drawn(ambient=0.05, seed=1)[0], drawn(ambient=4.0, seed=2)[0]
    batch = np.repeat(["a", "b"], 600)
    guides = assign_guides(np.vstack([quiet, loud]), batch=batch).guides
    ambient = guides.groupby("batch")["ambient"].mean()
    assert ambient["a"] == pytest.approx(0.05, rel=0.3)
    assert ambient["b"] == pytest.approx(4.0, rel=0.1)
    threshold = guides.groupby("batch")["threshold"].mean()
    assert threshold["b"] > threshold["a"] + 4


def test_cells_and_guides_without_counts_are_called_none():
    counts, guide = drawn()
    counts[:5], counts[:, -1] = 0, 0
    calls = assign_guides(counts)
    assert (calls.cells["call"][:5] == "none").all() and (calls.cells["guides"][:5] == "").all()
    assert (calls.called[5:].argmax(1).A1 == guide[5:]).mean() > 0.97
    for empty in (np.zeros((4, 3)), np.zeros((4, 0)), np.zeros((0, 3))):
        nothing = assign_guides(empty)
        assert nothing.called.nnz == 0 and len(nothing.cells) == len(empty)


def test_a_count_far_above_all_others_is_called():
    counts, guide = drawn(own=30.0, ambient=2.0)
    counts[0, guide[0]] = 5000
    calls = assign_guides(counts)
    assert calls.called[0, guide[0]] and calls.probability[0, guide[0]] > 0.99


def test_noise_alone_is_hardly_called():
    counts = np.random.default_rng(0).poisson(0.5, (2000, 10))
    assert assign_guides(counts).called.nnz < 0.01 * counts.size


def test_two_guides_of_a_cell_are_both_called_in_the_order_of_the_columns():
    counts, _ = drawn(having=np.arange(600) % 10)
    counts[:10, 10] += 50
    names = [f"g{i:02d}" for i in range(12)]
    cells = assign_guides(pd.DataFrame(counts, columns=names)).cells
    assert (cells["call"][:10] == "several").all()
    assert cells["guides"].iloc[3] == "g03+g10"


def test_depth_moves_the_threshold_of_a_cell():
    rng = np.random.default_rng(4)
    depth = np.exp(7 + 0.7 * rng.standard_normal(2000))
    size = depth / np.median(depth)
    counts = rng.poisson(2.0 * size[:, None], (2000, 10))
    guide = rng.integers(10, size=2000)
    counts[np.arange(2000), guide] += rng.poisson(12 * size * rng.gamma(4, 1 / 4, 2000))
    truth = np.arange(10) == guide[:, None]
    called = [assign_guides(counts, depth=d).called.toarray() for d in (None, depth)]
    wrong = [(calls != truth).any(1).mean() for calls in called]
    assert wrong[1] < 0.8 * wrong[0]


def test_threshold_calls_every_count_from_it_on():
    counts = np.array([[4, 0], [5, 9], [0, 0]])
    calls = assign_guides(counts, "threshold")
    assert list(calls.cells["n_guides"]) == [0, 2, 0]
    assert list(assign_guides(counts, "threshold", min_counts=4).cells["n_guides"]) == [1, 2, 0]


def test_input_is_not_changed():
    counts, _ = drawn(n=50)
    matrix = sp.csr_matrix(counts)
    before = matrix.copy()
    assign_guides(matrix)
    assert matrix.dtype == before.dtype and (matrix != before).nnz == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "magic"}, 'method="magic" is unknown'),
        ({"batch": ["a"]}, "batch has 1 values for 50 cells"),
        ({"depth": np.full(50, np.nan)}, "depth lacks a value"),
        ({"probability": 1.0}, "must lie between 0 and 1"),
        ({"names": ["a"]}, "1 names are given for 12 guides"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, says):
    with pytest.raises(PyrocellError, match=says):
        assign_guides(drawn(n=50)[0], **change)
    with pytest.raises(PyrocellError, match="not whole numbers"):
        assign_guides(np.array([[0.5]]))

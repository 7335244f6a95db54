"""Whether one view follows another with a lag."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from pyrocell import PyroCell, simulate
from pyrocell.design import view_value
from pyrocell.errors import DesignError, ScreenError
from pyrocell.posterior.lag import course


def model_of(**changes: object) -> PyroCell:
    mdata = simulate.views(times=(0.5, 1.0, 2.0, 4.0), **{"n_cells": 3_000, "seed": 12} | changes)
    PyroCell.setup_mudata(mdata, rna="rna", protein="prot", time_key="time")
    return PyroCell(mdata)


@given(st.floats(0.2, 5.0), st.floats(0.05, 5.0))
def test_a_course_is_that_of_two_stages(constant, lag):
    times = np.array([0.3, 1.0, 3.0])
    followed = solve_ivp(
        lambda t, y: [(1 - y[0]) / constant, (y[0] - y[1]) / lag],
        (0, 3.0), [0.0, 0.0], t_eval=times, rtol=1e-8, atol=1e-10,
    )  # fmt: skip
    np.testing.assert_allclose(course(times, constant, lag), followed.y[1], atol=2e-4)
    np.testing.assert_allclose(course(times, constant), followed.y[0], atol=1e-6)


def test_a_lag_is_found_where_there_is_one():
    found = model_of(lag=1.0).lag("protein").iloc[0]
    assert found["posterior"] > 0.95
    assert found["lower"] <= 1.0 <= found["upper"]
    assert (found["n_times"], found["n_features"]) == (4, 12)


def test_proteins_that_move_with_rna_have_none():
    found = model_of(seed=9).lag("protein").iloc[0]
    assert found["posterior"] < 0.5
    assert found["lag"] < 0.3


def test_shuffled_labels_tell_nothing_of_a_lag():
    mdata = simulate.views(times=(0.5, 1.0, 2.0, 4.0), lag=1.0, n_cells=2_000, seed=3)
    order = np.random.default_rng(0).permutation(mdata.n_obs)
    for part in mdata.mod.values():
        part.obs["perturbation"] = part.obs["perturbation"].to_numpy()[order]
    PyroCell.setup_mudata(mdata, rna="rna", protein="prot", time_key="time")
    found = PyroCell(mdata).lag("protein").iloc[0]
    assert 0.2 < found["posterior"] < 0.8


def test_a_lag_needs_three_times():
    mdata = simulate.views(times=(1.0, 2.0), n_cells=300)
    PyroCell.setup_mudata(mdata, rna="rna", protein="prot", time_key="time")
    model = PyroCell(mdata)
    with pytest.raises(ScreenError, match="2 times after 0 .* needs 3"):
        model.lag("protein")
    with pytest.raises(ScreenError, match="cannot follow itself"):
        model.lag("rna")


def test_more_cells_with_a_view_make_its_errors_smaller():
    mdata = simulate.views(n_cells=600, without_protein=0.5)
    PyroCell.setup_mudata(mdata, rna="rna", protein="prot")
    model = PyroCell(mdata)
    table = view_value(model, "protein", (0.25, 1.0))
    assert table["error"].is_monotonic_decreasing
    assert table["now"].sum() == 1
    quarter, whole = table["error"].iloc[[0, -1]]
    assert quarter / whole == pytest.approx(2.0, rel=0.05)  # nothing varies between batches here
    with pytest.raises(DesignError, match="shares"):
        view_value(model, "protein", (0.0,))

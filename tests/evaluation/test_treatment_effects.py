"""Average treatment effects: predicted as cells are drawn, measured as cells were counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.metrics import average_treatment_effect


@pytest.fixture(scope="module")
def model(build):
    """A and B move ten genes each, A+B all twenty; the double is held out."""
    rng = np.random.default_rng(3)
    label = np.repeat(["control", "A", "B", "A+B"], [150, 60, 60, 40])
    log = np.tile(rng.normal(1.5, 0.5, 40), (len(label), 1))
    for part, name in ((slice(0, 10), "A"), (slice(10, 20), "B")):
        mine = np.array([name in x.split("+") for x in label])
        log[mine, part] += np.tile([0.8, -0.8], 5)
    counts = sp.csr_matrix(rng.poisson(np.exp(log)).astype(np.float32))
    obs = pd.DataFrame({"perturbation": label, "batch": np.where(np.arange(310) % 2, "a", "b")})
    obs.index = [f"cell{i}" for i in range(310)]
    adata = AnnData(counts, obs, pd.DataFrame(index=[f"g{i}" for i in range(40)]))
    seen = build(adata[label != "A+B"].copy())
    seen.train(max_epochs=15, progress_bar=False)
    return seen, adata


def test_a_double_that_was_held_out_is_predicted_beside_its_anchors(model):
    seen, adata = model
    table = average_treatment_effect(seen, ["B+A"], adata, n_samples=6, n_cells=40)
    assert list(table["perturbation"]) == ["A+B"] and table["n_cells"].iloc[0] == 40
    row = table.iloc[0]
    assert row["pearson"] > 0.8 and row["pearson_top"] > 0.8 and row["additive"] > 0.8
    assert row["replicate"] > 0.8 and 0 < row["rmse"] < 0.6


def test_what_was_fitted_is_predicted(model):
    table = average_treatment_effect(model[0], ["A", "B"], n_samples=6, n_cells=40)
    assert table["additive"].isna().all()  # no sums of one
    assert (table["pearson"] > 0.8).all() and (table["pearson"] > table["mean"]).all()


def test_what_cannot_be_measured_is_refused_by_name(model):
    seen = model[0]
    with pytest.raises(ScreenError, match="has 0 cells"):
        average_treatment_effect(seen, "A+B")
    with pytest.raises(UnknownLabelError):
        average_treatment_effect(seen, "nobody")

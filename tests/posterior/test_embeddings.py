"""Coordinates of genes and perturbations along the principal axes of the response."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.effects import effect_draws


@pytest.fixture(scope="module")
def effects(fitted):
    screen = fitted.screen
    place = screen.perturbations, screen.baseline_media, screen.times[-1]
    return effect_draws(fitted.fitted, *place, 40)  # (S, K, G)


def test_lengths_are_root_mean_square_changes(fitted, effects):
    mean = effects.mean(0)
    genes = fitted.embeddings(n_samples=40)
    found = np.square(genes.X).sum(1)
    assert found == pytest.approx(np.square(mean).mean(0), rel=1e-3, abs=1e-8)
    perturbations = fitted.embeddings("perturbations", n_samples=40)
    found = np.square(perturbations.X).sum(1)
    assert found == pytest.approx(np.square(mean).mean(1), rel=1e-3, abs=1e-8)
    assert genes.var["share"].sum() == pytest.approx(1)
    assert (genes.var["share"].diff().dropna() <= 0).all()


def test_inner_products_of_both_are_the_mean_effects(fitted, effects):
    """A biplot: what a perturbation does to a gene follows from their coordinates."""
    genes = fitted.embeddings(n_samples=40)
    perturbations = fitted.embeddings("perturbations", n_samples=40)
    k, g = effects.shape[1:]
    size = np.sqrt(genes.var["share"].to_numpy() * np.square(effects.mean(0)).sum())
    found = perturbations.X * np.sqrt(g) / size @ (genes.X * np.sqrt(k)).T
    assert found == pytest.approx(effects.mean(0), abs=1e-4)


def test_sd_is_that_of_draws_along_fixed_axes(fitted, effects):
    """Axes that turned with every draw would add their turning to the sd of each coordinate."""
    found = fitted.embeddings("perturbations", n_samples=40)
    total = np.square(found.layers["sd"]).sum(1)  # of all axes: no more than that of all genes
    assert (total <= effects.var(0, ddof=1).mean(1) * (1 + 1e-4)).all()
    assert ((found.var["signal"] >= 0) & (found.var["signal"] <= 1)).all()


def test_a_csv_is_what_a_precomputed_encoder_reads(fitted, tmp_path):
    found = fitted.embeddings(n_axes=2, n_samples=10, axes="both")
    assert list(found.var_names) == ["response1", "response2", "state1", "state2"]
    assert np.isnan(found.layers["sd"][:, 2:]).all()  # loadings of the state are points
    found.to_df().to_csv(tmp_path / "genes.csv")
    table = pd.read_csv(tmp_path / "genes.csv", index_col="symbol")
    assert list(table.index) == list(fitted.screen.genes)
    assert table.to_numpy() == pytest.approx(found.X, rel=1e-5)


def test_what_cannot_be_asked_is_refused_by_name(fitted):
    with pytest.raises(UnknownLabelError, match='did you mean "genes"'):
        fitted.embeddings("gene")
    with pytest.raises(UnknownLabelError, match='axes="states"'):
        fitted.embeddings(axes="states")
    with pytest.raises(ScreenError, match="resting cells differ"):
        fitted.embeddings("perturbations", axes="state")
    with pytest.raises(ScreenError, match="n_axes=0"):
        fitted.embeddings(n_axes=0)
    with pytest.raises(UnknownLabelError):
        fitted.embeddings(perturbations=["nobody"])
    with pytest.raises(ScreenError, match="one view"):
        fitted.embeddings(view="protein")

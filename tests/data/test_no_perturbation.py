"""Screens without perturbations: media, times or donors alone are read, fitted and asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from pyrocell import PyroCell
from pyrocell.cli import main
from pyrocell.errors import ScreenError
from pyrocell.simulate import screen as simulated

SMALL = {"n_latent": 2, "n_response": 2, "n_hidden": 8}
N = {"n_perturbations": 3, "n_genes": 60, "n_cells_per_condition": 10, "n_batches": 2}


def controls(media: int = 1, times: tuple[float, ...] = (), **options: object) -> AnnData:
    """Control cells of a simulated screen, without the column of perturbations."""
    more = {"times": times} if times else {}
    adata = simulated(**N, media=media, media_rms=0.5, n_controls=200, **more, **options, seed=2)
    adata = adata[(adata.obs["perturbation"] == "control").to_numpy()].copy()
    del adata.obs["perturbation"]
    return adata


@pytest.fixture(scope="module")
def media_only() -> PyroCell:
    adata = controls()
    PyroCell.setup_anndata(adata, perturbation_key=None, media_key="media")
    model = PyroCell(adata, **SMALL)
    model.train(max_epochs=10, progress_bar=False)
    return model


def test_a_medium_is_told_by_gene_and_its_intervals_hold(media_only):
    table = media_only.media_effects()
    assert set(table["perturbation"]) == {"control"} and set(table["media"]) == {"medium0"}
    truth = media_only.adata.uns["truth"]["media_effect"].to_numpy()[0]
    truth = truth - np.median(truth - table["mean"])  # shares do not see what all genes do
    assert np.corrcoef(table["mean"], truth)[0, 1] > 0.8
    held = ((table["lower"] <= truth) & (truth <= table["upper"])).mean()
    assert held > 0.75  # 60 genes: 4 standard errors below .9
    sure = table[table["fdr"] <= 0.1]
    assert len(sure) > 5 and (np.sign(sure["mean"]) == np.sign(truth[sure.index])).mean() > 0.75
    counts = media_only.adata.to_df().groupby(media_only.adata.obs["media"], observed=True).sum()
    assert (table["count"].to_numpy() == counts.loc["medium0"]).all()
    assert (table["count_control"].to_numpy() == counts.loc["baseline"]).all()


def test_everything_else_answers_or_says_that_nothing_was_perturbed(media_only):
    for ask in (media_only.perturbation_effects, media_only.shuffle_check):
        with pytest.raises(ScreenError, match="the screen has no perturbation"):
            ask()
    assert len(media_only.media_gains()) == 0 and len(media_only.effect_checks()) == 0
    assert len(media_only.batch_effects()) == 2 * 60
    assert len(media_only.assumptions(n_samples=50))
    predicted = media_only.predict(pd.DataFrame({"media": ["baseline", "medium0"]}), n_samples=20)
    assert predicted.shape == (2, 60) and np.isfinite(predicted.X).all()


def test_a_model_without_perturbations_survives_a_file(media_only, tmp_path):
    media_only.save(tmp_path / "model")
    loaded = PyroCell.load(tmp_path / "model", media_only.adata)
    pd.testing.assert_frame_equal(loaded.media_effects(), media_only.media_effects())


def test_times_alone_are_a_screen():
    adata = controls(media=0, times=(1.0, 2.0))
    PyroCell.setup_anndata(adata, perturbation_key=None, time_key="time")
    model = PyroCell(adata, **SMALL)
    model.train(max_epochs=2, progress_bar=False)
    assert model.screen.times == (1.0, 2.0) and len(model.assumptions(n_samples=50))
    with pytest.raises(ScreenError, match="no medium beside the baseline"):
        model.media_effects()


def test_media_effects_are_asked_at_each_time_and_of_variational_models_too():
    adata = controls(times=(1.0, 2.0))
    PyroCell.setup_anndata(adata, perturbation_key=None, media_key="media", time_key="time")
    model = PyroCell(adata, **SMALL)
    for gene_level in (True, False):
        model.train(max_epochs=2, progress_bar=False, gene_level=gene_level)
        early, late = (model.media_effects(time=t, n_samples=20) for t in (1.0, 2.0))
        assert (early["time"] == 1).all() and (late["time"] == 2).all()
        assert not np.allclose(early["mean"], late["mean"])
        assert (late["lower"] <= late["upper"]).all() and late["lfsr"].between(0, 1).all()


def test_without_any_column_no_two_cells_differ():
    adata = controls(media=0)
    with pytest.raises(ScreenError, match="no two cells differ; name the columns"):
        PyroCell.setup_anndata(adata, perturbation_key=None, batch_key=None)


def test_a_treatment_is_aimed_at_no_gene_though_one_has_its_name():
    adata = simulated(**N, n_controls=40, seed=2)
    drug = adata.obs["perturbation"].cat.categories[1]
    adata.var_names = [str(drug), *adata.var_names[1:]]
    PyroCell.setup_anndata(adata, perturbation_type="drug")
    screen = PyroCell(adata, **SMALL).screen
    assert set(screen.perturbation_types) == {"treatment"} and (screen.target == -1).all()


def test_the_shell_reports_media_alone(tmp_path, capsys):
    file = tmp_path / "cells.h5ad"
    adata = controls()
    del adata.uns["truth"]
    adata.write_h5ad(file)
    options = ["--perturbation-key", "", "--media-key", "media", "--max-epochs", "2"]
    assert main(["fit", str(file), "-o", str(tmp_path / "out"), *options]) == 0
    assert "Strongest effects of media" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "tables" / "media_effects.csv")
    assert len(table) == 60 and not (tmp_path / "out/tables/perturbation_effects.csv").exists()

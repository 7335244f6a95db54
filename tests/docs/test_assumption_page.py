"""The page on assumptions: its code runs as it stands, and what it warns of happens."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.sparse as sp

import pyrocell

PAGE = Path(__file__).parents[2] / "docs" / "assumptions.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_the_code_on_the_page_runs_as_it_stands(monkeypatch):
    blocks = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    adata, train = pyrocell.datasets.hipsc_timecourse()[::10], pyrocell.PyroCell.train
    monkeypatch.setattr(pyrocell.datasets, "hipsc_timecourse", adata.copy)
    monkeypatch.setattr(
        pyrocell.PyroCell, "train", lambda self: train(self, max_epochs=2, progress_bar=False)
    )
    names: dict = {}
    for block in blocks:
        exec(block, names)
    plt.close("all")
    rows = names["table"].set_index(["assumption", "perturbation"])
    assert rows.at[("steady_vs_control", "POU5F1"), "prior"] == 0.1
    for name in ("prior", "posterior", "size", "log_bayes_factor", "mcse", "n_genes"):
        assert name in rows and f"`{name}`" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_a_knockout_that_doubles_one_gene_of_a_thousand_is_called_silent():
    """The limit that the page states: the gene's own effect shows it, the posterior does not."""
    adata = pyrocell.simulate.screen(
        n_perturbations=3,
        n_genes=1000,
        n_cells_per_condition=150,
        n_batches=1,
        silent_fraction=1.0,
        mean_library=4000.0,
        seed=4,
    )
    gene = int(np.argsort(-np.asarray(adata.X.sum(0)).ravel())[200])
    label = adata.obs["perturbation"].cat.categories.drop("control")[0]
    counts = adata.X.toarray()
    counts[adata.obs["perturbation"] == label, gene] *= 2
    adata.X = sp.csr_matrix(counts)
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata, n_latent=3, n_response=2, n_hidden=16)
    model.train(max_epochs=20, progress_bar=False)
    rows = model.assumptions().set_index(["assumption", "perturbation"])
    assert rows.at[("silent_at_baseline", label), "posterior"] > 0.9
    effects = model.perturbation_effects([label], n_samples=50).set_index("gene")
    name = adata.var_names[gene]
    assert effects["mean"].idxmax() == name and effects.at[name, "lower"] > 0.3

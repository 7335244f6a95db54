"""Settings shared by all tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import settings

from pyrocell import PyroCell, simulate

# The same examples in every run, whatever the machine's speed; `--hypothesis-profile=explore`
# searches further.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("repeatable")


@pytest.fixture
def tiny_adata() -> AnnData:
    """120 cells × 12 genes: 3 knockouts and controls in 2 media and 2 batches, fully crossed."""
    rng = np.random.default_rng(7)
    arm = pd.MultiIndex.from_product(
        [("control", "STAT1", "JAK2", "IRF1"), ("baseline", "IFNG"), ("lane1", "lane2"), range(7)],
        names=["perturbation", "media", "batch", "replicate"],
    )
    obs = arm.to_frame(index=False).drop(columns="replicate")
    obs = pd.concat([obs, obs.iloc[:8]], ignore_index=True)
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs["guide"] = obs["perturbation"] + "_g" + pd.Series(np.arange(120) % 2, obs.index).astype(str)
    obs = obs.astype("category")
    genes = ["STAT1", "JAK2", "IRF1", *(f"gene{g}" for g in range(9))]
    counts = rng.poisson(rng.gamma(2.0, 1.5, (120, 1)) + np.linspace(0.5, 4.0, 12))
    adata = AnnData(sp.csr_matrix(counts.astype(np.int32)), obs, pd.DataFrame(index=genes))
    adata.obs["depth"] = rng.uniform(500.0, 2000.0, 120)
    return adata


SMALL = {"n_latent": 2, "n_response": 2, "n_hidden": 16}


@pytest.fixture(scope="session")
def make_screen() -> Callable[..., AnnData]:
    """Simulated screens of a few hundred cells × 12 genes; perturbations are genes of the screen.

    `combinations` relabels half of the cells of the second perturbation as a pair with the first.
    """

    def make(seed: int = 0, combinations: bool = False, **changes: object) -> AnnData:
        small = {"n_perturbations": 3, "n_genes": 12, "n_cells_per_condition": 8, "n_controls": 20}
        small |= {"n_batches": 2, "mean_library": 200.0, "on_target": -1.0} | changes
        adata = simulate.screen(seed=seed, **small)
        if combinations:
            label = adata.obs["perturbation"].astype(str)
            first, second = sorted(set(label) - {"control"})[:2]
            every_other = np.flatnonzero(label == second)[::2]
            label.iloc[every_other] = f"{first}+{second}"
            adata.obs["perturbation"] = label
        return adata

    return make


@pytest.fixture(scope="session")
def build() -> Callable[..., PyroCell]:
    """Register a screen with the columns it has, and build a small model."""

    def build(adata: AnnData, setup: dict | None = None, **options: object) -> PyroCell:
        keys = {f"{key}_key": key for key in ("media", "time") if key in adata.obs}
        PyroCell.setup_anndata(adata, **(keys | (setup or {})))
        return PyroCell(adata, **(SMALL | options))

    return build


@pytest.fixture(scope="session")
def fitted(make_screen, build) -> PyroCell:
    """A model of 3 knockouts and a pair, 2 media, 2 times, 2 batches; to be asked, not changed."""
    adata = make_screen(media=1, times=(1.0, 2.0), combinations=True)
    model = build(adata, interactions=True)
    model.train(max_epochs=8, progress_bar=False)
    return model

"""Settings shared by all tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import settings

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

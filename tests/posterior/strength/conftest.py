"""A small screen whose guides differ in strength and whose cells escape."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from pyrocell import PyroCell

GENES, EFFICACY, ESCAPED = 60, (1.0, 0.5), 0.3


def with_guides(seed: int = 0, n: int = 60, effect: float = 0.8) -> AnnData:
    """Two perturbations that do something and one that does nothing, two guides each."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, GENES)
    base -= np.log(np.exp(base).sum())
    effects = np.zeros((3, GENES))
    effects[:2] = effect * (rng.random((2, GENES)) < 0.25) * rng.choice([-1, 1], (2, GENES))
    label = np.r_[np.full(150, -1), np.repeat(np.arange(3), 2 * n)]
    guide, batch = rng.integers(0, 2, len(label)), rng.integers(0, 2, len(label))
    responds = (label >= 0) & (rng.random(len(label)) > ESCAPED)
    strength = responds * np.array(EFFICACY)[guide]
    log_mu = base + np.where(label[:, None] >= 0, strength[:, None] * effects[label], 0.0)
    mu = 1500 * np.exp(log_mu) / np.exp(log_mu).sum(1, keepdims=True)
    counts = rng.poisson(mu * rng.gamma(5, 1 / 5, mu.shape)).astype(np.float32)
    names = np.array(["control", "A", "B", "C"])[label + 1]
    obs = pd.DataFrame(
        {
            "perturbation": names,
            "batch": [f"b{b}" for b in batch],
            "guide": [f"{p}_{g}" for p, g in zip(names, guide, strict=True)],
            "responded": responds,
        },
        index=[f"c{i}" for i in range(len(label))],
    )
    genes = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
    return AnnData(counts, obs, genes, varm={"effects": effects.T})


@pytest.fixture(scope="session")
def guides_adata() -> AnnData:
    return with_guides()


@pytest.fixture(scope="session")
def guides_model(guides_adata) -> PyroCell:
    PyroCell.setup_anndata(guides_adata, guide_key="guide")
    model = PyroCell(guides_adata, n_latent=3, n_response=2, n_hidden=16)
    model.train(max_epochs=30, progress_bar=False)
    return model

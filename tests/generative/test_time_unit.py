"""The unit in which a screen states its times is no part of the model."""

from __future__ import annotations

import pytest
import torch

import pyrocell

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")


def walk(unit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and persistence of the residual's walk, of one screen with times in a unit."""
    adata = pyrocell.datasets.hipsc_timecourse()[::30].copy()
    adata.obs["time"] *= unit
    pyrocell.PyroCell.setup_anndata(adata, time_key="time", size_factor_key="size_factor")
    model = pyrocell.PyroCell(adata).module.model
    k = model.n_perturbations
    base = -torch.tensor(model.reference_time).log()
    values = {
        "P.effect": torch.ones(k, model.n_axes),
        "V.loading": torch.linspace(-1, 1, model.n_genes).expand(model.config.n_response, -1),
        "W.process_noise": torch.tensor([0.05, 0.2]),
        "W.gene_scale": torch.ones(model.n_genes),
        "W.driver_scale": torch.ones(k),
        "W.log_rate_base": base,
        "W.log_rate": base.expand(k),
        "W.decay_ratio": torch.ones(k),
    }
    values["W.log_decay"] = model.log_decay(values)
    return model.step_scale(values, "P").detach(), model.persistence().detach()


def test_hours_and_days_have_one_walk_of_residuals():
    for days, hours in zip(walk(1.0), walk(24.0), strict=True):
        torch.testing.assert_close(hours, days, rtol=1e-4, atol=1e-6)

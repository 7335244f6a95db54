"""A step on another device than the CPU, tried on one that is not there (see `accelerator.py`)."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from accelerator import Accelerator, OnDevice, batch_to_device, to_device

from pyrocell import Assume
from pyrocell.distributions.counts import likelihood_path
from pyrocell.generative.population_objective import DistributionObjective
from pyrocell.training.fit import ElboPlan, TrainingConfig
from pyrocell.training.row_subsampling import row_subsampler

TIMES = {"media": 1, "times": (1.0, 2.0)}
STEADY = [Assume.steady("gene0"), Assume.steady("gene1", probability=0.5)]
# screen, options, and how often a step may wait for the device
SCREENS = {
    "one time": ({}, {}, 16),
    "one batch": ({"n_batches": 1}, {"decoder": "linear", "likelihood": "nb"}, 16),
    "dropout by cell": ({}, {"dropout": "cell", "content_dependent_noise": True}, 16),
    "pairs": (TIMES | {"combinations": True}, {"interactions": True}, 54),
    "node": (TIMES, {"dynamics": "node"}, 65),
    "noise": (TIMES, {"dynamics": "sde"}, None),
    "assumptions": (TIMES, {"assume": STEADY}, None),
    "objective": ({}, {"objective": DistributionObjective()}, None),
}


def plan_of(model, visits=None) -> ElboPlan:
    net, guide = model.module.model, model.module.guide
    return ElboPlan(net, guide, net.n_cells, 100, TrainingConfig(), visits)


@pytest.fixture
def as_in_training():
    settings = pyro.settings.context(module_local_params=True)
    with settings, pyro.validation_enabled(False):
        yield


def named(adata):
    """Perturbations under names that do not depend on the simulation."""
    label = adata.obs["perturbation"].astype(str)
    found = sorted(set(label) - {"control"})
    adata.obs["perturbation"] = label.replace({n: f"gene{i}" for i, n in enumerate(found)})
    return adata


@pytest.mark.parametrize("name", SCREENS)
def test_a_step_elsewhere_is_that_of_the_cpu_and_seldom_waits(
    name, make_screen, build, as_in_training
):
    screen, options, most = SCREENS[name]
    adata = make_screen(**screen)
    adata = named(adata) if "assume" in options else adata
    model = build(adata, {"batch_key": "batch"}, **options)
    plan, batch = plan_of(model), model.module_arguments(np.arange(0, adata.n_obs, 2))
    torch.manual_seed(5)
    with likelihood_path("analytic"):  # what is computed without the CPU's own kernels
        expected = plan._finite_loss(batch)
    expected.backward()
    gradients = {n: p.grad for n, p in model.module.named_parameters()}
    with Accelerator() as device:
        to_device(plan)
        torch.manual_seed(5)
        loss = plan._finite_loss(batch_to_device(batch))
        loss.backward()  # a tensor left on the CPU would have been refused
    assert loss.detach().held == expected.detach()
    for parameter, value in model.module.named_parameters():
        if (found := gradients[parameter]) is not None:
            assert isinstance(value.grad, OnDevice)
            # the first layer is dense elsewhere, and a sum in another order is another rounding
            size = float(found.abs().max())
            torch.testing.assert_close(value.grad.held, found, rtol=1e-4, atol=1e-5 * size + 1e-9)
    if most is not None:
        assert sum(device.waits.values()) <= most, device.waits


def test_views_of_visited_perturbations_are_on_the_device(make_screen, build, as_in_training):
    model = build(make_screen(n_perturbations=8))
    net, guide = model.module.model, model.module.guide
    visits = row_subsampler(net, guide, model._cells.condition, 20, True)
    plan, batch = plan_of(model, visits), model.module_arguments(np.arange(20))
    torch.manual_seed(5)
    with likelihood_path("analytic"):
        expected = plan._finite_loss(batch)
    with Accelerator():
        to_device(plan)
        torch.manual_seed(5)
        loss = plan._finite_loss(batch_to_device(batch))
    assert loss.detach().held == expected.detach()


def test_what_a_gpu_refuses_is_refused():
    with Accelerator() as device:
        there = OnDevice(torch.ones(3))
        assert float((2.0 * there + torch.tensor(1.0)).sum()) == 9.0
        assert sum(device.waits.values()) == 1
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)

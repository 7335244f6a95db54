"""Drawing only the perturbations of a minibatch estimates what drawing all of them gives."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pyro
import pytest
import torch

from pyrocell import Assume, TrainingConfig
from pyrocell.data.loader import MinibatchSampler
from pyrocell.distributions import (
    EventLogNormal,
    EventMultivariateNormal,
    EventNormal,
    GaussianWalk,
    MarkovLowRankNormal,
    log_prob_by_row,
)
from pyrocell.distributions.kernels.compensation import subtract_share
from pyrocell.errors import ScreenError
from pyrocell.generative import screen_tensors
from pyrocell.generative.cell_shift import shifts_shared
from pyrocell.training import row_subsampling as visited
from pyrocell.training.elbo import negative_elbo
from pyrocell.training.fit import train
from pyrocell.training.row_adam import RowAdam, visited_rows
from pyrocell.training.row_subsampling import (
    _DRIVERS,
    _GUIDE,
    _MODEL,
    RowSubsampler,
    row_subsampler,
)

K, BATCH = 7, 4  # perturbations, and cells of a minibatch
SCREENS = {
    "one time": ({"n_batches": 3}, {}),
    "one batch": ({"n_batches": 1}, {"likelihood": "nb"}),
    "media and times": (
        {"media": 1, "times": (1.0, 2.0)},
        {"content_dependent_noise": True},
    ),
    "field": ({"times": (1.0, 2.0)}, {"dynamics": "node"}),
    "noisy states": ({"times": (1.0, 2.0)}, {"dynamics": "sde"}),
    "no residual": ({"times": (1.0, 2.0)}, {"gene_residual": False}),
}


@pytest.fixture(scope="module", params=SCREENS)
def model(request, make_screen, build):
    """A screen of more perturbations than a minibatch has cells, its parameters off their start."""
    screen, options = SCREENS[request.param]
    few = {"n_perturbations": K, "n_cells_per_condition": 2, "n_controls": 4}
    model = build(make_screen(**(few | screen)), {"batch_key": "batch"}, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def at_centre(monkeypatch):
    """Every draw at its centre, so that a loss does not depend on chance."""
    zeros = lambda shape, dtype, device: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    monkeypatch.setattr(torch, "randn", zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", zeros)
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
        yield


def dense_gradients(model) -> dict[str, torch.Tensor]:
    found = {
        name: p.grad.to_dense() if p.grad.is_sparse else p.grad
        for name, p in model.module.named_parameters()
        if p.grad is not None
    }
    model.module.zero_grad()
    return found


def test_mean_over_an_epoch_is_the_loss_and_gradient_of_all_cells(model, at_centre, monkeypatch):
    net, guide, labels = model.module.model, model.module.guide, model.adata.obs["perturbation"]
    # one perturbation has no training cells, and the others differ in how many they have
    seen = np.flatnonzero(labels != sorted(set(labels) - {"control"})[2])
    cells = np.random.default_rng(0).permutation(seen)[: len(seen) // BATCH * BATCH]
    steps = len(cells) // BATCH
    monkeypatch.setattr(visited, "_WITHOUT", 0)
    net.n_cells, whole = len(cells), model.module_arguments(cells)
    loss = negative_elbo(net, guide, whole)
    loss.backward()
    expected = dense_gradients(model)
    visits = RowSubsampler(net, guide, model._cells.condition[cells])
    assert (visits.cells == 0).any()
    found, total = {}, 0.0
    for step, part in enumerate(cells.reshape(-1, BATCH)):
        turn = 0.0 if step == 0 else 1.0  # perturbations without cells take theirs once
        monkeypatch.setattr(torch, "rand", lambda n, turn=turn: torch.full((n,), turn))
        drawn = visits.restrict(model.module_arguments(part))
        assert drawn.model.n_perturbations < K
        with shifts_shared():
            value = negative_elbo(*drawn) / steps
        value.backward()
        total += float(value.detach())
        for name, gradient in dense_gradients(model).items():
            found[name] = found.get(name, 0.0) + gradient
    assert total == pytest.approx(float(loss.detach()), rel=1e-5)
    assert {n for n, g in expected.items() if g.any()} <= found.keys()
    for name, gradient in found.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-3, atol=2e-5 * largest + 1e-4, msg=name
        )


def test_all_that_has_a_row_per_perturbation_is_cut_to_those_drawn(model):
    net, guide = model.module.model, model.module.guide
    drivers = K + net.n_media
    for module, names in ((net, _MODEL), (guide, _GUIDE + _DRIVERS)):
        for name, table in (*module.named_parameters(), *module.named_buffers()):
            inside = "." in name or name in ("undetermined", "baseline_centre", "carried")
            if not inside and table.dim() and table.shape[0] in {K, drivers}:
                assert name in names, name


def trained(model, **settings) -> dict[str, torch.Tensor]:
    state = {k: v.clone() for k, v in model.module.state_dict().items()}
    config = TrainingConfig(**settings)
    model.train(max_epochs=1, batch_size=8, progress_bar=False, config=config)
    after = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.module.load_state_dict(state)
    return after


def test_training_by_minibatch_moves_every_parameter_and_ends_finite(model):
    before, after = model.module.state_dict(), trained(model, by_minibatch=True)
    unmoved = trained(model, by_minibatch=False)
    for name, value in after.items():
        assert value.isfinite().all(), name
        if not torch.equal(unmoved[name], before[name]):
            assert not torch.equal(value, before[name]), name


class _Stopped(Exception):
    """What ends a training early."""


class _StopAt(pl.Callback):
    def on_train_batch_start(self, trainer, plan, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 2):
            raise _Stopped


def test_a_training_by_minibatch_that_was_stopped_ends_as_one_that_was_not(
    make_screen, build, tmp_path
):
    adata, config = make_screen(n_perturbations=K), TrainingConfig(by_minibatch=True)
    settings = {"max_epochs": 3, "batch_size": 12, "progress_bar": False, "config": config}
    whole, stopped, resumed = (build(adata.copy()) for _ in range(3))
    whole.train(**settings)
    settings |= {"checkpoint_dir": tmp_path, "checkpoint_minutes": 0.0}
    with pytest.raises(_Stopped):
        stopped.train(callbacks=_StopAt(), **settings)
    resumed.train(**settings)
    expected = whole.module.state_dict()
    for name, value in resumed.module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_perturbation_without_training_cells_keeps_to_the_prior(make_screen, build):
    adata = make_screen(n_perturbations=K)
    model, label = build(adata), adata.obs["perturbation"]
    net, guide, name = model.module.model, model.module.guide, model.screen.perturbations[2]
    prior, seen = net.priors.on_target_sd, np.flatnonzero(label != name)
    config = TrainingConfig(by_minibatch=True, global_lr=0.05, batch_size=16)
    nothing, settings = seen[:0], {"progress_bar": False, "accelerator": "cpu"}
    train(net, guide, model._cells, seen, nothing, config, max_epochs=30, **settings)
    width = guide.on_target_log_scale.detach().exp()
    assert float(width[2]) == pytest.approx(prior, rel=0.15)
    assert abs(float(guide.on_target_loc.detach()[2])) < 0.15 * prior
    assert (width[[0, 1, 3, 4, 5, 6]] < 0.8 * prior).all()


def test_a_table_too_large_to_be_kept_changes_nothing(make_screen, build, monkeypatch):
    adata, states = make_screen(n_perturbations=K, media=1), []
    for most in (screen_tensors._DENSE, 0):
        monkeypatch.setattr(screen_tensors, "_DENSE", most)
        model = build(adata.copy())
        assert (model.module.model.dense_genotype is None) == (most == 0)
        np.testing.assert_array_equal(model.module.model.genotype, model.screen.genotype)
        states.append(trained(model, by_minibatch=True))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_small_screens_are_trained_as_a_whole(make_screen, build):
    model = build(make_screen())
    default, whole = trained(model), trained(model, by_minibatch=False)
    assert all(torch.equal(default[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("screen", "options", "named"),
    [
        ({"combinations": True}, {}, "combinations"),
        ({"media": 1}, {"interactions": True}, "interactions"),
        ({"times": (1.0, 2.0)}, {"assume": [Assume.steady()]}, "assume"),
    ],
)
def test_what_needs_all_perturbations_at_once_says_so(screen, options, named, make_screen, build):
    model = build(make_screen(**screen), **options)
    parts = model.module.model, model.module.guide, model._cells.condition, 4
    assert row_subsampler(*parts) is None
    with pytest.raises(ScreenError, match=named):
        row_subsampler(*parts, wanted=True)


def test_rows_always_seen_are_moved_as_adam_moves_them():
    start, target = torch.randn(5, 3, 2), torch.randn(5, 3, 2)
    paths = []
    for sparse in (True, False):
        parameter = torch.nn.Parameter(start.clone())
        optimiser = (RowAdam if sparse else torch.optim.Adam)([parameter], lr=0.1)
        for _ in range(20):
            value = visited_rows(parameter, torch.arange(5)) if sparse else parameter
            (value - target).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        paths.append(parameter.detach())
    torch.testing.assert_close(*paths, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_not_seen_stay_and_a_row_rarely_seen_arrives(dtype):
    parameter = torch.nn.Parameter(torch.zeros(4, 2, dtype=dtype))
    optimiser = RowAdam([parameter], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
    for step in range(600):
        rows = torch.tensor([0, 2] if step % 20 == 0 else [0])
        (visited_rows(parameter, rows) - 1).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    expected = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype)[:, None].expand(4, 2)
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=0.02)


def test_cells_of_a_perturbation_travel_together_and_all_cells_come_once_per_epoch(
    make_screen, build
):
    model = build(make_screen(n_perturbations=3, n_cells_per_condition=10, n_controls=20))
    net, guide, condition = model.module.model, model.module.guide, model._cells.condition
    cells = np.arange(0, len(condition), 2)
    visits = RowSubsampler(net, guide, condition[cells])

    def batches() -> MinibatchSampler:
        sampler = MinibatchSampler(cells, 5, seed=3, drop_last=False)
        visits.shuffle(sampler, condition)
        return sampler

    sampler = batches()
    first, second = list(sampler), list(sampler)
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), cells)

    def met(batch: np.ndarray) -> int:
        return visits.restrict(model.module_arguments(batch)).model.n_perturbations

    alone = MinibatchSampler(cells, 5, 3, drop_last=False)
    assert np.mean([met(b) for b in first]) < np.mean([met(b) for b in alone])
    on_disk = MinibatchSampler(cells, 5, seed=3, drop_last=False, block=2)
    before = on_disk.generator
    visits.shuffle(on_disk, condition)
    assert on_disk.generator is before
    resumed = batches()
    resumed.skip(1, 2)
    np.testing.assert_array_equal(np.concatenate(list(resumed)), np.concatenate(second[2:]))


def families() -> dict[str, tuple]:
    """Laws of rows, each with the parameters that it is differentiated by."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(4, 2, 6, generator=generator, requires_grad=True)
    scale = torch.rand(4, 2, 6, generator=generator).add(0.5).requires_grad_()
    tau = torch.rand(4, 2, 3, generator=generator).requires_grad_()
    axes, phi = torch.randn(3, 6, generator=generator), torch.full((4, 2), 0.7)
    unseen = torch.tensor([[False, False], [False, True], [False, False], [False, True]])
    lower = torch.eye(6) + 0.1 * torch.ones(6, 6).tril(-1)
    step, first = scale[:, 1:], scale[:, 0]
    return {
        "normal": (EventNormal(loc, scale), loc, scale),
        "normal around zero": (EventNormal(None, scale[0, 0], (4, 6)), scale),
        "one width": (EventNormal(loc[:, 0, 0], scale[0, 0, 0]), loc, scale),
        "log-normal": (EventLogNormal(loc[:, 0, 0], scale[:, 0, 0]), loc, scale),
        "multivariate": (EventMultivariateNormal(loc[:, 0], scale[:, 0, :, None] * lower), scale),
        "walk": (GaussianWalk(first, step, torch.tensor([0.8])), scale),
        "one node": (GaussianWalk(scale.new_tensor(0.3), step[:, :0]),),
        "Markov": (
            MarkovLowRankNormal(loc, scale, axes, tau, phi, unseen, step.detach()),
            loc,
            scale,
            tau,
        ),
        "other": (torch.distributions.Independent(torch.distributions.Normal(loc, scale), 3), loc),
    }


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("own_draw", [True, False])
def test_densities_by_row_sum_to_the_density(name, own_draw):
    law, *parameters = families()[name]
    torch.manual_seed(1)
    value = law.rsample()
    if not own_draw:
        value = value.detach().clone().requires_grad_()
        parameters.append(value)
    rows = log_prob_by_row(law, value)
    assert rows.shape == value.shape[:1]
    whole = law.log_prob(value).sum()
    torch.testing.assert_close(rows.sum(), whole, rtol=1e-5, atol=1e-5)
    if parameters:
        for found, expected in zip(
            torch.autograd.grad(rows.sum(), parameters, retain_graph=True, allow_unused=True),
            torch.autograd.grad(whole, parameters, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert found is not None or own_draw


def test_what_is_given_back_is_the_same_in_single_precision_and_double():
    generator = torch.Generator().manual_seed(0)
    shape, results = (5, 2, 7), []
    draws = [torch.randn(*s, generator=generator) for s in (shape, shape, shape[:2], shape)]
    for dtype in (torch.float32, torch.float64):  # kernels, and torch's own operations
        loc, ratio, kept, taken = (d.detach().to(dtype).requires_grad_() for d in draws)
        out = subtract_share(loc, ratio.detach(), kept, taken)
        results.append([out, *torch.autograd.grad(out.square().sum(), (loc, kept, taken))])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)

"""The field of states trained alone: the same ELBO, raised in nothing but the field."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pytest
import torch
from anndata import AnnData

from pyrocell import PyroCell, TrainingConfig
from pyrocell.errors import NonFiniteError, ScreenError
from pyrocell.training import state_dynamics as field_training
from pyrocell.training.elbo import negative_elbo
from pyrocell.training.state_dynamics import (
    EncodedCells,
    negative_field_elbo,
    refine_state_dynamics,
)

SETTINGS = {"max_epochs": 1, "progress_bar": False}
STEPS = 20


@pytest.fixture(scope="module")
def adata(make_screen) -> AnnData:
    return make_screen(times=(1.0, 2.0), n_cells_per_condition=6, n_controls=10)


def trained(build, adata: AnnData, dynamics: str, steps: int | None, **options) -> PyroCell:
    model = build(adata.copy(), dynamics=dynamics)
    model.train(config=TrainingConfig(field_steps=steps), **(SETTINGS | options))
    return model


def state(model: PyroCell) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def changed(one: PyroCell, other: PyroCell) -> set[str]:
    after = state(other)
    return {name for name, value in state(one).items() if not torch.equal(value, after[name])}


@pytest.fixture(scope="module", params=["flow", "sde"])
def pair(request, build, adata) -> tuple[PyroCell, PyroCell]:
    """A model without the phase, and with it."""
    return tuple(trained(build, adata, request.param, steps) for steps in (0, STEPS))


def test_nothing_but_the_field_changes(pair):
    moved = changed(*pair)
    own = ("model.motion.", "guide.flow_", "guide.state_noise_", "guide.reversal.")
    assert moved and all(name.startswith(own) for name in moved)
    assert {"model.motion.direction", "guide.flow_loc", "guide.flow_code_log_scale"} <= moved
    noisy = {"guide.state_noise_loc", "guide.reversal.outer.weight"}
    assert noisy <= moved or pair[0].module.config.dynamics == "flow"


def elbo(model: PyroCell, draws: int = 25) -> np.ndarray:
    """Draws of the ELBO per cell of all cells trained on, under the same random numbers."""
    net, guide = model.module.model, model.module.guide
    rows = model.train_indices_
    cells = model._cells.rows(rows, index=np.arange(len(rows)))
    values, n, net.n_cells = [], net.n_cells, len(rows)
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(draws):
            torch.manual_seed(i)
            values.append(-float(negative_elbo(net, guide, cells)) / len(rows))
    net.n_cells = n
    return np.array(values)


def test_the_elbo_of_the_whole_model_rises(pair):
    gain = elbo(pair[1]) - elbo(pair[0])
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


def test_it_is_the_part_of_the_elbo_that_a_field_has(build, adata):
    """With everything but the field held, both differ by the same from one field to another."""
    model = build(adata.copy(), dynamics="flow")
    model.train(train_size=1.0, config=TrainingConfig(field_steps=0), **SETTINGS)
    net, guide = model.module.model, model.module.guide
    rows, n = np.arange(adata.n_obs), 25
    cells = model._cells.rows(rows)

    def both(shift: float) -> tuple[np.ndarray, np.ndarray]:
        whole, part = [], []
        with torch.no_grad():
            guide.flow_loc += shift
            encoded = EncodedCells.of(guide, model._cells, rows, 10)
            for i in range(n):
                torch.manual_seed(i)
                whole.append(float(negative_elbo(net, guide, cells)) / len(rows))
                part.append(float(negative_field_elbo(net, guide, *encoded.draw(len(rows)))))
            guide.flow_loc -= shift
        return np.array(whole), np.array(part)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = both(0.0), both(3.0)
    change = [late - early for early, late in zip(before, after, strict=True)]
    error = sum(each.var() / n for each in change) ** 0.5
    assert abs(change[0].mean() - change[1].mean()) < 3 * error
    assert change[0].mean() > 10 * error


def test_several_ways_give_a_tighter_bound(pair):
    model = pair[1].module.model
    if model.config.dynamics == "flow":
        pytest.skip("a flow has one way")
    guide, rows = pair[1].module.guide, pair[1].train_indices_
    torch.manual_seed(0)
    with torch.no_grad():
        cells = EncodedCells.of(guide, pair[1]._cells, rows, 1)
        draws = [[], []]
        for _ in range(15):
            for ways, found in zip((1, 8), draws, strict=True):
                found.append(float(negative_field_elbo(model, guide, *cells.draw(200), ways)))
    one, many = map(np.array, draws)
    assert one.mean() - many.mean() > -3 * ((one.var() + many.var()) / 15) ** 0.5


def test_the_field_is_a_function_of_model_cells_and_seed(pair):
    module, rows, before = pair[0].module, pair[0].train_indices_, state(pair[0])
    ends = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(ends))
        refine_state_dynamics(module.model, module.guide, pair[0]._cells, rows, 3, 1e-2, seed)
        ends.append(module.guide.flow_loc.detach().clone())
        module.load_state_dict(before)
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_by_default_it_takes_half_as_many_steps_as_the_training(build, adata, monkeypatch):
    taken = []
    refine = "pyrocell.training.fit.refine_state_dynamics"
    monkeypatch.setattr(refine, lambda *a: bool(taken.append(a[4])))
    model = trained(build, adata, "flow", None)
    n = len(model.train_indices_)
    assert taken == [n // TrainingConfig().minibatch(n) // 2]
    with pytest.raises(ScreenError, match="field_steps=-1"):
        trained(build, adata, "flow", -1)


def test_without_moving_states_nothing_is_added(build, adata):
    models = [trained(build, adata, "relaxation", steps) for steps in (0, STEPS)]
    assert not changed(*models)


def test_a_finished_training_is_taken_up_and_ends_with_the_same_field(build, adata, tmp_path):
    options = {"checkpoint_dir": tmp_path / "run", "checkpoint_minutes": 0.0}
    plain = trained(build, adata, "flow", 20)
    first = trained(build, adata, "flow", 20, **options)
    assert not changed(plain, first)
    with pytest.warns(UserWarning, match="this training is finished"):
        again = trained(build, adata, "flow", 20, **options)
    assert not changed(first, again)


def test_ctrl_c_leaves_a_model_that_can_be_asked(build, adata, monkeypatch):
    calls, whole = [], field_training.negative_field_elbo

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(field_training, "negative_field_elbo", interrupt)
    with pytest.warns(UserWarning, match="interrupted after 1 of 1 epochs"):
        model = trained(build, adata, "flow", 20)
    assert len(calls) == 5 and model.is_trained_
    assert np.isfinite(model.perturbation_effects(n_samples=2)["mean"]).all()


def test_a_field_that_diverges_is_named(pair):
    net, guide, rows = pair[0].module.model, pair[0].module.guide, pair[0].train_indices_
    start = net.motion.start.data
    net.motion.start.data = start * float("nan")
    with (
        pyro.validation_enabled(False),
        pytest.raises(NonFiniteError, match=r"of the field stopped at step 0.*global_lr"),
    ):
        refine_state_dynamics(net, guide, pair[0]._cells, rows, 2, 1e-2, 0)
    net.motion.start.data = start


def test_cells_are_encoded_a_block_at_a_time(pair, monkeypatch):
    rows, found = pair[1].train_indices_, []
    for block in (4096, 7):
        monkeypatch.setattr(field_training, "_BLOCK", block)
        torch.manual_seed(0)
        found.append(EncodedCells.of(pair[1].module.guide, pair[1]._cells, rows, 3))
    whole, blocks = found
    assert whole.loc.shape == (3, len(rows), 2) and whole.scale.shape == (len(rows), 2)
    assert (whole.condition.numpy() == pair[1]._cells.condition[rows]).all()
    for name in ("loc", "scale", "condition"):
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name), msg=name)

"""Training: what is logged, what stops it, and what it leaves as it was."""

from __future__ import annotations

import os
import signal
import warnings

import lightning.pytorch as pl
import numpy as np
import pyro
import pytest
import torch

from pyrocell import TrainingConfig
from pyrocell.errors import NonFiniteError, ScreenError
from pyrocell.training.fit import ElboPlan, held_out_elbo

QUIET = {"progress_bar": False}


@pytest.fixture
def model(make_screen, build):
    return build(make_screen(media=1, times=(1.0, 2.0)))


class CallAfterEpoch(pl.Callback):
    """Call something when an epoch has ended, or within its first step."""

    def __init__(self, epoch: int, action, in_step: bool = False):
        self.epoch, self.action, self.in_step = epoch, action, in_step

    def on_train_batch_end(self, trainer, plan, *args) -> None:
        if self.in_step and trainer.current_epoch == self.epoch:
            self.action()

    def on_train_epoch_end(self, trainer, plan) -> None:
        if not self.in_step and trainer.current_epoch == self.epoch:
            self.action()


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def differs(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_history_has_the_loss_and_the_validation_elbo_of_every_epoch(model):
    model.train(max_epochs=4, **QUIET)
    history = model.history
    assert history.index.name == "epoch" and list(history.index) == [0, 1, 2, 3]
    assert {"train_loss", "validation_elbo"} <= set(history)
    assert np.isfinite(history.to_numpy()).all()
    assert model.is_trained and len(model.validation_indices_) == round(0.1 * model.adata.n_obs)
    both = np.concatenate([model.train_indices_, model.validation_indices_])
    assert sorted(both) == list(range(model.adata.n_obs))


def test_training_raises_the_validation_elbo(make_screen, build):
    model = build(make_screen(n_cells_per_condition=60, n_controls=200, n_batches=3, batch_sd=0.8))
    model.train(max_epochs=10, train_size=0.7, **QUIET)
    elbo = model.history["validation_elbo"]
    assert elbo.iloc[-3:].mean() > elbo.iloc[0] + 0.5


def test_all_cells_may_be_trained_on(model):
    model.train(max_epochs=2, train_size=1.0, early_stopping=True, **QUIET)
    assert len(model.validation_indices_) == 0 and list(model.history) == ["train_loss"]


def test_the_same_seed_gives_the_same_result_another_seed_another(make_screen, build):
    results = []
    for seed in (3, 3, 4):
        torch.rand(seed)  # the state of the process does not matter
        model = build(make_screen(media=1))
        model.train(max_epochs=3, batch_size=32, seed=seed, **QUIET)
        effects = model.perturbation_effects(n_samples=5)
        results.append((weights(model), model.history, effects))
    assert not differs(results[0][0], results[1][0])
    assert results[0][1].equals(results[1][1]) and results[0][2].equals(results[1][2])
    assert differs(results[0][0], results[2][0]) and not results[0][2].equals(results[2][2])


def test_training_leaves_the_process_as_it_was(model, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    pyro_settings = pyro.settings.get()
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train(max_epochs=2, **QUIET)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert dict(os.environ) == environment and pyro.settings.get() == pyro_settings
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_progress_bar_shows_the_validation_elbo(model, capfd):
    model.train(max_epochs=2)
    out = "".join(capfd.readouterr())
    assert "validation_elbo" in out and "litlogger" not in out
    assert "Epoch 2/2" in out and "DataLoader" not in out  # one bar of epochs, as scvi-tools has it


def test_the_cpu_can_be_asked_for(model):
    model.train(max_epochs=1, accelerator="cpu", devices=1, **QUIET)
    assert model.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_runs_on_a_gpu_with_sparse_counts(model):
    model.train(max_epochs=2, accelerator="cuda", devices=1, **QUIET)
    assert np.isfinite(model.history.to_numpy()).all()
    model.to_device("cuda")
    assert np.isfinite(model.get_latent_representation()).all()


def test_early_stopping_stops_when_the_validation_elbo_no_longer_rises(model):
    config = TrainingConfig(lr=0.0, global_lr=0.0, patience=3)
    model.train(max_epochs=40, early_stopping=True, config=config, **QUIET)
    assert 4 <= len(model.history) < 40
    best = model.history["validation_elbo"].to_numpy().argmax()
    assert len(model.history) == best + 1 + 3


def test_global_sites_and_networks_have_their_own_learning_rate(model):
    module, config = model.module, TrainingConfig(lr=1e-3, global_lr=2e-2)
    plan = ElboPlan(module.model, module.guide, 10, 10, config)
    fast, slow = plan.configure_optimizers()["optimizer"].param_groups
    assert (fast["lr"], slow["lr"]) == (2e-2, 1e-3)
    owner = {id(p): name for name, p in plan.named_parameters()}
    assert {owner[id(p)] for p in slow["params"]} >= {
        "model.loading",
        "guide.encoder.body.0.weight",
    }
    assert "guide.effect_loc" in {owner[id(p)] for p in fast["params"]}
    assert len(fast["params"]) + len(slow["params"]) == len(owner)


@pytest.mark.parametrize(
    ("owner", "parameter", "site"),
    [
        ("guide", "effect_loc", "P.effect"),
        ("guide", "eta_log_scale", "eta.free"),
        ("guide", "media_effect_loc", "M.effect"),
        ("model", "log_effect_scale", "P.effect"),
    ],
)
def test_nan_in_training_stops_with_the_name_of_the_site(model, owner, parameter, site):
    bad = getattr(getattr(model.module, owner), parameter)

    def break_it():
        bad.data.view(-1)[0] = float("nan")

    callback = CallAfterEpoch(1, break_it)
    with pytest.raises(NonFiniteError, match=f'site "{site}".*{owner}.{parameter}') as caught:
        model.train(max_epochs=5, callbacks=[callback], **QUIET)
    assert caught.value.site == site
    assert not model.is_trained


def test_nan_at_the_very_end_is_not_passed_over(model):
    bad = model.module.guide.gate_loc

    def break_it():
        bad.data[0] = float("inf")

    with pytest.raises(NonFiniteError, match="guide.gate_loc"):
        model.train(max_epochs=2, train_size=1.0, callbacks=[CallAfterEpoch(1, break_it)], **QUIET)


@pytest.mark.parametrize("in_step", [False, True], ids=["between epochs", "within an epoch"])
def test_interrupting_leaves_a_usable_model(model, in_step, request):
    # a process started in the background ignores Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    handler = signal.getsignal(signal.SIGINT)
    press = CallAfterEpoch(2, lambda: signal.raise_signal(signal.SIGINT), in_step)
    with pytest.warns(UserWarning, match="interrupted after 2 of 50 epochs"):
        model.train(max_epochs=50, callbacks=press, **QUIET)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert model.is_trained and list(model.history.index) == [0, 1]
    assert float(model.module.model.kl_weight) == 1.0
    assert model.module.model.n_cells == model.adata.n_obs
    assert np.isfinite(model.perturbation_effects(n_samples=5)["mean"]).all()
    model.train(max_epochs=2, **QUIET)
    assert len(model.history) == 2


def test_settings_that_cannot_work_are_refused_by_name(model):
    for arguments in ({"train_size": 0.0}, {"train_size": 1.5}, {"max_epochs": 0}):
        with pytest.raises(ScreenError, match=next(iter(arguments))):
            model.train(**arguments, **QUIET)
    with pytest.raises(ScreenError, match="batch_size=0"):
        model.train(batch_size=0, **QUIET)


def test_epochs_follow_from_the_steps_aimed_at():
    config = TrainingConfig(steps=1000, batch_size=100, min_epochs=20, max_epochs=110)
    assert [config.epochs(n) for n in (80, 1000, 100_000)] == [110, 100, 20]


def test_the_held_out_elbo_has_one_value_per_cell(fitted):
    values = held_out_elbo(
        fitted.module.model, fitted.module.guide, fitted.module_arguments([1, 5])
    )
    assert values.shape == (2,) and (values < 0).all()

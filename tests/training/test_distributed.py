"""Several processes train as one does with their minibatches together, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrocell import TrainingConfig
from pyrocell.data.loader import MinibatchSampler
from pyrocell.errors import NonFiniteError, ProcessError, ScreenError
from pyrocell.training.distributed import requested
from pyrocell.training.fit import held_out_elbo

QUIET = {"accelerator": "cpu", "progress_bar": False}
TWO = {"devices": 2, **QUIET}
LIMIT = 500  # seconds; processes start within ten on an idle machine

needs_processes = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


@pytest.fixture(autouse=True)
def no_hang():
    """A test that hangs fails."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def screen(make_screen):
    return make_screen(n_cells_per_condition=40, n_controls=80)


# Callbacks run in other processes, which know none of the tests' modules: a class made in a
# function travels with what it does.
def when(hook: str, action, **facts) -> pl.Callback:
    """Call ``action(trainer, plan, batch_idx, **facts)`` in a hook of Lightning's."""

    class When(pl.Callback):
        pass

    def call(self, trainer, plan, *args, **_):
        action(trainer, plan, args[-1] if args else None, **facts)

    setattr(When, hook, call)
    return When()


# ---------------------------------------------------------------------- the same cells and steps
@given(
    n=st.integers(1, 60), size=st.integers(1, 20), processes=st.integers(1, 4), seed=st.integers(0)
)
def test_processes_share_the_minibatches_of_one(n, size, processes, seed):
    if n < size * processes:
        return
    cells = np.arange(n) * 3
    one = MinibatchSampler(cells, size * processes, seed, True)
    parts = [
        MinibatchSampler(cells, size, seed, True, rank=r, processes=processes)
        for r in range(processes)
    ]
    assert {len(part) for part in parts} == {len(one)}
    for _ in range(2):
        for together, *own in zip(one, *parts, strict=True):
            assert {len(cells) for cells in own} == {size}
            assert sorted(np.concatenate(own)) == list(together)


@given(n=st.integers(100, 10**6), size=st.integers(1, 25), processes=st.integers(1, 4))
def test_processes_make_as_many_epochs_as_one(n, size, processes):
    config, together = (TrainingConfig(batch_size=size * k) for k in (1, processes))
    assert config.epochs(n, processes) == together.epochs(n)


@given(n=st.integers(100, 10**7), processes=st.integers(1, 16))
def test_by_default_processes_take_as_many_steps_as_one_or_as_are_aimed_at(n, processes):
    config = TrainingConfig()
    together = processes * config.minibatch(n, processes)
    one = config.minibatch(n)
    taken, alone = (config.epochs(n) * n / cells for cells in (together, one))
    assert together <= max(processes, one) or config.min_epochs * n / together >= config.steps
    assert together <= processes * one and (taken >= min(alone, config.steps) or one < processes)


# ---------------------------------------------------------------------- who starts them
def test_what_is_asked_for_is_counted(monkeypatch):
    two = requested("cpu", 2, strategy="ddp")
    assert (two.total, two.rank, two.to_start) == (2, 0, True)
    one = requested("cpu", "auto")
    assert (one.total, one.to_start) == (1, False) and one.options["devices"] == 1
    assert [requested("cpu", devices).total for devices in ("3", 1)] == [3, 1]
    assert requested("cuda", [0, 1]).total == 2
    for arguments in ({"num_nodes": 2}, {"strategy": "fsdp"}):
        with pytest.raises(ScreenError, match="torchrun"):
            requested("cpu", 2, **arguments)
    settings = {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "RANK": 3, "LOCAL_RANK": 1}
    settings["TORCHELASTIC_RUN_ID"] = "x"
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    found = requested("cpu", "auto")
    assert (found.total, found.rank, found.to_start) == (4, 3, False)
    assert (found.options["devices"], found.options["num_nodes"]) == (2, 2)


def test_more_processes_than_cells_are_refused(make_screen, build):
    with pytest.raises(ScreenError, match="cannot be shared by 99 processes"):
        build(make_screen()).train(devices=99, **QUIET)


# ---------------------------------------------------------------------- two processes
@needs_processes
def test_the_gradient_of_two_processes_is_that_of_one_with_both_minibatches(
    screen, build, tmp_path
):
    def silence(trainer, plan, _):
        plan.noise = torch.randn, torch.randn_like, torch.Tensor.normal_
        torch.randn = lambda *shape, generator=None, **options: torch.zeros(*shape, **options)
        torch.randn_like = torch.zeros_like
        torch.Tensor.normal_ = lambda self, *_, **__: self.zero_()

    def restore(trainer, plan, _):
        torch.randn, torch.randn_like, torch.Tensor.normal_ = plan.noise

    def keep(trainer, plan, _, path):
        if trainer.global_rank == 0 and not trainer.global_step:
            torch.save({n: p.grad for n, p in plan.named_parameters() if p.grad is not None}, path)

    gradients = {}
    for devices, size in ((1, 48), (2, 24)):
        path = tmp_path / f"{devices}.pt"
        callbacks = [
            when("on_train_start", silence),
            when("teardown", restore),
            when("on_before_optimizer_step", keep, path=path),
        ]
        build(screen.copy()).train(
            devices=devices, batch_size=size, max_steps=1, callbacks=callbacks, **QUIET
        )
        gradients[devices] = torch.load(path)
    assert gradients[1].keys() == gradients[2].keys() and len(gradients[1]) > 20
    for name, gradient in gradients[1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            gradients[2][name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name
        )


@needs_processes
def test_two_processes_end_with_the_same_parameters_and_return_them(screen, build, tmp_path):
    def part(trainer, plan, _):
        if trainer.global_rank:  # DDP begins with the first one's
            plan.model.loading.data += 1.0

    def note(trainer, plan, batch_idx, folder):
        if (trainer.current_epoch, batch_idx) == (1, 0):
            drawn = torch.rand(3), torch.get_num_threads(), trainer.world_size
            torch.save(drawn, folder / f"noise-{trainer.global_rank}")

    def leave(trainer, plan, _, folder):
        torch.save(plan.state_dict(), folder / f"state-{trainer.global_rank}")

    model, few = build(screen), {"max_epochs": 4, "batch_size": 8, "early_stopping": True}
    callbacks = [
        when("setup", part),
        when("on_train_batch_start", note, folder=tmp_path),
        when("on_train_end", leave, folder=tmp_path),
    ]
    environment = dict(os.environ)
    random = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train(callbacks=callbacks, accumulate_grad_batches=2, **few, **TWO)
    assert dict(os.environ) == environment and torch.equal(torch.random.get_rng_state(), random)
    states = [torch.load(tmp_path / f"state-{rank}") for rank in range(2)]
    noise = [torch.load(tmp_path / f"noise-{rank}") for rank in range(2)]
    for name, value in states[0].items():
        if not name.startswith("loss"):
            assert torch.equal(states[1][name], value), name
    assert not torch.equal(noise[0][0], noise[1][0])
    assert [n[1:] for n in noise] == [(1, 2), (1, 2)]  # one thread each
    ours = {f"model.{n}": v for n, v in model.module.model.named_parameters()}
    ours |= {f"guide.{n}": v for n, v in model.module.guide.named_parameters()}
    assert all(torch.equal(states[0][name], value) for name, value in ours.items())
    assert list(model.history.index) == [0, 1, 2, 3] and model.is_trained
    assert {"train_loss", "validation_elbo"} <= set(model.history)
    assert np.isfinite(model.perturbation_effects(n_samples=5)["mean"]).all()


@needs_processes
def test_two_processes_reach_the_elbo_of_one(screen, build):
    elbo, sd = {}, 0.025  # of the difference between two trainings, from four seeds of each
    for devices, size in ((1, 32), (2, 16)):
        model = build(screen.copy())
        settings = {"max_epochs": 20, "batch_size": size, "train_size": 1.0}
        model.train(devices=devices, **settings, **QUIET)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts = model.module.model, model.module.guide, model.module_arguments()
            elbo[devices] = np.mean([held_out_elbo(*parts).mean().item() for _ in range(30)])
    assert abs(elbo[2] - elbo[1]) < 4 * sd


@needs_processes
def test_processes_read_counts_that_are_left_in_a_file(screen, build, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    models = [build(cells) for cells in (screen, ad.read_h5ad(tmp_path / "screen.h5ad", "r"))]
    for model in models:
        model.train(max_epochs=1, batch_size=16, **TWO)
    here, there = (model.module.state_dict() for model in models)
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, msg=name)


@needs_processes
def test_two_processes_that_were_stopped_go_on_where_they_were(screen, build, tmp_path):
    def stop(trainer, plan, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            raise KeyboardInterrupt

    settings = {"max_epochs": 3, "batch_size": 16, **TWO}
    whole = build(screen.copy())
    whole.train(**settings)
    settings |= {"checkpoint_dir": tmp_path / "run", "checkpoint_minutes": 0.0}
    with pytest.warns(UserWarning, match="interrupted after 1 of 3 epochs"):
        build(screen.copy()).train(callbacks=when("on_train_batch_start", stop), **settings)
    model = build(screen.copy())
    model.train(**settings)
    np.testing.assert_allclose(model.history, whole.history, rtol=0, atol=1e-4)
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], value, msg=name)
    with pytest.warns(UserWarning, match="this training is finished"):
        model.train(**settings)


@needs_processes
def test_ctrl_c_stops_all_processes_and_leaves_a_usable_model(screen, build, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def press(trainer, plan, _, parent):
        if trainer.global_rank == 0 and trainer.current_epoch == 2:
            os.kill(parent, signal.SIGINT)

    callback = when("on_train_epoch_start", press, parent=os.getpid())
    model = build(screen)
    with pytest.warns(UserWarning, match="interrupted after [0-9]+ of 5000 epochs"):
        model.train(max_epochs=5000, batch_size=16, callbacks=callback, **TWO)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert 2 <= len(model.history) < 5000
    assert np.isfinite(model.perturbation_effects(n_samples=5)["mean"]).all()


# ---------------------------------------------------------------------- processes that fail
@needs_processes
@pytest.mark.slow
def test_a_failure_in_one_process_is_one_error_by_name(screen, build):
    def spoil(trainer, plan, _):
        if trainer.global_rank == 1:
            plan.guide.effect_loc.data.view(-1)[0] = float("nan")

    def die(trainer, plan, _):
        if trainer.global_rank == 1:
            os._exit(3)

    model = build(screen)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    settings = {"max_epochs": 500, "batch_size": 16, **TWO}
    with pytest.raises(NonFiniteError, match='site "P.effect".*guide.effect_loc') as caught:
        model.train(callbacks=when("on_train_epoch_end", spoil), **settings)
    assert caught.value.site == "P.effect"
    with pytest.raises(ProcessError, match="a process of the training died"):
        model.train(callbacks=when("on_train_epoch_end", die), **settings)
    assert not model.is_trained
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@needs_processes
@pytest.mark.slow
def test_under_torchrun_every_process_returns_with_the_model(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(
        """
import os, sys, torch
from pyrocell import PyroCell, simulate

adata = simulate.screen(
    seed=0, n_perturbations=3, n_genes=12, n_cells_per_condition=40, n_controls=80, n_batches=2
)
PyroCell.setup_anndata(adata)
model = PyroCell(adata, n_latent=2, n_response=2, n_hidden=16)
model.train(max_epochs=2, batch_size=16, accelerator="cpu", progress_bar=False)
torch.save((model.module.state_dict(), model.history), f"{sys.argv[1]}/{os.environ['RANK']}")
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": here, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [*command, script, tmp_path], check=True, env=environment, timeout=LIMIT, cwd=tmp_path
    )
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    assert all(torch.equal(second[0][name], value) for name, value in first[0].items())
    assert first[1].equals(second[1]) and len(first[1]) == 2

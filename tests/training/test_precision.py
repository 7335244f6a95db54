"""Products of less precision: taken where the test passes, and put back whatever happens."""

from __future__ import annotations

import logging

import numpy as np
import pyro
import pytest
import torch
from accelerator import PRODUCTS, Accelerator, batch_to_device, to_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocell import TrainingConfig
from pyrocell.errors import ScreenError
from pyrocell.training import precision
from pyrocell.training.fit import ElboPlan
from pyrocell.training.precision import TF32Check, is_tf32, too_far

QUIET = {"progress_bar": False, "max_epochs": 2}


def rounded(bits: int):
    """What keeps so many significant bits of float32 and cuts the others, as TF32 units may."""

    def keep(x: Tensor) -> Tensor:
        lost = 24 - bits
        return (x.contiguous().view(torch.int32) >> lost << lost).view(torch.float32)

    return keep


class Rounding(TorchDispatchMode):
    """Products of factors with fewer bits, on the CPU."""

    def __init__(self, bits: int):
        super().__init__()
        self.keep = rounded(bits)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket in PRODUCTS and args[-1].dtype == torch.float32:
            args = (*args[:-2], *(self.keep(t) for t in args[-2:]))
        return op(*args, **(kwargs or {}))


@pytest.fixture
def reduced_to(monkeypatch):
    """Let the CPU have reduced products of so many bits; lists what was set."""

    def use(bits: int) -> list[bool]:
        mode, said = Rounding(bits), []
        state = {"on": False}

        def set_tf32(wanted: bool) -> None:
            if wanted != state["on"]:
                (mode.__enter__ if wanted else lambda: mode.__exit__(None, None, None))()
            state["on"] = wanted
            said.append(wanted)

        monkeypatch.setattr(precision, "has_tf32", lambda device: True)
        monkeypatch.setattr(precision, "set_tf32", set_tf32)
        monkeypatch.setattr(precision, "is_tf32", lambda: state["on"])
        return said

    return use


@pytest.fixture
def model(make_screen, build):
    return build(make_screen())


@pytest.fixture
def verdicts(monkeypatch):
    """What the trainings of a test decided."""
    found, start = [], TF32Check.on_train_start

    def on_train_start(self, *args) -> None:
        start(self, *args)
        found.append(self.reduced)

    monkeypatch.setattr(TF32Check, "on_train_start", on_train_start)
    return found


def test_accurate_products_are_taken_and_inaccurate_ones_are_not(
    model, reduced_to, verdicts, caplog
):
    caplog.set_level(logging.INFO, "pyrocell")
    for bits, expected in ((11, True), (2, False)):
        said = reduced_to(bits)
        model.train(**QUIET)
        assert verdicts.pop() is expected
        assert said[-1] is False and not precision.is_tf32()
    first, second = caplog.messages
    assert first == "matrix products of training in TF32"
    assert "in float32: TF32 changes" in second and "steps can tell" in second


def test_rows_of_a_minibatch_are_tested_too(make_screen, build, reduced_to, verdicts):
    reduced_to(11)
    config = TrainingConfig(by_minibatch=True)
    build(make_screen(n_perturbations=8)).train(config=config, **QUIET)
    assert verdicts == [True]


def test_held_out_cells_are_evaluated_in_full(model, reduced_to, monkeypatch):
    reduced_to(11)
    seen = {}
    for name in ("training_step", "validation_step"):
        step = getattr(ElboPlan, name)

        def watched(self, batch, i, name=name, step=step):
            seen.setdefault(name, set()).add(precision.is_tf32())
            return step(self, batch, i)

        monkeypatch.setattr(ElboPlan, name, watched)
    model.train(**QUIET)
    assert seen == {"training_step": {True}, "validation_step": {False}}


def test_full_precision_is_never_left(model, reduced_to, verdicts):
    said = reduced_to(11)
    model.train(config=TrainingConfig(precision="full"), **QUIET)
    assert verdicts == [False] and not any(said)
    with pytest.raises(ScreenError, match="precision='half' is not known"):
        model.train(config=TrainingConfig(precision="half"), **QUIET)


def test_products_are_put_back_after_an_error(model, reduced_to, monkeypatch):
    said = reduced_to(11)

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(ElboPlan, "on_train_epoch_end", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.train(**QUIET)
    assert True in said and not precision.is_tf32()


def test_a_training_that_goes_on_keeps_its_verdict(make_screen, build, reduced_to, tmp_path):
    said = reduced_to(11)
    options = {"checkpoint_dir": tmp_path, "checkpoint_minutes": 0.0, **QUIET}

    class Stop(TF32Check):
        state_key = "Stop"

        def on_train_epoch_end(self, *_: object) -> None:
            raise RuntimeError("power cut")

        on_train_start = on_validation_start = on_validation_end = lambda *_: None

    cut = Stop(None, None, np.zeros(0), 1, 0)
    with pytest.raises(RuntimeError, match="power cut"):
        build(make_screen()).train(callbacks=[cut], **options)
    assert True in said
    said = reduced_to(2)  # would fail the test
    build(make_screen()).train(**options)
    assert True in said


def test_the_test_leaves_the_draws_of_training_as_they_were(make_screen, build, reduced_to):
    plain, tested = build(make_screen()), build(make_screen())
    plain.train(**QUIET)
    reduced_to(2)
    tested.train(**QUIET)
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, tested.module.state_dict()[name]), name


def test_the_cpu_is_left_as_the_user_has_set_it(model):
    before = is_tf32()
    try:
        for wanted in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = wanted
            model.train(**QUIET)
            assert is_tf32() is wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_tolerance_is_what_the_steps_cannot_tell():
    rng = torch.Generator().manual_seed(0)
    names = ["loss", "weight"]
    full = [[torch.randn((), generator=rng), torch.randn(400, generator=rng)] for _ in range(3)]
    noise, steps = 400**0.5, 100  # spread of the second one; a tenth of it is too much
    nothing = [torch.zeros(()), torch.zeros(400)]
    for share, fine in ((0.05, True), (0.2, False)):
        error = share * noise * torch.nn.functional.normalize(torch.ones(400), dim=0)
        errors = [[nothing[0], error]] * 3
        found = too_far(names, full, errors, steps)
        assert (found == "") is fine
        assert fine or "weight" in found
    # what has another sign at every step is noise
    assert not too_far(names, full, [[nothing[0], sign * error] for sign in (1, -1, 0)], steps)
    assert "loss" in too_far(names, full, [[torch.tensor(torch.nan), nothing[1]]] * 3, steps)
    sparse = [[a, b.to_sparse()] for a, b in full]
    errors = [[nothing[0], error.to_sparse()]] * 3
    assert "weight" in too_far(names, sparse, errors, steps)


def test_rounding_to_tf32_away_from_the_cpu_passes_on_a_screen(make_screen, build):
    """The path that a GPU takes, its products in emulated TF32, against what steps can tell."""
    model = build(make_screen(n_cells_per_condition=40, n_controls=100), n_latent=4)
    net, batches = model.module.model, []
    for i in range(3):
        batches.append(model.module_arguments(np.arange(i, model.adata.n_obs, 3)))
    plan = ElboPlan(net, model.module.guide, net.n_cells, 3000, TrainingConfig())
    with Accelerator():
        to_device(plan)
    settings = pyro.settings.context(module_local_params=True)
    with settings, pyro.validation_enabled(False):
        found = [gradient(plan, batch, i, None) for i, batch in enumerate(batches)]
        tried = [gradient(plan, batch, i, rounded(11)) for i, batch in enumerate(batches)]
    errors = [
        [b if a is None else b - a for a, b in zip(*both, strict=True)]
        for both in zip(found, tried, strict=True)
    ]
    names = ["loss", *(name for name, _ in plan.named_parameters())]
    assert too_far(names, found, errors, 3000) == ""


def gradient(plan, batch, seed, keep) -> list[Tensor | None]:
    with Accelerator(keep):
        torch.manual_seed(seed)
        values = precision._gradient(plan, batch_to_device(batch))
    return [None if v is None else v.held for v in values]

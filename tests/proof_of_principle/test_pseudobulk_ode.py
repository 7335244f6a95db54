"""The gene-space neural ODE on pseudobulks: laws of its flow, its two losses, what users meet."""

from __future__ import annotations

import re
from functools import partialmethod
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import pyrocell
from pyrocell.errors import CountError, NonFiniteError, ScreenError, UnknownLabelError
from pyrocell.proof_of_principle.loss import PathLoss
from pyrocell.proof_of_principle.vector_field import VectorField, flow, initial_field, velocity

GENES = 6
STEP = 0.25
TRUE_RATE = 0.25  # per day, of the simulated relaxation


def field_of(seeds=(0, 1), double: bool = False) -> VectorField:
    drawn = initial_field(seeds, GENES, n_drivers=3, n_hidden=8, n_layers=2)
    if not double:
        return drawn
    return VectorField(*(tuple(t.double() for t in p) for p in drawn[:2]), drawn.drive.double())


def profiles(n: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    start = torch.rand(n, GENES, generator=generator, dtype=dtype) * 3
    return start, (torch.rand(n, 3, generator=generator) < 0.5).to(dtype)


def at(*times: float) -> torch.Tensor:
    return torch.tensor(times, dtype=torch.float64)


@pytest.fixture(scope="module")
def screen() -> AnnData:
    """Relaxation of 5 knockouts, days 1 to 4, along one direction; control stays."""
    rng = np.random.default_rng(3)
    rest, direction = rng.uniform(2.0, 3.0, GENES), rng.normal(size=GENES)
    labels, times, counts = [], [], []
    sizes = {"control": 0.0, "A": 1.0, "B": -0.7, "C": 1.2, "D": 0.6, "E": -1.0}
    for name, size in sizes.items():
        shift = size * direction
        for time in (1.0, 2.0, 3.0, 4.0):
            mean = np.expm1(rest + shift * (1 - np.exp(-TRUE_RATE * time)))
            counts.append(rng.poisson(np.tile(mean, (60, 1))))
            labels += [name] * 60
            times += [time] * 60
    obs = pd.DataFrame({"perturbation": labels, "time": times, "depth": 1.0})
    obs.index = obs.index.astype(str)
    genes = [f"g{i}" for i in range(GENES)]
    return AnnData(sp.csr_matrix(np.concatenate(counts)), obs, pd.DataFrame(index=genes))


@pytest.fixture(scope="module")
def ode(screen) -> pyrocell.PseudobulkODE:
    return pyrocell.PseudobulkODE(screen, size_factor_key="depth", n_hidden=16)


HELD_OUT = pd.DataFrame({"perturbation": ["A", "B"], "time": 4.0})


# ---------------------------------------------------------------------- the flow
def test_waiting_for_no_time_changes_nothing():
    start, drivers = profiles(4)
    for times in (at(0.0), at(0.0, 1.3)):
        found = flow(field_of(double=True), start, drivers, times, STEP)[0]
        assert torch.equal(found, start.expand(2, -1, -1))


@given(s=st.floats(0.05, 2.0), t=st.floats(0.05, 2.0))
def test_waiting_twice_is_waiting_for_the_sum(s, t):
    field, (start, drivers) = field_of(double=True), profiles(4)
    first = flow(field, start, drivers, at(s), STEP)[0]
    twice = flow(field, first, drivers, at(t), STEP)[0]
    once = flow(field, start, drivers, at(s + t), STEP)[0]
    # RK4 and the cubic between its steps: errors of order step⁴, velocities below 1.
    torch.testing.assert_close(twice, once, atol=STEP**4 / 10, rtol=0)


def test_the_solver_is_of_fourth_order():
    field, (start, drivers) = field_of(double=True), profiles(4)
    exact = flow(field, start, drivers, at(2.0), 1 / 64)
    coarse, fine = (
        (flow(field, start, drivers, at(2.0), h) - exact).abs().max() for h in (0.5, 0.25)
    )
    assert coarse < 1e-3
    assert 8 < coarse / fine < 32


def test_a_path_does_not_depend_on_rows_or_times_solved_with_it():
    field, (start, drivers) = field_of(double=True), profiles(5)
    alone = flow(field, start[2:3], drivers[2:3], at(1.1), STEP)
    among = flow(field, start, drivers, at(0.0, 0.3, 1.1, 2.7), STEP)
    torch.testing.assert_close(among[2, :, 2], alone[0, :, 0], atol=1e-12, rtol=0)


def test_a_seed_draws_the_same_network_whichever_others_there_are():
    alone, among = field_of((7,)), field_of((3, 7, 1))
    for one, many in zip(alone.tensors(), among.tensors()):
        assert torch.equal(one[0], many[1])
    assert not torch.equal(among.drive[0], among.drive[1])


# ---------------------------------------------------------------------- the losses
def task_of(n_steady: int) -> PathLoss:
    """Three paths of which the last `n_steady` are to stay; two conditions, the second held out."""
    start, drivers = profiles(3, torch.float32)
    return PathLoss(
        start=start,
        drivers=drivers,
        n_steady=n_steady,
        times=at(1.0, 2.0),
        step=STEP,
        row=torch.tensor([0, 1]),
        time_index=torch.tensor([1, 0]),
        target=start[:2] + 0.1,
        seen=torch.tensor([0]),
        out=torch.tensor([1]),
    )


def test_no_weight_on_the_steady_state_is_equation_5(ode, screen):
    fit = {"seeds": (0, 1), "max_epochs": 5}
    plain = ode.fit(**fit)
    zero = ode.fit(**fit, steady_state_weight=0.0, steady=["A"])
    pd.testing.assert_frame_equal(plain, zero)
    loss, moved, _ = task_of(1).errors(field_of())
    assert torch.equal(task_of(1).total(loss, moved, 0.0), loss)
    # By hand: the mean square over genes of where each condition ended, averaged over conditions.
    seen = ode.screen.conditions[["perturbation", "time"]]
    found = ode.predict(seen, return_seeds=True).to_numpy()
    by_hand = ((found - ode.levels.to_numpy()) ** 2).mean((1, 2))
    last = plain[plain["epoch"] == 5].set_index("seed")["loss"]
    np.testing.assert_allclose(last, by_hand, rtol=1e-5)


def test_the_steady_term_is_zero_exactly_where_the_field_does_not_move_a_condition():
    field, task = field_of((0,)), task_of(1)
    _, moved, _ = task.errors(field)
    assert moved.item() > 1e-4
    x, drivers = task.start[None, -1:], task.drivers[-1:]
    here = velocity(field, x, field.biases[0] + drivers @ field.drive)
    shifted = (*field.biases[:-1], field.biases[-1] - here)
    loss, moved, _ = task.errors(VectorField(field.weights, shifted, field.drive))
    assert moved.item() < 1e-12
    torch.testing.assert_close(task.total(loss, moved, 5.0), loss)


def test_the_steady_term_is_counted_once_per_steady_condition():
    task, field = task_of(2), field_of((0,))
    loss, moved, _ = task.errors(field)
    torch.testing.assert_close(task.total(loss, moved, 3.0), loss + 3.0 * 2 * moved)


def test_steady_conditions_are_those_named_and_not_held_out(ode):
    fit = {"seeds": [0], "max_epochs": 2, "steady_state_weight": 1.0, "held_out": HELD_OUT}
    labels = ode.fit(**fit, steady=["A", "C"])  # A at day 3, C at day 4
    table = pd.DataFrame({"perturbation": ["A", "C", "B"], "time": [3.0, 4.0, 4.0]})
    pd.testing.assert_frame_equal(labels, ode.fit(**fit, steady=table))
    rest = ode.fit(**fit, steady=["control", "C", "D", "E"])
    pd.testing.assert_frame_equal(rest, ode.fit(**fit))
    with pytest.raises(ScreenError, match="no condition is left to be steady"):
        ode.fit(**fit, steady=HELD_OUT)


def test_what_is_held_out_does_not_reach_the_fit(screen):
    changed = screen.copy()
    rows = (screen.obs["perturbation"].isin(["A", "B"]) & (screen.obs["time"] == 4)).to_numpy()
    changed.X = sp.diags_array(np.where(rows, 3, 1)) @ screen.X
    fits = []
    for adata in (screen, changed):
        ode = pyrocell.PseudobulkODE(adata, size_factor_key="depth", n_hidden=8)
        history = ode.fit([0], 8, steady_state_weight=1.0, held_out=HELD_OUT)
        fits.append((history, ode.predict(HELD_OUT).X))
    (first, prediction), (second, again) = fits
    np.testing.assert_array_equal(prediction, again)
    pd.testing.assert_frame_equal(first.drop(columns="held_out"), second.drop(columns="held_out"))
    assert (first["held_out"] != second["held_out"]).all()


# ---------------------------------------------------------------------- fitting
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_seed_fits_the_same_whichever_others_are_in_the_batch(ode, weight):
    fit = {"max_epochs": 30, "steady_state_weight": weight, "held_out": HELD_OUT}
    among = ode.fit([4, 9, 2, 5], **fit)
    predicted = ode.predict(HELD_OUT, return_seeds=True).sel(seed=9)
    alone = ode.fit([9], **fit)
    again = ode.predict(HELD_OUT, return_seeds=True).sel(seed=9)
    np.testing.assert_allclose(predicted, again, atol=1e-4)
    mine = among[among["seed"] == 9].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone, rtol=1e-3, atol=1e-6)


def test_a_fit_beats_carrying_the_last_day_forward(ode):
    history = ode.fit(range(3), 300, learning_rate=3e-3, held_out=HELD_OUT)
    truth = ode.levels.xs(4.0, level="time").droplevel("media").loc[["A", "B"]]
    before = ode.levels.xs(3.0, level="time").droplevel("media").loc[["A", "B"]]
    carried = ((before - truth).to_numpy() ** 2).mean()
    final = history[history["epoch"] == 300]["held_out"]
    assert final.mean() < carried
    assert history.groupby("epoch")["loss"].mean().iloc[[0, -1]].is_monotonic_decreasing
    predicted = ode.predict(HELD_OUT)
    assert ((predicted.X - truth.to_numpy()) ** 2).mean() < carried
    assert predicted.obs["perturbation"].tolist() == ["A", "B"]
    assert (predicted.layers["sd"] > 0).all()


def test_the_steady_term_slows_what_it_is_asked_of(ode):
    later = pd.DataFrame({"perturbation": "C", "time": [4.0, 8.0]})
    change = {}
    for weight in (0.0, 10.0):
        ode.fit([0, 1], 150, learning_rate=3e-3, steady_state_weight=weight, steady=["C"])
        found = ode.predict(later).X
        change[weight] = np.abs(found[1] - found[0]).mean()
    assert change[10.0] < change[0.0] / 2


def test_same_time_controls_are_where_paths_start(screen):
    ode = pyrocell.PseudobulkODE(screen, size_factor_key="depth", start="same_time")
    ode.fit([0], 3)
    start = torch.tensor(ode.levels.loc[[("control", "baseline", 3.0)]].to_numpy()).float()
    expected = flow(ode._field, start, torch.zeros(1, 5), at(3.0) / 2.5, 4 / 2.5 / 5)
    found = ode.predict(pd.DataFrame({"perturbation": ["control"], "time": 3.0})).X
    np.testing.assert_allclose(found, expected[0, 0], atol=1e-6)
    with pytest.raises(UnknownLabelError, match=r"no controls in baseline medium at time 3\.5"):
        ode.predict(pd.DataFrame({"perturbation": ["A"], "time": 3.5}))


def test_hours_and_days_are_the_same_model(screen):
    hours = screen.copy()
    hours.obs["time"] *= 24
    fits = [pyrocell.PseudobulkODE(a, size_factor_key="depth").fit([0], 5) for a in (screen, hours)]
    pd.testing.assert_frame_equal(*fits, rtol=1e-4)


def test_media_and_combinations_are_drivers_too(make_screen):
    adata = make_screen(media=1, times=(1.0, 2.0), combinations=True)
    ode = pyrocell.PseudobulkODE(adata, media_key="media")
    stimulated = ode.screen.media[0]
    pair = next(p for p in ode.screen.conditions["perturbation"] if "+" in p)
    history = ode.fit([0], 3, steady_state_weight=1.0)
    assert history["steady_state"].notna().all()
    asked = pd.DataFrame({"perturbation": pair, "media": ["baseline", stimulated], "time": 2.0})
    found = ode.predict(asked).X
    assert np.abs(found[0] - found[1]).max() > 1e-3


# ---------------------------------------------------------------------- what users meet
def test_nothing_is_written_into_the_users_data(screen):
    adata = screen.copy()
    ode = pyrocell.PseudobulkODE(adata, size_factor_key="depth")
    ode.fit([0], 2)
    ode.predict(HELD_OUT)
    assert not adata.uns and not adata.layers and not adata.obsm
    pd.testing.assert_frame_equal(adata.obs, screen.obs)
    pd.testing.assert_frame_equal(adata.var, screen.var)
    assert (adata.X != screen.X).nnz == 0


def test_a_fit_leaves_torchs_generator_alone(ode):
    state = torch.random.get_rng_state()
    ode.fit([0], 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_missing_columns_and_labels_are_named(screen, ode):
    with pytest.raises(UnknownLabelError, match='key="pert".*there are: perturbation, time'):
        pyrocell.PseudobulkODE(screen, perturbation_key="pert")
    with pytest.raises(UnknownLabelError, match='time_key="tme".*did you mean "time"'):
        pyrocell.PseudobulkODE(screen, time_key="tme")
    with pytest.raises(ScreenError, match="time_key=None"):
        pyrocell.PseudobulkODE(screen, time_key=None)
    with pytest.raises(ScreenError, match='start="poled"'):
        pyrocell.PseudobulkODE(screen, start="poled")
    with pytest.raises(ScreenError, match="n_steps=0"):
        pyrocell.PseudobulkODE(screen, n_steps=0)
    with pytest.raises(UnknownLabelError, match='"Q" is not in the screen'):
        ode.fit([0], 1, steady_state_weight=1.0, steady=["Q"])
    with pytest.raises(UnknownLabelError, match=r"time 9\.0 is not in the screen"):
        ode.fit([0], 1, held_out=pd.DataFrame({"perturbation": ["A"], "time": 9.0}))
    with pytest.raises(UnknownLabelError, match='column "tine".*did you mean "time"'):
        ode.predict(pd.DataFrame({"perturbation": ["A"], "tine": 9.0}))
    with pytest.raises(ScreenError, match="seeds=1, 1"):
        ode.fit([1, 1], 1)


def test_what_cannot_be_fitted_is_refused(screen):
    at_zero = screen[screen.obs["time"] == 1].copy()
    at_zero.obs["time"] = 0.0
    with pytest.raises(ScreenError, match="no time above zero"):
        pyrocell.PseudobulkODE(at_zero)
    normalised = screen.copy()
    normalised.X = normalised.X.astype(float) * 0.37
    with pytest.raises(CountError, match="raw counts"):
        pyrocell.PseudobulkODE(normalised)
    unfitted = pyrocell.PseudobulkODE(screen)
    with pytest.raises(ScreenError, match="fit first"):
        unfitted.predict(HELD_OUT)
    with pytest.raises(ScreenError, match="leave some in"):
        unfitted.fit(held_out=pd.DataFrame({"perturbation": "control", "time": [1.0, 2.0, 3, 4]}))
    with pytest.raises(NonFiniteError, match="seed 0 is not finite at epoch"):
        unfitted.fit([0], 5, learning_rate=float("1e30"))


def test_the_code_on_the_page_runs_as_it_stands(monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "proof_of_principle.md"
    (block,) = re.findall(
        r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    fit = pyrocell.PseudobulkODE.fit
    monkeypatch.setattr(pyrocell.PseudobulkODE, "fit", partialmethod(fit, max_epochs=2))
    exec(block, {})
    plt.close("all")


# ---------------------------------------------------------------------- the figure
def test_the_figure_shows_mean_and_band_of_the_seeds(ode):
    histories = {"eq. 5": ode.fit(range(4), 6, held_out=HELD_OUT)}
    _, given_axes = plt.subplots()
    ax = pyrocell.pl.learning_curves(histories, share=1.0, anchors={"own": 0.1}, ax=given_axes)
    assert ax is given_axes
    by_epoch = histories["eq. 5"].groupby("epoch")["held_out"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), by_epoch.mean())
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.max() == pytest.approx(by_epoch.max().max())
    assert ax.lines[1].get_ydata()[0] == 0.1
    with pytest.raises(ScreenError, match="no values of steady_state"):
        pyrocell.pl.learning_curves(histories, column="steady_state")
    with pytest.raises(UnknownLabelError, match='did you mean "held_out"'):
        pyrocell.pl.learning_curves(histories, column="heldout")
    plt.close("all")

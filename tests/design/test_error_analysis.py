"""ε(x, t) of App. B.2: its terms add up to what eqs. 17 and 20 say, and obey the paper's laws."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyrocell
from pyrocell.design import error_analysis
from pyrocell.design.error_analysis import TERMS, carried_noise, error_terms
from pyrocell.errors import DesignError, ScreenWarning
from pyrocell.guide.encoder import state_shift

N, C, G = 3, 4, 7


@st.composite
def noise(draw) -> dict:
    """Batch noise that sums to zero, a linear map, and a layout in which every row has a batch."""
    b = draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    eta = rng.normal(size=(b, G))
    held = rng.random((C, b)) < 0.5
    held[np.arange(C), rng.integers(b, size=C)] = True
    return {
        "eta": eta - eta.mean(0),
        "gradient": rng.normal(size=(N, G, G)) / G,
        "bend": 0.3 * rng.normal(size=(N, b, G)),
        "held": held,
        "rng": rng,
    }


def split(case: dict, bent: bool = True) -> dict[str, np.ndarray]:
    first = case["eta"] @ case["gradient"]
    return error_terms(case["eta"], first, bent * case["bend"], case["held"], case["held"][0])


@given(noise())
def test_terms_add_up_to_the_error_of_the_map_averaged_over_batches(case):
    """Eqs. 17 and 20, literally: the average over b and b' first, then the square."""
    found = split(case)
    first = case["eta"] @ case["gradient"] + case["bend"]
    sources = np.flatnonzero(case["held"][0])
    for c in range(C):
        own = np.flatnonzero(case["held"][c])
        each = np.array([[-case["eta"][b] + first[:, s] for s in sources] for b in own])
        assert found["total"][c] == pytest.approx((each.mean((0, 1)) ** 2).mean())
        assert found["bound"][c] == pytest.approx((each**2).mean())
        alone = [((first[:, b] - case["eta"][b]) ** 2).mean() for b in own]
        assert found["same_batch"][c] == pytest.approx(np.mean(alone))
    parts = sum(found[t] for t in ("own", "propagated", "cross", "remainder"))
    np.testing.assert_allclose(parts, found["total"])
    np.testing.assert_allclose(split(case, bent=False)["remainder"], 0, atol=1e-12)


@given(noise())
def test_the_last_line_of_equation_22_is_an_upper_bound_not_an_equality(case):
    found = split(case)
    assert (found["bound"] >= found["total"] - 1e-12).all()
    assert (found["own_bound"] >= found["own"] - 1e-12).all()


@given(noise())
def test_one_batch_for_all_leaves_no_error_only_if_the_gradient_is_one(case):
    held = np.zeros_like(case["held"])
    held[:, 0] = True
    one = np.broadcast_to(np.eye(G), (N, G, G))
    straight = {**case, "held": held, "gradient": one}
    assert split(straight, bent=False)["total"] == pytest.approx(0, abs=1e-12)
    bent = {**straight, "gradient": 0.5 * one}
    assert split(bent, bent=False)["total"] == pytest.approx((case["eta"][0] ** 2).mean() / 4)


@given(noise())
def test_own_batch_noise_vanishes_where_a_condition_is_in_every_batch(case):
    """It is irreducible in the bound alone: batch noise sums to zero (eq. 15)."""
    found = split({**case, "held": np.ones_like(case["held"])}, bent=False)
    assert found["total"] == pytest.approx(0, abs=1e-12)
    assert (found["own_bound"] > 0.01).all()


def test_controls_in_every_batch_halve_the_error_unless_all_else_is_where_the_controls_are():
    """Mean over 2,000 draws: 2 (1 - 1/B) against 1 - 1/B; sampling sd below .02."""
    rng, b = np.random.default_rng(0), 4
    eta = rng.normal(size=(b, 2000))
    eta = (eta - eta.mean(0)) * np.sqrt(b / (b - 1)) * np.sqrt(1 - 1 / b)

    def total(source: np.ndarray, held: np.ndarray) -> float:
        return error_terms(eta, eta[None], 0 * eta[None], held, source)["total"].mean()

    spread, first = np.eye(b, dtype=bool), np.arange(b) == 0
    everywhere = np.ones(b, bool)
    assert total(first, spread) == pytest.approx(2 * (1 - 1 / b), abs=0.1)
    assert total(everywhere, spread) == pytest.approx(1 - 1 / b, abs=0.1)
    together = np.broadcast_to(first, (3, b))
    assert total(first, together) == pytest.approx(0, abs=1e-12)
    assert total(everywhere, together) > 0.5


@pytest.fixture(scope="module")
def drawn(fitted) -> tuple:
    """A model, one draw of its globals, its batch noise and some states."""
    values = next(iter(fitted.posterior.draws(1)))
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    return fitted.module.model, values, values["eta"], z, fitted.module.guide.mean_count


def test_the_gradient_is_the_derivative_of_the_map(drawn):
    model, values, eta, z, mean = drawn
    values = values | {"V.curvature": torch.randn_like(values["V.curvature"])}
    first, rest = (a.detach() for a in carried_noise(model, values, eta, z, mean))
    one = torch.ones(1)

    def learned(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:  # E(z + S x)
        moved = state_shift(x[None], one, model.loading, mean, values["V.dispersion"])
        return model.resting_logits(values, state[None] + moved)[0]

    for n, state in enumerate(z):
        jacobian = torch.func.jacfwd(learned)(torch.zeros(eta.shape[1]), state)  # (G, G)
        torch.testing.assert_close(first[n], eta @ jacobian.T, atol=1e-5, rtol=1e-4)
        rest_at = learned(torch.zeros(eta.shape[1]), state)
        exact = rest_at - torch.stack([learned(-e, state) for e in eta])
        torch.testing.assert_close(first[n] + rest[n], exact, atol=1e-5, rtol=1e-4)
    assert rest.abs().max() > 1e-6


def test_what_is_beyond_the_first_order_obeys_the_lipschitz_bound(drawn):
    """‖remainder‖ ≤ ½ L ‖S η‖², L a Lipschitz constant of the gradient in z (App. B.2)."""
    model, values, eta, z, mean = drawn
    weight = torch.randn_like(values["V.curvature"])
    values = values | {"V.curvature": weight}
    lipschitz = (model.curvature.direction.square().sum(0) * weight.norm(dim=1)).sum() / 4
    for size in (0.1, 1.0, 10.0):
        _, rest = carried_noise(model, values, size * eta, z, mean)
        depth = torch.ones(len(eta))
        moved = state_shift(size * eta, depth, model.loading, mean, values["V.dispersion"])
        bound = lipschitz * moved.square().sum(1) / 2
        assert (rest.norm(dim=-1) <= bound * 1.001 + 1e-4).all()


def test_a_fitted_model_is_analysed_condition_by_condition_and_in_total(fitted):
    table = error_analysis(fitted, n_samples=20)
    n_conditions, n_times = len(fitted.screen.conditions), len(fitted.screen.times)
    assert len(table) == (n_conditions + n_times) * len(TERMS)
    wide = table.pivot_table(index=["perturbation", "media", "time"], columns="term", values="mean")
    parts = wide[["own", "propagated", "cross", "remainder"]].sum(axis=1)
    np.testing.assert_allclose(parts, wide["total"], atol=1e-10)
    assert (wide["bound"] >= wide["total"]).all()
    each = wide.drop("all", level="perturbation").groupby("time")["total"].mean()
    np.testing.assert_allclose(each, wide.loc[("all", "all"), "total"])
    left = error_analysis(fitted, n_samples=20, remaining=True)
    own = left[left["term"] == "own_bound"]["mean"].mean()
    assert 0 < own < table[table["term"] == "own_bound"]["mean"].mean() * 2
    ax = pyrocell.pl.error_analysis(table)
    ax.figure.draw_without_rendering()
    plt.close("all")


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_a_screen_without_batches_or_source_is_refused(make_screen, build):
    with pytest.raises(DesignError, match="one batch"):
        error_analysis(build(make_screen(n_batches=1)))
    adata = make_screen(media=1)
    resting = (adata.obs["perturbation"] == "control") & (adata.obs["media"] == "baseline")
    model = build(adata[~resting].copy())
    with pytest.raises(DesignError, match="the map has no source"):
        error_analysis(model)
    with pytest.raises(DesignError, match="depth=0"):
        error_analysis(build(make_screen()), depth=0)


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_a_layout_that_hides_batch_noise_in_effects_is_warned_of(make_screen, build):
    adata = make_screen()
    control = (adata.obs["perturbation"] == "control").to_numpy()
    adata.obs["batch"] = np.where(control, "batch0", "batch1")
    model = build(adata)
    model.train(max_epochs=1, progress_bar=False)
    with pytest.warns(ScreenWarning, match="3 of 3 contrasts"):
        error_analysis(model, n_samples=2)


def test_the_total_is_drawn_for_a_time(fitted):
    table = error_analysis(fitted, n_samples=5)
    time = fitted.screen.times[0]
    ax = pyrocell.pl.error_analysis(table, time=time)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels[0].startswith("all")
    assert len(labels) == 1 + (fitted.screen.conditions["time"] == time).sum()
    with pytest.raises(DesignError, match="time=9"):
        pyrocell.pl.error_analysis(table, time=9)
    assert isinstance(table, pd.DataFrame)
    plt.close("all")

"""Arms that differ in order: perturbed and exposed at times of their own."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from designs import GENES, MEDIA, D, J, K, assert_same, designs, parameters
from hypothesis import given
from hypothesis import strategies as st
from layouts import ARMS as CELLS
from layouts import crossed, screen_of
from torch import Tensor

import pyrocell
from pyrocell import Media, Perturb, Protocol, Wait
from pyrocell.assumptions.table import assumption_table
from pyrocell.assumptions.testability import comparisons
from pyrocell.assumptions.testability import testability as what_can_be_tested
from pyrocell.contrasts.levels import condition_levels
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.operators import ResponseParameters, respond, respond_in_order, run
from pyrocell.screen.screen import Screen

STEPS = {0: Perturb("A"), 1: Perturb("B", "CRISPRi"), 2: Perturb("B"), 3: Perturb("C")}
SHARES = st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 1.0])] * 2), min_size=5, max_size=5)


# ---------------------------------------------------------------- the operator


@given(parameters(), designs())
def test_without_delays_it_is_the_default_screen_to_the_last_digit(params, design):
    genotype, exposure, duration = design
    zeros = torch.zeros_like(duration)
    found = respond_in_order(genotype, exposure, duration, zeros, zeros, params)
    for field in ("y", "genotype", "dose", "exposure", "gain"):
        expected = getattr(respond(genotype, exposure, duration, params), field)
        assert torch.equal(getattr(found, field), expected)


def protocol_of(genotype: Tensor, exposure: Tensor, times: tuple[float, float, float]) -> Protocol:
    perturbed, exposed, end = times
    p = [STEPS[k] for k in genotype.nonzero().flatten().tolist()]
    m = [Media(name) for name, j in MEDIA.items() if exposure[j]]
    first, second, later = (p, m, exposed) if perturbed <= exposed else (m, p, perturbed)
    start = min(perturbed, exposed)
    waits = [Wait(t) for t in (start, later - start, end - later)]
    return Protocol([waits[0], *first, waits[1], *second, waits[2]])


@given(parameters(), designs(), SHARES)
def test_every_arm_is_its_protocol_step_by_step(params, design, shares):
    genotype, exposure, duration = design
    genotype[:, 2] *= 1 - genotype[:, 1]  # one type per gene
    at = torch.tensor(shares[: len(duration)], dtype=torch.float64) * duration[:, None]
    found = respond_in_order(genotype, exposure, duration, *at.T, params)
    for c in range(len(duration)):
        times = (float(at[c, 0]), float(at[c, 1]), float(duration[c]))
        state = run(protocol_of(genotype[c], exposure[c], times), params, GENES, MEDIA)
        for field in ("y", "dose", "gain"):
            torch.testing.assert_close(
                getattr(found, field)[c], getattr(state, field)[0], rtol=1e-9, atol=1e-9
            )


@given(parameters(), designs(), st.floats(0, 2))
def test_waiting_at_rest_before_the_first_event_changes_nothing(params, design, delay):
    genotype, exposure, duration = design
    later = torch.full_like(duration, delay)
    found = respond_in_order(genotype, exposure, duration + delay, later, later, params)
    assert_same(found, respond(genotype, exposure, duration, params), 1e-9)


@given(parameters(turnover=False), designs())
def test_with_memory_a_late_perturbation_leaves_the_gain_where_it_was(params, design):
    genotype, exposure, duration = design
    state = respond_in_order(genotype, exposure, duration, duration, 0 * duration, params)
    assert torch.allclose(state.gain, exposure)


def test_draws_of_the_biology_and_gradients_pass_through():
    turnover = torch.rand(5, J, dtype=torch.float64, requires_grad=True)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    params = ResponseParameters(
        normal(5, K, D), normal(5, J, D), normal(5, K, J), turnover, normal(5, K + J), normal(5)
    )
    genotype, exposure = torch.eye(K, dtype=torch.float64)[:2], torch.ones(2, J).double()
    times = torch.tensor([[3.0, 2.0, 0.0], [3.0, 0.0, 2.0]], dtype=torch.float64).T
    state = respond_in_order(genotype, exposure, *times, params)
    assert state.y.shape == (5, 2, D)
    state.y.sum().backward()
    assert turnover.grad.abs().min() > 0
    one = replace(
        params,
        **{
            n: getattr(params, n)[2].detach()
            for n in vars(params)
            if isinstance(getattr(params, n), Tensor)
        },
    )
    alone = respond_in_order(genotype, exposure, *times, one)
    torch.testing.assert_close(state.y[2].detach(), alone.y)


# ---------------------------------------------------------------- registration


def test_conditions_differ_in_when_cells_were_perturbed_and_exposed():
    screen = screen_of(CELLS)
    assert len(screen.conditions) == 6 * 2
    assert {"perturbed_at", "exposed_at"} <= set(screen.conditions)
    found = screen.conditions.iloc[screen.cell_condition]
    for column, label in (("perturbed_at", "perturbation_time"), ("exposed_at", "media_time")):
        assert (found[column].to_numpy() == CELLS[label].fillna(0).to_numpy()).all()
    reverse = screen.condition_of("A", "IFNG", 6.0, perturbed_at=2)
    assert (screen.perturbed_at[reverse], screen.exposed_at[reverse]) == (2, 0)
    with pytest.raises(UnknownLabelError, match="needs perturbed_at= and exposed_at="):
        screen.condition_of("A", "IFNG", 6.0)


def test_without_event_times_conditions_are_as_before():
    plain = CELLS.drop(columns=["perturbation_time", "media_time"])
    screen = screen_of(plain)
    assert len(screen.conditions) == 4 * 2
    assert not {"perturbed_at", "exposed_at"} & set(screen.conditions)
    assert not screen.perturbed_at.any() and not screen.exposed_at.any()


def test_event_times_survive_storage():
    screen = screen_of(CELLS)
    back = Screen.from_dict(json.loads(json.dumps(screen.to_dict())))
    pd.testing.assert_frame_equal(back.conditions, screen.conditions)
    assert (back.exposed_at == screen.exposed_at).all()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("perturbation_time", 9.0, "perturbation_time has .* after their harvest.* at 9"),
        ("media_time", 9.0, "media_time has .* after their harvest.* at 9"),
        ("perturbation_time", -1.0, "negative times, the lowest -1"),
        ("media_time", np.nan, "NaN or infinite"),
        ("media_time", "two", '"two", which is no number'),
    ],
)
def test_event_times_that_cannot_be_are_refused(column, value, message):
    cells = CELLS.copy()
    cells[column] = cells[column].astype(object if isinstance(value, str) else float)
    applies = cells["perturbation"].eq("A") & cells["media"].eq("IFNG")
    cells.loc[applies, column] = value
    with pytest.raises(ScreenError, match=message):
        screen_of(cells)


def test_event_times_without_harvest_times_are_refused():
    with pytest.raises(ScreenError, match="perturbation_time needs time"):
        screen_of(CELLS.drop(columns=["time", "media_time"]))


def test_event_times_of_cells_they_do_not_apply_to_are_ignored():
    cells = CELLS.copy()
    cells.loc[cells["perturbation"] == "control", "perturbation_time"] = 99.0
    cells.loc[cells["media"] == "baseline", "media_time"] = -5.0
    pd.testing.assert_frame_equal(screen_of(cells).conditions, screen_of(CELLS).conditions)


def test_requested_conditions_take_event_times():
    screen = screen_of(CELLS)
    row = {"perturbation": "A", "media": "IFNG", "time": 4.0}
    frame = pd.DataFrame([row, row | {"perturbed_at": 2.5}, row | {"exposed_at": 1.0}])
    perturbed, exposed = screen.encode_events(frame)
    assert perturbed.tolist() == [0, 2.5, 0] and exposed.tolist() == [0, 0, 1]
    with pytest.raises(ScreenError, match="after their harvest"):
        screen.encode_events(pd.DataFrame([row | {"perturbed_at": 5.0}]))
    untimed = screen_of(crossed(perturbation=["control", "A"]))
    with pytest.raises(UnknownLabelError, match="without times"):
        untimed.encode_events(pd.DataFrame([{"perturbation": "A", "perturbed_at": 1.0}]))


# ---------------------------------------------------------------- testability and memory


def test_controls_of_both_orders_make_memory_testable():
    table = what_can_be_tested(screen_of(CELLS)).query("assumption == 'memory'")
    assert table.testable.all() and "A came after IFNG" in table.reason.iloc[0]


@pytest.mark.parametrize(
    "without",
    [
        lambda c: c.perturbation_time.eq(2.0),  # one order only
        lambda c: c.perturbation.eq("control") & c.media_time.eq(0.0),  # no control of that order
        lambda c: c.perturbation.eq("A") & c.media.eq("baseline"),
    ],
)
def test_memory_keeps_its_prior_where_one_order_was_run_or_a_control_is_missing(without):
    table = what_can_be_tested(screen_of(CELLS[~without(CELLS)])).query("assumption == 'memory'")
    assert not table.testable.any() and table.reason.str.contains("Next screen: add cells").all()


def test_batches_that_nothing_links_leave_memory_untestable():
    cells = CELLS.assign(batch=CELLS["perturbation_time"].eq(2.0).map({True: "x", False: "y"}))
    assert not what_can_be_tested(screen_of(cells)).query("assumption == 'memory'").testable.any()


def test_arms_of_another_order_are_not_taken_for_the_usual_one():
    usual = CELLS[~CELLS.perturbation_time.eq(2.0) & ~CELLS.media_time.eq(0.0)]
    both, one = (comparisons(screen) for screen in (screen_of(CELLS), screen_of(usual)))
    where = screen_of(CELLS).conditions
    for row, alone in zip(both, one, strict=True):
        if row.assumption != "memory":
            assert (row.assumption, row.perturbation, row.media) == (
                alone.assumption,
                alone.perturbation,
                alone.media,
            )
            used = where.iloc[list(row.weights)]
            assert not (
                used.perturbed_at.eq(2.0) | used.exposed_at.eq(0.0) & used.media.eq("IFNG")
            ).any()


def ordered_screen(
    turnover: float, seed: int = 0, n_cells: int = 120, rate: float = 1.0
) -> AnnData:
    """A, B block a medium, C does not; perturbed before the medium, and 2 after it; 60 genes."""
    rng = np.random.default_rng(seed)
    n_genes, names = 60, {"A": 0, "B": 1, "C": 2}
    as_tensor = lambda a: torch.as_tensor(np.asarray(a), dtype=torch.float64)  # noqa: E731
    params = ResponseParameters(
        effect=as_tensor(0.1 * rng.standard_normal((3, n_genes))),
        media_effect=as_tensor(0.6 * rng.standard_normal((1, n_genes))),
        gain=as_tensor([[0.0], [0.1], [1.0]]),
        turnover=as_tensor([turnover]),
        log_rate=as_tensor([np.log(rate)] * 4),
        base_log_rate=as_tensor(np.log(rate)),
        reference_time=4.0,
    )
    arms = [("baseline", 0.0, 0.0), ("IFNG", 0.0, 0.0), ("IFNG", 2.0, 0.0)]
    rows = [
        (p, m, t, at, ex)
        for p in ("control", *names)
        for m, at, ex in arms
        for t in (3.0, 5.0)
        if p != "control" or at == 0
    ]
    obs = pd.DataFrame(
        rows, columns=["perturbation", "media", "time", "perturbed_at", "exposed_at"]
    )
    genotype = as_tensor([[float(p == k) for k in names] for p in obs.perturbation])
    exposure = as_tensor(obs.media.eq("IFNG").to_numpy(float)[:, None])
    at = (as_tensor(obs[c]) for c in ("time", "perturbed_at", "exposed_at"))
    shift = respond_in_order(genotype, exposure, *at, params).y.numpy()
    size = np.where(obs.perturbation == "control", 3, 1) * n_cells
    obs = obs.loc[obs.index.repeat(size)]
    batch = rng.integers(2, size=len(obs))
    logits = rng.normal(0, 0.5, n_genes) + shift[obs.index] + np.array([[0.1], [-0.1]])[batch]
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    obs = obs.assign(batch=batch.astype(str)).set_axis([str(i) for i in range(len(obs))])
    return AnnData(sp.csr_matrix(rng.poisson(600 * share).astype(np.int32)), obs=obs)


def memory_of(adata: AnnData) -> pd.Series:
    screen = screen_of(
        adata.obs.rename(columns={"perturbed_at": "perturbation_time", "exposed_at": "media_time"})
    )
    screen = replace(screen, genes=adata.var_names)
    size = np.asarray(adata.X.sum(1)).ravel() / adata.X.sum() * adata.n_obs
    levels = condition_levels(
        adata.X, size, screen.cell_condition, screen.cell_batch, np.full(adata.n_vars, 0.2)
    )
    table = assumption_table(
        screen, [levels], np.zeros((1, adata.n_vars)), pyrocell.Priors(), region=0.05, prior=0.5,
        concentration=20.0, min_count=5.0, min_cells=10.0, credible_level=0.9,
    )  # fmt: skip
    return table[table.assumption == "memory"].iloc[0]


@pytest.mark.parametrize(("turnover", "holds"), [(0.0, True), (2.0, False)])
def test_memory_is_told_from_its_loss(turnover, holds):
    row = memory_of(ordered_screen(turnover))
    assert row.testable and row.prior == 0.5
    assert (row.posterior > 0.95) == holds and (row.posterior < 0.05) == (not holds)
    assert row["size"] == pytest.approx(1.0 if holds else 0.0, abs=0.2)


def test_without_the_reverse_order_memory_stays_at_its_prior():
    adata = ordered_screen(1.0)
    row = memory_of(adata[adata.obs.perturbed_at == 0].copy())
    assert not row.testable and row.posterior == row.prior


# ---------------------------------------------------------------- the model


TURNOVER = 1.6  # faster than the response: a loss is symmetric in the two rates


@pytest.fixture(scope="module")
def fitted() -> pyrocell.PyroCell:
    adata = ordered_screen(TURNOVER, n_cells=80, rate=0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyrocell.PyroCell.setup_anndata(
            adata, time_key="time", media_key="media",
            perturbation_time_key="perturbed_at", media_time_key="exposed_at",
        )  # fmt: skip
        model = pyrocell.PyroCell(adata, n_latent=2, n_response=4, n_hidden=16)
        model.train(max_epochs=50, progress_bar=False)
    return model


def test_a_turnover_faster_than_the_response_is_recovered_within_its_interval(fitted):
    draws = fitted.posterior_samples(200, ["M.turnover"])["M.turnover"][:, 0]
    low, high = np.quantile(draws, [0.005, 0.995])
    assert low < TURNOVER < high
    assert np.log(draws).std() < 0.7 * fitted.module.priors.turnover_sd


def test_arms_are_predicted_as_they_were_measured(fitted):
    row = {"perturbation": "A", "media": "IFNG", "time": 5.0}
    frame = pd.DataFrame([row, row | {"perturbed_at": 2.0}])
    predicted = np.log(fitted.predict(frame, n_samples=20).X)
    obs = fitted.adata.obs
    mine = obs.perturbation.eq("A") & obs.media.eq("IFNG") & obs.time.eq(5.0)
    for level, at in zip(predicted, (0.0, 2.0), strict=True):
        counts = fitted.adata.X[(mine & obs.perturbed_at.eq(at)).to_numpy()]
        measured = np.log(np.asarray(counts.mean(0)).ravel())
        assert np.sqrt(np.mean((level - measured) ** 2)) < 0.1  # sampling error is about 0.04
    protocol = Protocol([Media("IFNG"), Wait(2.0), Perturb("A"), Wait(3.0)])
    by_protocol = fitted.predict(protocol, n_samples=20).X
    np.testing.assert_allclose(by_protocol, fitted.predict(frame[1:], n_samples=20).X, rtol=1e-4)


def test_arms_survive_a_file_and_counterfactuals_still_answer(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    back = pyrocell.PyroCell.load(tmp_path / "model", fitted.adata.copy())
    frame = pd.DataFrame([{"perturbation": "A", "media": "IFNG", "time": 5.0, "perturbed_at": 2.0}])
    np.testing.assert_array_equal(
        back.predict(frame, n_samples=5).X, fitted.predict(frame, n_samples=5).X
    )
    cells = fitted.adata[:5].copy()
    assert fitted.counterfactual(cells, perturbation="A", media="IFNG", n_samples=3).shape[0] == 5


def test_only_media_with_both_orders_have_a_turnover_of_their_own(fitted):
    assert fitted.module.model.has_turnover
    guide = fitted.module.guide
    adata = ordered_screen(0.7, n_cells=20)
    adata = adata[adata.obs.perturbed_at == 0].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyrocell.PyroCell.setup_anndata(adata, time_key="time", media_key="media")
        plain = pyrocell.PyroCell(adata, n_latent=2, n_response=2, n_hidden=8)
    assert "turnover_loc" in dict(guide.named_parameters())
    assert "turnover_loc" not in dict(plain.module.guide.named_parameters())

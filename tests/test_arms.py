"""Arms that differ in order: perturbed and exposed at times of their own."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import crossed, screen_of
from test_protocol import GENES, MEDIA, D, J, K, assert_same, designs, parameters
from torch import Tensor

from pyrocell import Media, Perturb, Protocol, Wait
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.operators import ResponseParameters, respond, respond_in_order, run
from pyrocell.screen import Screen

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

CELLS = pd.DataFrame(
    [
        (p, m, t, at, ex, b)
        for t in (3.0, 6.0)
        for b in ("x", "y")
        for p, m, at, ex in [
            ("control", "baseline", np.nan, np.nan),
            ("control", "IFNG", np.nan, 0.0),
            ("control", "IFNG", np.nan, 1.0),
            ("A", "baseline", 0.0, np.nan),
            ("A", "IFNG", 0.0, 1.0),
            ("A", "IFNG", 2.0, 0.0),
        ]
        for _ in range(4)
    ],
    columns=["perturbation", "media", "time", "perturbation_time", "media_time", "batch"],
)


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

"""A second opinion: exact where that can be checked, and in agreement with the table."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch

from pyrocell import Priors
from pyrocell.assumptions import table as assumptions
from pyrocell.contrasts import evidence
from pyrocell.contrasts.levels import condition_levels
from pyrocell.diagnostics.nuts_check import check_assumption, second_opinion
from pyrocell.diagnostics.nuts_model import CellModel, size_of
from pyrocell.errors import ScreenError, ScreenWarning
from pyrocell.screen.screen import Screen

REGION, THETA = 0.05, 4.0
QUICK = {"n_factors": 0, "num_samples": 200, "warmup_steps": 100, "n_chains": 1}


def simulate(levels: np.ndarray, n_cells: int, seed: int, batch_sd: float = 0.2) -> dict:
    """Counts of cells of equal depth: n_cells of each row of levels, evenly in two batches."""
    rng = np.random.default_rng(seed)
    condition = np.repeat(np.arange(len(levels)), n_cells)
    batch = np.tile([0, 1], len(condition) // 2)
    mean = np.exp(levels[condition] + rng.normal(0, batch_sd, (2, levels.shape[1]))[batch])
    counts = rng.poisson(mean * rng.gamma(THETA, 1 / THETA, mean.shape))
    size = np.ones(len(condition))
    return {"counts": sp.csr_matrix(counts), "condition": condition, "batch": batch, "size": size}


def two_arms(rms: float, seed: int, n_genes: int = 16, n_cells: int = 50) -> dict:
    rng = np.random.default_rng(1000 + seed)
    base, change = rng.normal(np.log(8), 0.7, n_genes), rng.standard_normal(n_genes)
    change *= rms / np.sqrt((change**2).mean())
    return simulate(np.stack([base, base + change]), n_cells, seed)


def first_opinion(screen: dict) -> float:
    """P(silent at baseline), prior one half, effects dense: what the second opinion assumes."""
    n_genes = screen["counts"].shape[1]
    registered = Screen.from_labels(
        [f"gene{g}" for g in range(n_genes)],
        np.where(screen["condition"] == 1, "A", "control"),
        batch=screen["batch"].astype(str),
    )
    levels = condition_levels(
        screen["counts"],
        screen["size"],
        registered.cell_condition,
        registered.cell_batch,
        np.full(n_genes, 0.2),
    )
    table = assumptions.assumption_table(
        registered,
        [levels],
        np.zeros((1, n_genes)),
        Priors(),
        region=REGION,
        prior=0.5,
        concentration=20.0,
        min_count=5.0,
        min_cells=1.0,
        credible_level=0.9,
    )
    row = table[table.assumption == "silent_at_baseline"].iloc[0]
    return float(1 / (1 + np.exp(-row.log_bayes_factor)))


@pytest.fixture
def dense_only(monkeypatch):
    """Leave out the shapes of effects that the second opinion does not have."""
    whole = evidence.log_size_evidence
    monkeypatch.setattr(evidence, "SHARES", (1.0,))
    monkeypatch.setattr(assumptions, "log_size_evidence", lambda noisy, s, *axes: whole(noisy, s))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")  # r-hat of so few draws
@pytest.mark.parametrize(("rms", "num_samples"), [(0.0, 150), (0.1, 250), (0.3, 100)])
def test_nuts_and_the_table_agree(dense_only, rms, num_samples):
    # Equal depths and no factors: sums of counts then tell as much as the cells. Beyond the
    # Monte-Carlo error .1 for the Gaussian error and its variance by moments, known to 10%.
    screen = two_arms(rms, seed=1)
    second = second_opinion(**screen, region=REGION, **QUICK | {"num_samples": num_samples})
    assert second["divergences"] <= 15
    tolerance = 0.1 + 2 * second["mcse"]
    assert abs(second["probability"] - first_opinion(screen)) < tolerance
    if rms == 0.3:
        assert second["lower"] < 0.3 < second["upper"]
        assert second["rms"] == pytest.approx(0.3, abs=0.06)


@pytest.mark.slow
def test_a_change_that_both_arms_share_is_none():
    rng = np.random.default_rng(0)
    base, drift = rng.normal(np.log(10), 0.5, 8), rng.normal(0, 0.6, 8)
    levels = np.stack([base, base + drift, base, base + drift])
    screen = simulate(levels, 24, seed=2, batch_sd=0.0)
    weights = {0: 1.0, 1: -1.0, 2: -1.0, 3: 1.0}
    relative = second_opinion(**screen, weights=weights, **QUICK)
    assert relative["probability"] > 0.5 and relative["upper"] < 0.3


def test_without_information_the_prior_stands():
    screen = two_arms(0.0, seed=3, n_genes=2, n_cells=4)
    screen["size"] = np.full(8, 1e-9)
    screen["counts"] = screen["counts"] * 0
    found = second_opinion(**screen, **QUICK | {"num_samples": 300})
    assert abs(found["probability"] - 0.5) < 4 * found["mcse"] < 0.2


def test_sizes_are_log_uniform_half_on_either_side_of_the_region():
    share = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    expected = REGION * np.array([1 / 20, 20**-0.5, 1.0, 30**0.5, 30])
    np.testing.assert_allclose(size_of(share, REGION), expected)


def test_slope_and_curvature_of_the_last_condition_are_those_of_the_model():
    screen = two_arms(0.2, seed=4, n_genes=3, n_cells=6)
    cells = CellModel(
        x=torch.as_tensor(screen["counts"].toarray(), dtype=torch.float64),
        size=torch.as_tensor(screen["size"]),
        condition=torch.as_tensor(screen["condition"]),
        batch=torch.as_tensor(screen["batch"]),
        weights=torch.tensor([-1.0, 0.5], dtype=torch.float64),
        region=REGION,
        loading=None,
        n_factors=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trace = pyro.poutine.trace(cells.model).get_trace()
    values = {k: node["value"] for k, node in trace.nodes.items() if node["type"] == "sample"}

    def whole(change: torch.Tensor) -> torch.Tensor:
        standard = change / size_of(values["share"], REGION)
        conditioned = pyro.poutine.condition(cells.model, values | {"standard": standard})
        return pyro.poutine.trace(conditioned).get_trace().nodes["x"]["fn"].log_prob(cells.x)

    change = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64)
    likelihood = cells.last_likelihood(values)
    log, slope, curvature = likelihood(change)
    torch.testing.assert_close(log - likelihood(0 * change)[0], whole(change) - whole(0 * change))
    torch.testing.assert_close(slope, torch.autograd.functional.jacobian(whole, change))
    hessian = torch.autograd.functional.hessian(whole, change)
    torch.testing.assert_close(torch.diag(curvature), -hessian)


def test_the_same_seed_gives_the_same_answer_and_leaves_no_trace():
    screen = two_arms(0.3, seed=5, n_genes=4, n_cells=10)
    options = {"n_factors": 1, "num_samples": 10, "warmup_steps": 10, "n_chains": 2}
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        one, other = (second_opinion(**screen, **options) for _ in range(2))
    assert one == other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_large_screens_are_thinned_and_say_so():
    screen = two_arms(0.0, seed=6, n_genes=6, n_cells=20)
    with pytest.warns(ScreenWarning, match="4 of 6 genes"), pytest.warns(match="8 of 20 cells"):
        found = second_opinion(
            **screen, max_cells=8, max_genes=4, num_samples=5, warmup_steps=5, n_chains=1
        )
    assert (found["n_cells"], found["n_genes"]) == (16, 4)


def test_what_cannot_be_asked_is_refused(fitted):
    screen = two_arms(0.0, seed=7, n_genes=4, n_cells=4)
    with pytest.raises(ScreenError, match="no cells"):
        second_opinion(**screen, weights={0: -1.0, 7: 1.0})
    with pytest.raises(ScreenError, match="region"):
        second_opinion(**screen, region=2.0)
    perturbation, media = fitted.screen.perturbations[0], fitted.screen.media[0]
    with pytest.raises(ScreenError, match="slope"):
        check_assumption(fitted, "no_response", perturbation, media)
    with pytest.raises(ScreenError, match="no row"):
        check_assumption(fitted, "steady", "nobody")


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_a_row_of_the_table_gets_its_second_opinion(fitted):
    table = fitted.assumptions(n_samples=1)
    perturbation = fitted.screen.perturbations[0]
    options = {"num_samples": 5, "warmup_steps": 5, "n_chains": 1, "min_count": 1.0}
    row = check_assumption(fitted, "silent_at_baseline", perturbation, table=table, **options).iloc[
        0
    ]
    labels = ["assumption", "perturbation", "media"]
    mine = table[(table[labels] == row[labels]).all(axis=1)].iloc[0]
    assert row["first"] == pytest.approx(1 / (1 + np.exp(-mine.log_bayes_factor)))
    assert 0 <= row.probability <= 1 and row.n_cells > 10
    assert row.n_genes < len(fitted.screen.genes)  # the target itself is left out

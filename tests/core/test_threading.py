"""Small screens run on one thread: on several, each waits for the others, many times as long."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pyrocell._core.threading import few_threads
from pyrocell.posterior.gene_level.states import Columns, GeneLevel

ANSWERS = {
    "perturbation_effects": {"n_samples": 2},
    "batch_effects": {"n_samples": 2},
    "media_gains": {"n_samples": 2},
    "predict": {"n_samples": 2},
    "counterfactual": {"n_samples": 2},
    "get_latent_representation": {},
    "get_normalized_expression": {},
    "posterior_predictive_check": {"n_samples": 2},
    "get_marginal_ll": {"n_mc_samples": 2},
    "posterior_samples": {"n": 2},
    "to_arviz": {"n": 2},
}


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads, and a user who has set no number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_runs_on_one_thread_and_gives_the_others_back(
    fitted, two_threads, monkeypatch, answer
):
    seen = set()
    draw = fitted.module.guide.globals

    def globals_() -> dict:
        seen.add(torch.get_num_threads())
        return draw()

    columns = GeneLevel.columns

    def columns_(*arguments) -> Columns:
        seen.add(torch.get_num_threads())
        return columns(*arguments)

    monkeypatch.setattr(GeneLevel, "columns", columns_)
    monkeypatch.setattr(fitted.module.guide, "globals", globals_)
    options = ANSWERS[answer]
    if answer == "predict":
        options = options | {"conditions": fitted.screen.conditions.head(2).drop(columns="n_cells")}
    getattr(fitted, answer)(**options)
    assert seen == {1} and torch.get_num_threads() == 2


def test_many_genes_and_a_number_set_by_the_user_are_left_alone(two_threads, monkeypatch):
    with few_threads(1000):
        assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with few_threads(10):
        assert torch.get_num_threads() == 2


def test_one_of_several_processes_has_one_thread_or_the_users_number(two_threads, monkeypatch):
    with few_threads(1000, processes=2):
        assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with few_threads(1000, processes=2):
        assert torch.get_num_threads() == 2


def test_the_users_number_holds_where_another_package_has_raised_it(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with few_threads(1000):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_models_trained_in_two_threads_are_those_trained_one_after_the_other(make_screen, build):
    def trained(seed: int) -> torch.Tensor:
        model = build(make_screen(seed=seed))
        model.train(max_epochs=2, progress_bar=False, seed=seed)
        return torch.as_tensor(model.perturbation_effects(n_samples=4)["mean"].to_numpy())

    alone = [trained(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(trained, (0, 1)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))

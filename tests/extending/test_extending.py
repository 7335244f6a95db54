"""Parts of one's own, each from outside the package in one file: fitted and asked.

These files are the worked examples of the page "Extending pyrocell".
"""

from __future__ import annotations

from pathlib import Path

import laplace_effects  # noqa: F401
import numpy as np
import overshoot  # noqa: F401
import poisson_view  # noqa: F401
import pytest
from similar_perturbations import similar_perturbations

from pyrocell import PyroCell
from pyrocell.errors import ScreenError

HERE = Path(__file__).parent
EXAMPLES = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("test_"))


@pytest.fixture
def timed(make_screen):
    return make_screen(seed=4, n_cells_per_condition=20, times=(1.0, 2.0, 4.0))


def test_a_view_is_one_class(make_screen, build):
    model = build(make_screen(seed=3, n_cells_per_condition=40), likelihood="poisson")
    model.train(max_epochs=3, progress_bar=False)
    assert np.isfinite(model.perturbation_effects(n_samples=20)["mean"]).all()
    background = model.posterior_samples(20)["V.background"]
    assert background.shape == (20, model.adata.n_vars) and (background > 0).all()
    assert model.to_arviz(5).posterior["V.background"].dims[-1] == "gene"
    predicted = model.predict(model.screen.conditions[["perturbation"]].head(2), n_samples=5)
    depth = np.asarray(model.adata.X.sum(1)).mean()
    assert predicted.X.sum(1) == pytest.approx(depth, rel=0.3)


def test_a_dynamics_is_one_class(timed, build):
    model = build(timed, dynamics="overshoot")
    model.train(max_epochs=3, progress_bar=False)
    assert model.posterior_samples(5)["W.overshoot"].shape == (5, model.module.model.n_axes)
    values = model.posterior.mean()
    inner, conditions = model.module.model, model.module.model.conditions
    before = inner.displacement(values, inner.state_of(values, conditions), conditions)
    more = values | {"W.overshoot": values["W.overshoot"] + 1.0}
    after = inner.displacement(more, inner.state_of(more, conditions), conditions)
    assert (after - before).abs().max() > 0
    at_start = model.perturbation_effects(time=0.0, n_samples=5)
    assert np.abs(at_start["mean"]).max() == 0  # W(X, 0) = X


def test_a_prior_on_effects_is_one_class(make_screen, build):
    model = build(make_screen(seed=5), effect_prior="laplace")
    model.train(max_epochs=3, progress_bar=False)
    assert np.isfinite(model.perturbation_effects(n_samples=20)["mean"]).all()
    assert model.module.gene_level is None  # the sampler has a prior of its own


def test_a_question_is_one_function(fitted):
    table = similar_perturbations(fitted.fitted, fitted.screen.baseline_media, 2.0, 20)
    n = len(fitted.screen.perturbations)
    assert len(table) == n * (n - 1) // 2
    assert (table["lower"] <= table["mean"]).all() and (table["mean"] <= table["upper"]).all()


def test_a_part_that_nobody_registered_is_refused_by_name(timed, build):
    with pytest.raises(ScreenError, match='dynamics="undershoot" is not one of none, relaxation'):
        build(timed, dynamics="undershoot")


def test_a_model_with_parts_of_one_s_own_is_saved_and_loaded(timed, build, tmp_path):
    model = build(timed, dynamics="overshoot", likelihood="poisson")
    model.train(max_epochs=1, progress_bar=False)
    model.save(tmp_path / "model")
    again = PyroCell.load(tmp_path / "model", timed)
    before, after = (m.posterior_samples(3)["W.overshoot"] for m in (model, again))
    assert (before == after).all()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example):
    assert len(example.read_text().splitlines()) <= 60

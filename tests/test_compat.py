"""What differs between versions of the packages underneath: ArviZ' container of draws."""

from __future__ import annotations

import re
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch

from pyrocell import Assume, PyroCell
from pyrocell._compat import inference_data


def posterior_of(container):
    """The posterior group, of an InferenceData (ArviZ 0.x) or of a DataTree (1.x)."""
    group = container["posterior"]
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def test_draws_have_named_dimensions_and_coordinates(fitted):
    posterior = posterior_of(fitted.to_arviz(6))
    screen = fitted.screen
    assert posterior.sizes["chain"] == 1 and posterior.sizes["draw"] == 6
    expected = {
        "P.effect": ("perturbation", "axis"),
        "M.gain": ("perturbation", "media"),
        "P.residual": ("perturbation", "time", "gene"),
        "V.loading": ("own_axis", "gene"),
        "W.log_rate": ("driver",),
        "W.log_decay": ("perturbation",),
        "eta": ("batch", "gene"),
    }
    for site, dims in expected.items():
        assert posterior[site].dims == ("chain", "draw", *dims)
    for dim, labels in {
        "gene": screen.genes,
        "perturbation": screen.perturbations,
        "media": screen.media,
        "batch": screen.batches,
        "time": screen.times,
        "driver": (*screen.perturbations, *screen.media),
    }.items():
        assert list(posterior[dim].values) == list(labels)


@pytest.fixture(scope="module")
def everything(make_screen, build):
    """A model that has every site there is."""
    nested = {"n_batches": 3, "laboratories": (2, 1)}
    adata = make_screen(media=1, times=(1.0, 2.0), combinations=True, balanced=False, **nested)
    rng = np.random.default_rng(0)
    adata.obs["donor"] = rng.choice(["d1", "d2"], len(adata))
    adata.obs["age"] = rng.random(len(adata))
    adata.obs["perturbed_at"] = rng.choice([0.0, 0.5], len(adata))  # before and after the medium
    covariates = {
        "categorical_covariate_keys": "donor",
        "continuous_covariate_keys": "age",
        "perturbation_time_key": "perturbed_at",
        "laboratory_key": "laboratory",
    }
    options = {"interactions": True, "content_dependent_noise": True, "dynamics": "node"}
    options["assume"] = [Assume.steady(probability=0.5)]
    model = build(adata, covariates, **options)
    model.train(max_epochs=1, progress_bar=False)
    return model


def test_every_site_of_the_model_page_has_named_dimensions(everything):
    page = (Path(__file__).parents[1] / "docs" / "model.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.*?) \| \(", page, flags=re.MULTILINE)
    sites = {site for cell in table for site in re.findall(r"`([\w.]+)`", cell)}
    posterior = posterior_of(everything.to_arviz(2))
    observed = {"x", "assumed", "assumed.state", "distribution"}
    moving = {"W.flow", "P.flow", "M.flow", "W.noise"}  # tests/generative/test_state_dynamics.py
    views = {site for site in sites if re.match(r"V\.(slope|protein|chromatin)", site)}
    others = observed | moving | views  # tests/views/test_joint.py
    assert set(posterior) - {"effect"} == sites - {"X.z", "X.path"} - others
    assert sites >= moving
    for site in posterior:
        for dim in posterior[site].dims[2:]:
            assert not dim.startswith(site), f"{site} has no named dimensions"
            assert len(posterior[dim]) == posterior.sizes[dim]


def test_axes_arms_drivers_and_covariates_have_their_names(everything):
    posterior = posterior_of(everything.to_arviz(2))
    first, second, third = everything.screen.perturbations
    medium, baseline = everything.screen.media[0], everything.screen.baseline_media
    labels = {dim: posterior[dim].values.tolist() for dim in posterior.dims}
    assert labels["axis"] == ["z1", "z2", "r1", "r2"] and labels["own_axis"] == ["r1", "r2"]
    assert labels["part"] == ["constant", "proportional"]
    assert labels["covariate"] == ["donor[d2]", "age"]
    assert set(labels["arm"]) == {
        f"{first}+{second} | {baseline}",
        *(f"{who} | {medium}" for who in (first, second, third, f"{first}+{second}")),
    }
    assert labels["content"] == ["control", medium]


def test_rows_of_interactions_are_the_arms_they_are_named_after(everything):
    """Raising an arm's row raises cells of that arm and of no other."""
    model, screen = everything.module.model, everything.screen
    arms = posterior_of(everything.to_arviz(1, ["P.interaction"]))["arm"].values
    values = everything.posterior.mean()
    before = model.shift(values, model.conditions)
    for row, arm in enumerate(arms):
        extra = torch.zeros_like(values["P.interaction"])
        extra[row] = 1.0
        raised = values | {"P.interaction": values["P.interaction"] + extra}
        moved = (model.shift(raised, model.conditions) - before).mean(1) > 0.5
        table = screen.conditions[moved.numpy()]
        assert len(table) and set(table["perturbation"] + " | " + table["media"]) == {arm}


def test_a_loaded_model_has_the_same_names_for_fewer_cells(everything, tmp_path):
    everything.save(tmp_path / "model")
    controls = everything.adata.obs.eval("perturbation == 'control' and media == 'baseline'")
    adata = everything.adata[controls].copy()
    again = PyroCell.load(tmp_path / "model", adata)
    here, there = (posterior_of(model.to_arviz(1)) for model in (everything, again))
    for dim in here.dims:
        assert list(here[dim].values) == list(there[dim].values)


def test_draws_are_those_of_the_posterior(fitted):
    posterior = posterior_of(fitted.to_arviz(6, ["P.effect", "eta"]))
    assert set(posterior) == {"P.effect", "eta"}
    samples = fitted.posterior_samples(6)
    for site in ("P.effect", "eta"):
        np.testing.assert_array_equal(posterior[site].values[0], samples[site])


@pytest.mark.filterwarnings("ignore")
def test_arviz_summarises_the_draws(fitted):
    table = az.summary(fitted.to_arviz(20, ["M.gain"]), kind="stats")
    assert len(table) == len(fitted.screen.perturbations) and "mean" in table


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_screens_without_media_time_or_batches_are_exported_too(make_screen, build):
    model = build(make_screen(n_batches=1), likelihood="nb")
    model.train(max_epochs=1, progress_bar=False)
    posterior = posterior_of(model.to_arviz(3))
    assert posterior["P.residual"].dims[2:] == ("perturbation", "time", "gene")
    assert posterior["eta"].sizes["batch"] == 1 and "M.gain" not in posterior


@pytest.mark.parametrize("version", ["0.23.4", "1.0.0", "1.3.1"])
def test_either_major_version_of_arviz_is_called_as_it_wants(monkeypatch, version):
    calls = []
    monkeypatch.setattr(az, "__version__", version)
    monkeypatch.setattr(az, "from_dict", lambda *a, **k: calls.append((a, k)))
    draws, coords, dims = {"a": np.zeros((1, 2, 3))}, {"x": [1, 2, 3]}, {"a": ["x"]}
    inference_data({"posterior": draws}, coords, dims)
    named = {"coords": coords, "dims": dims}
    old = ((), {"posterior": draws, **named})
    new = (({"posterior": draws},), named)
    assert calls == [old if version.startswith("0") else new]

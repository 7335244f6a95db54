"""What differs between versions of the packages underneath: ArviZ' container of draws."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest

from pyrocell import _compat
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
    monkeypatch.setattr(_compat.az, "__version__", version)
    monkeypatch.setattr(_compat.az, "from_dict", lambda *a, **k: calls.append((a, k)))
    draws, coords, dims = {"a": np.zeros((1, 2, 3))}, {"x": [1, 2, 3]}, {"a": ["x"]}
    inference_data(draws, coords, dims)
    named = {"coords": coords, "dims": dims}
    old = ((), {"posterior": draws, **named})
    new = (({"posterior": draws},), named)
    assert calls == [old if version.startswith("0") else new]

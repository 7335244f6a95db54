"""Arguments that mean nothing are refused by name, before anything is computed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell import Priors, PyroCell
from pyrocell.design import Plan
from pyrocell.errors import DesignError, ScreenError


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.get_latent_representation(batch_size=-1), "batch_size=-1 must be a whole"),
        (lambda m: m.get_latent_representation(batch_size=0), "batch_size=0 must be a whole"),
        (lambda m: m.get_normalized_expression(batch_size=2.5), "batch_size=2.5 must be a whole"),
        (lambda m: m.get_normalized_expression(library_size=-1), "library_size=-1 must be above 0"),
        (lambda m: m.get_normalized_expression(library_size=np.nan), "library_size=nan must be"),
        (lambda m: m.perturbation_effects(n_samples=2.5), "2.5 posterior draws"),
        (lambda m: m.media_effects(n_samples=0), "0 posterior draws"),
        (lambda m: m.media_effects(credible_level=np.nan), "credible_level=nan"),
        (lambda m: m.media_effects([]), "names none"),
        (lambda m: m.media_effects("baseline"), "is the baseline"),
        (lambda m: m.train(seed=-1, max_epochs=1), "seed=-1 must be a whole number"),
        (lambda m: m.train(batch_size=-1, max_epochs=1), "batch_size=-1"),
    ],
)
def test_questions_refuse_what_means_nothing(fitted, ask, said):
    with pytest.raises(ScreenError, match=said):
        ask(fitted)


@pytest.mark.parametrize("size", [{"n_latent": 2.5}, {"n_latent": 0}, {"n_response": -1}])
def test_models_refuse_sizes_that_are_none(fitted, size):
    with pytest.raises(ScreenError, match=f"{next(iter(size))}=.* must be at least"):
        PyroCell(fitted.adata, **size)


@pytest.mark.parametrize(
    ("priors", "said"),
    [
        ({"eta_sd": np.nan}, "must be finite"),
        ({"effect_sd": 0.0}, "must be above 0"),
        ({"replicate_sd": -0.1}, "must not be negative"),
        ({"gain_weights": (-1.0, 1.0, 1.0)}, "must not be negative"),
        ({"gain_weights": (0.0, 0.0, 0.0)}, "must not all be 0"),
        ({"gain_scales": (0.1, 0.1)}, "as many numbers"),
        ({"gain_locs": "one"}, "is not a number"),
        ({"interaction_share": 2.0}, "between 0 and 1"),
    ],
)
def test_priors_refuse_what_is_no_prior(priors, said):
    with pytest.raises(ScreenError, match=said) as refused:
        Priors(**priors)
    assert next(iter(priors)) in str(refused.value)
    assert Priors(replicate_sd=0.0, gain_weights=(0.0, 1.0, 0.0)).replicate_sd == 0


def test_a_plan_of_a_million_perturbations_is_refused_at_once():
    with pytest.raises(DesignError, match="1,000,000 perturbations are more than"):
        Plan(10**6)


def test_media_effects_of_a_screen_without_times_are_not_asked_at_one(build, make_screen):
    model = build(make_screen(media=1))
    model.train(max_epochs=1, progress_bar=False)
    with pytest.raises(ScreenError, match="without times"):
        model.media_effects(time=3.0)
    assert isinstance(model.media_effects(), pd.DataFrame)

"""At time 0 a perturbation has done nothing; cells that say otherwise are warned of."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyrocell import PyroCell
from pyrocell.errors import ScreenWarning


def time_course(seed: int, effect: float) -> ad.AnnData:
    """Two knockouts and controls at three times, 40 cells of each in either of two batches.

    The first knockout moves a gene by `effect` at all times, the second at the later ones. One
    batch has three times the dropout of the other.
    """
    rng = np.random.default_rng(seed)
    rows = [
        (p, t, b)
        for p in ("control", "always", "later")
        for t in (0.0, 2.0, 4.0)
        for b in ("b1", "b2")
        for _ in range(40)
    ]
    obs = pd.DataFrame(rows, columns=["perturbation", "time", "batch"])
    obs.index = obs.index.astype(str)
    mean = np.exp(rng.normal(0.5, 1.0, 30)) * rng.gamma(4.0, 0.25, (len(obs), 1))
    mean = mean * np.where(obs["batch"] == "b2", np.exp(rng.normal(0, 0.5, (30, 1))), 1.0).T
    mean[obs["perturbation"] == "always", 0] *= np.exp(effect)
    mean[(obs["perturbation"] == "later") & (obs["time"] > 0), 1] *= np.exp(effect)
    return ad.AnnData(rng.poisson(mean + 0.2).astype(np.float32), obs)


def said(cells: ad.AnnData, **setup: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PyroCell.setup_anndata(cells, **setup)
        PyroCell(cells, n_latent=2, n_response=2, n_hidden=8)
    texts = [str(w.message) for w in caught if issubclass(w.category, ScreenWarning)]
    return [text for text in texts if "time 0" in text]


def test_a_perturbation_that_was_always_there_is_warned_of_with_a_remedy_that_works():
    cells = time_course(0, effect=2.0)
    (text,) = said(cells, time_key="time")
    assert "number of genes: always 1)" in text
    cells.obs["age"] = cells.obs["time"].map("day {:g}".format)
    assert not said(cells, media_key="age", baseline_media="day 0")


@pytest.mark.parametrize("seed", range(8))
def test_perturbations_that_have_yet_to_act_are_not_warned_of(seed):
    assert not said(time_course(seed, effect=0.0), time_key="time")


def test_a_perturbation_told_from_controls_by_its_batch_alone_is_not_judged():
    cells = time_course(1, effect=2.0)
    always = cells.obs["perturbation"] == "always"
    keep = (cells.obs["batch"] == "b1") == always
    assert not said(cells[keep].copy(), time_key="time")

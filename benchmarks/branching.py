"""Two fates, one blocked by a knockout: does the model carry cells to the right ones (App. C.1)?

Cells progress and choose between fates A and B once they have come far enough: a pitchfork in the
plane, integrated here in steps of 1/200, with noise. A knockout blocks fate B (those cells stay
undecided), one tips the balance towards B, one halves the progress, one does nothing. Counts are
negative binomial with programmes of genes along progress and fates, in four lanes of all times.

Knockouts are measured at times 1, 2 and 3 and predicted at 4, where only controls are measured.
Fates of predicted cells are read as a user would: by a classifier of expression, trained on the
observed controls, whose fates are known. Anchors: the knockout's own last share; the controls' share
at the time asked for.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.linear_model import LogisticRegression

import pyrocell

SEEDS = (701, 702, 703)
TIMES = (0.0, 1.0, 2.0, 3.0, 4.0)
KNOCKOUTS = ("BLOCK", "TIP", "SLOW", "INERT")
FATES = ("undecided", "A", "B")
N_GENES, N_CELLS = 300, 400
STEP = 1 / 200


def states(knockout: str, t: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Progress and fate axis of n cells after a time, (n, 2)."""
    progress = 0.3 * rng.standard_normal(n)
    fate = 0.15 * rng.standard_normal(n)
    speed = 0.5 if knockout == "SLOW" else 1.0
    for _ in range(round(t / STEP)):
        open_ = np.tanh(np.maximum(progress - 1.0, 0))  # the fork opens beyond progress 1
        force = 3.0 * (open_ * fate - fate**3) - 0.5 * (1 - open_) * fate
        if knockout == "BLOCK":
            force = np.where(fate > 0, -0.5 * fate, force)
        if knockout == "TIP":
            force = force + 0.12
        progress = progress + STEP * speed + 0.2 * np.sqrt(STEP) * rng.standard_normal(n)
        fate = fate + STEP * force + 0.3 * np.sqrt(STEP) * rng.standard_normal(n)
    return np.stack([progress, fate], 1)


def fates(state: np.ndarray) -> np.ndarray:
    """Name of each cell's fate."""
    return np.where(state[:, 1] > 0.5, "B", np.where(state[:, 1] < -0.5, "A", "undecided"))


def expression(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log relative expression, (n, G): programmes of progress and of either fate."""
    progress, fate = state.T
    own = np.stack([progress - 1.5, np.maximum(fate, 0) * 1.5, np.maximum(-fate, 0) * 1.5, fate], 1)
    weight = rng.standard_normal((4, N_GENES)) * np.array([0.35, 0.6, 0.6, 0.3])[:, None]
    weight *= rng.random((4, N_GENES)) < 0.4
    baseline = rng.normal(0.0, 1.2, N_GENES)
    return baseline + own @ weight


def screen(seed: int) -> AnnData:
    """Cells of all conditions and times; `.obs` holds the true fate of each."""
    rng = np.random.default_rng(seed)
    frames, all_states = [], []
    for t in TIMES:
        for knockout in ("control", *KNOCKOUTS):
            n = 2 * N_CELLS if knockout == "control" else N_CELLS
            state = states(knockout, t, n, rng)
            all_states.append(state)
            batch = [f"lane{i % 4}" for i in range(n)]
            frame = {"perturbation": knockout, "time": t, "batch": batch, "fate": fates(state)}
            frames.append(pd.DataFrame(frame))
    obs = pd.concat(frames, ignore_index=True)
    state = np.concatenate(all_states)
    level = expression(state, rng) + 0.1 * rng.standard_normal((len(state), 1))
    names, batch = np.unique(obs.batch, return_inverse=True)
    level = level + rng.normal(0, 0.1, (len(names), N_GENES))[batch]
    share = np.exp(level)
    share /= share.sum(1, keepdims=True)
    depth = rng.lognormal(np.log(2500), 0.3, (len(state), 1))
    counts = rng.poisson(rng.gamma(5.0, share * depth / 5.0))
    obs.index = [f"cell{i}" for i in range(len(obs))]
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(N_GENES)]
    adata.obsm["truth"] = state
    return adata


def true_shares(knockout: str, t: float) -> pd.Series:
    """Shares of fates among 20,000 cells."""
    label = fates(states(knockout, t, 20_000, np.random.default_rng(0)))
    return pd.Series(label).value_counts(normalize=True).reindex(FATES, fill_value=0.0)

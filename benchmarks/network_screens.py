"""Screens of random gene networks whose edges are known, from simulators not written here.

The networks of `networks.py`; cells come from harissa's bursty promoters or grnlab's Hill kinetics.
Every regulator is knocked out in turn (receptor, cascade, branches, regulators active at rest), the
stimulus is on from time 0 in all conditions, and cells are taken at four times. Genes outside the
network, which nothing reaches, stand for the rest of the transcriptome.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mechanistic_grnlab import Grnlab
from mechanistic_harissa import Harissa
from networks import CASCADE, REGULATORS, SIGNALS, draw_network

__all__ = ["KNOCKOUTS", "SIMULATORS", "TIMES", "network_screen"]

SIMULATORS = {"harissa": Harissa, "grnlab": Grnlab}
KNOCKOUTS = ("R1", *CASCADE, *REGULATORS)
TIMES = (2.0, 4.0, 8.0, 16.0)  # in mRNA lifetimes
N_FILLER = 24
MEAN_COUNT, SPREAD, DEPTH_SD = 2.0, 0.7, 0.35
CONTROLS = 2  # control cells for each cell of a knockout


def network_screen(simulator: str, seed: int, cells: int = 100) -> tuple[AnnData, pd.DataFrame]:
    """Draw a screen and its edges.

    Parameters
    ----------
    simulator
        "harissa" or "grnlab".
    seed
        Of network and cells.
    cells
        Of a knockout and time.

    Returns
    -------
    tuple
        Raw counts with `.obs` perturbation and time, and a DataFrame of knockouts × genes that
        says which edges there are (0/1).
    """
    rng = np.random.default_rng([seed, list(SIMULATORS).index(simulator)])
    network = draw_network(rng)
    world = SIMULATORS[simulator](network, rng)
    conditions = [(name, time) for name in (None, *KNOCKOUTS) for time in TIMES]
    mrna, labels = [], []
    for name, time in conditions:
        n = cells if name else cells * CONTROLS
        mrna.append(world.cells(name, 0.0, time, n))
        labels.append(pd.DataFrame({"perturbation": name or "control", "time": time}, range(n)))
    obs = pd.concat(labels, ignore_index=True)
    usual = np.mean(mrna[: len(TIMES)], (0, 1))
    target = np.exp(rng.normal(np.log(MEAN_COUNT), SPREAD, len(usual) + N_FILLER))
    shape = np.exp(rng.normal(np.log(0.8), 0.5, N_FILLER))
    filler = rng.gamma(shape, 1 / shape, (len(obs), N_FILLER)) * target[len(usual) :]
    means = np.hstack([np.concatenate(mrna) * (target[: len(usual)] / usual), filler])
    depth = np.exp(rng.normal(-(DEPTH_SD**2) / 2, DEPTH_SD, (len(obs), 1)))
    counts = rng.poisson(means * depth).astype(np.float32)
    obs.index = obs.index.astype(str)
    adata = AnnData(sp.csr_matrix(counts), obs=obs)
    adata.var_names = [*network.genes, *(f"F{i + 1}" for i in range(N_FILLER))]
    edges = pd.DataFrame(0, list(KNOCKOUTS), adata.var_names)
    rows = network.at(*KNOCKOUTS)
    edges.loc[:, list(network.genes)] = (network.strength[rows, SIGNALS:] != 0).astype(int)
    return adata, edges

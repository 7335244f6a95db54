"""Knockout and stimulus in both orders, in cells of harissa's bursty gene networks.

A network: receptor R1, always on and needed by the stimulus; cascade A1 → A2 → A3; branches B1-B3;
responders T; regulators U, of which U1 also drives R1; terminal genes V. 80 more genes, which
nothing reaches, stand for the rest of the transcriptome. Time is in mRNA lifetimes; signalling
proteins live 1.3 to 4 of them, others 1.5 to 12.

    base   knockout at 0, baseline medium
    PM     knockout at 0, stimulus at `DELAY`
    MP     stimulus at 0, knockout at `DELAY`

A knocked-out promoter never fires again; the mRNA and protein that are there decay at their own
rates. Cells come from harissa's exact sampler, each measured once. Expected levels come from other
cells, in two halves whose errors are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from harissa import NetworkModel
from harissa.simulation.pdmp_fast import BurstyPDMP
from mechanistic_harissa import sampler

__all__ = ["BLOCKING", "DELAY", "KNOCKOUTS", "OTHERS", "REVERSED", "TIMES", "Arms", "simulate"]

TIMES, DELAY = (6.0, 9.0, 14.0, 22.0), 4.0
BLOCKING, OTHERS = ("R1", "A1", "A2", "A3"), ("B1", "B2", "B3", "U1")
REVERSED = (*BLOCKING, *OTHERS)  # knockouts that are also made after the stimulus
KNOCKOUTS = (*REVERSED, "U3", "T1", "V1", "V7")
SIZES = {"R": 1, "A": 3, "B": 3, "T": 9, "U": 8, "V": 8}
FOUNDERS, BANK, BURN_IN, SPREAD = 200, 1000, 40.0, 12.0  # resting cells
N_FILLER, MEAN_COUNT, DEPTH_SD, BATCH_SD, BATCHES = 80, 2.0, 0.35, 0.2, 4
CONTROLS = 4  # for each cell of a knockout


@dataclass(frozen=True)
class Arms:
    """A screen, and expected counts in halves: (perturbation, arm) → (2, times, genes)."""

    adata: AnnData
    expected: dict[tuple[str, str], np.ndarray]


def simulate(seed: int, n_cells: int = 100, n_reference: int = 160) -> Arms:
    """All arms of a random network; `adata.obs`: perturbation, media, arm, times, batch."""
    rng = np.random.default_rng(seed)
    cells = _Cells(rng)
    arms = [(p, arm) for p in ("control", *KNOCKOUTS) for arm in ("base", "PM", "MP")]
    arms = [(p, arm) for p, arm in arms if arm != "MP" or p in ("control", *REVERSED)]
    resting = rng.gamma(np.exp(rng.normal(np.log(0.8), 0.5, N_FILLER)), 1.0, (4000, N_FILLER))
    filler = np.broadcast_to(resting.mean(0), (2, len(TIMES), N_FILLER))
    expected = {}
    for p, arm in arms:
        if arm != "base" or p == "control":
            mrna = cells.course(p, arm, TIMES, n_reference * (4 if p == "control" else 1))
            halves = np.stack([half.mean(0) for half in np.array_split(mrna, 2)])
            expected[p, arm] = np.concatenate([halves, filler], 2)
    scale = np.exp(rng.normal(0, 0.9, cells.n_genes + N_FILLER))
    level = expected["control", "PM"].mean((0, 1))
    scale *= MEAN_COUNT / level / (scale.mean())
    eta = rng.normal(0, BATCH_SD, (BATCHES, len(scale)))
    counts, obs = [], []
    for p, arm in arms:
        for time in TIMES:
            n = n_cells * (CONTROLS if p == "control" else 1)
            mrna = cells.course(p, arm, (time,), n)[:, 0]
            mrna = np.hstack([mrna, resting[rng.integers(len(resting), size=n)]])
            batch = rng.permutation(np.arange(n) % BATCHES)
            depth = np.exp(rng.normal(-(DEPTH_SD**2) / 2, DEPTH_SD, (n, 1)))
            counts.append(rng.poisson(mrna * scale * depth * np.exp(eta[batch])).astype(np.int32))
            about = {"perturbation": p, "arm": arm, "time": time, "batch": batch.astype(str)}
            obs.append(pd.DataFrame(about, index=range(n)))
    table = pd.concat(obs, ignore_index=True)
    table["media"] = np.where(table["arm"] == "base", "baseline", "stimulus")
    table["perturbed_at"] = DELAY * (table["arm"] == "MP")
    table["exposed_at"] = DELAY * (table["arm"] == "PM")
    table.index = table.index.astype(str)
    names = [*cells.names[1:], *(f"F{i + 1}" for i in range(N_FILLER))]
    adata = AnnData(sp.csr_matrix(np.vstack(counts)), obs=table, var=pd.DataFrame(index=names))
    return Arms(adata, {arm: halves * scale for arm, halves in expected.items()})


class _Cells:
    """Cells of one random network, started from a bank of resting ones."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.net, self.names = _draw_network(rng)
        self.n_genes = n = len(self.names) - 1
        start = np.zeros((FOUNDERS, n + 1)), np.full((FOUNDERS, n + 1), 0.3)
        m, p = self._advance(self.net, [BURN_IN], 0.0, *start)
        again = np.arange(BANK) % FOUNDERS
        m, p = self._advance(self.net, [SPREAD], 0.0, m[again, 0], p[again, 0])
        self.bank = m[:, 0], p[:, 0]

    def course(self, knockout: str, arm: str, times: tuple[float, ...], n: int) -> np.ndarray:
        """(n, times, genes) mRNA of fresh cells of an arm."""
        rows = self.rng.integers(BANK, size=n)
        m, p = (state[rows] for state in self.bank)
        mutant = self._without(knockout)
        if arm == "base":
            return self._advance(mutant, times, 0.0, m, p)[0][:, :, 1:]
        first, stimulus = (mutant, 0.0) if arm == "PM" else (self.net, 1.0)
        m, p = self._advance(first, [DELAY], stimulus, m, p)
        later = np.asarray(times) - DELAY
        return self._advance(mutant, later, 1.0, m[:, 0], p[:, 0])[0][:, :, 1:]

    def _without(self, gene: str) -> NetworkModel:
        new = NetworkModel(self.n_genes)
        new.a, new.d = self.net.a.copy(), self.net.d.copy()
        new.basal, new.inter = self.net.basal.copy(), self.net.inter.copy()
        if gene != "control":
            i = self.names.index(gene)
            new.a[0, i], new.basal[i], new.inter[:, i] = 0.0, -100.0, 0.0
        return new

    def _advance(self, net, times, stimulus, m, p) -> tuple[np.ndarray, np.ndarray]:
        p = p.copy()
        p[:, 0] = stimulus
        param = BurstyPDMP(net.a, net.d, net.basal, net.inter).param
        columns = [np.ascontiguousarray(param[c]) for c in ("K0", "K1", "B", "D0", "D1", "S1")]
        seed = int(self.rng.integers(2**31))
        return sampler()(seed, np.asarray(times, float), net.basal, net.inter, *columns, m, p)


def _draw_network(rng: np.random.Generator) -> tuple[NetworkModel, list[str]]:
    """A network whose cascade is off at rest; its first name is the stimulus, which is no gene."""
    names = ["stimulus"] + [f"{r}{i + 1}" for r, k in SIZES.items() for i in range(k)]
    at = {name: i for i, name in enumerate(names)}
    n = len(names)
    net = NetworkModel(n - 1)
    net.d[0] = np.exp(rng.normal(0, 0.2, n))
    net.d[1] = 1 / np.exp(rng.uniform(np.log(1.5), np.log(12), n))
    signalling = [i for name, i in at.items() if name[0] in "RAB"]
    net.d[1, signalling] = 1 / np.exp(rng.uniform(np.log(1.3), np.log(4), len(signalling)))
    net.a[1] = np.exp(rng.normal(np.log(2.5), 0.3, n))  # bursts per mRNA lifetime at most
    net.a[0] = 0.02 * net.a[1]
    net.basal[:] = rng.normal(-1, 0.7, n)

    def edge(regulator: str, target: str, weight: float) -> None:
        net.inter[at[regulator], at[target]] = weight

    edge("stimulus", "A1", rng.uniform(5.5, 6.5))
    edge("R1", "A1", rng.uniform(6, 7))
    net.basal[at["A1"]] = -9.5
    for a, b in (("A1", "A2"), ("A2", "A3")):
        net.basal[at[b]] = -5.5
        edge(a, b, rng.uniform(8.5, 10.5))
    for b in ("B1", "B2", "B3"):
        net.basal[at[b]] = -5.5
        edge("A3", b, rng.uniform(7.5, 9.5))
    for i in range(SIZES["T"]):
        gene, sign = f"T{i + 1}", 1 if rng.random() < 0.75 else -1
        net.basal[at[gene]] = rng.uniform(-3, -1) if sign > 0 else rng.uniform(0.5, 1.5)
        for b in rng.choice(3, size=1 + (rng.random() < 0.3), replace=False):
            edge(f"B{b + 1}", gene, sign * rng.uniform(3, 6))
    for i in range(SIZES["U"]):
        gene = f"U{i + 1}"
        net.basal[at[gene]] = rng.uniform(-0.5, 1)
        down = [f"V{j + 1}" for j in range(6)] + [f"U{j + 1}" for j in range(i + 1, SIZES["U"])]
        down += [f"T{j + 1}" for j in range(3)]
        for target in rng.choice(down, size=rng.integers(1, 5), replace=False):
            edge(gene, str(target), rng.choice([1, -1]) * rng.uniform(1.5, 5))
    net.basal[at["R1"]] = -0.5
    edge("U1", "R1", rng.uniform(2, 5))
    return net, names

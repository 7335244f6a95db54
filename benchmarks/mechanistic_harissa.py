"""Cells of a network in harissa: promoters fire bursts at a rate set by the proteins around them.

Time is in mRNA lifetimes. Cells come from harissa's exact sampler. Expected mRNA does not wait for
bursts to average out: with k(P) the rate of bursts of mean size 1/b,

    d E[m] / dt = E[k(P)] / b − d₀ E[m],

so only the proteins are averaged over cells. A gene that neither the knockout nor the stimulus can
reach has the law of resting cells, exactly, and gets one value in all conditions.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from networks import CASCADE, DRIFT, RESPONDERS, SIGNALS, STIMULUS, Network
from scipy.special import expit

__all__ = ["Harissa", "sampler"]

BURN_IN, SPREAD = 30.0, 12.0  # of a few cells, then of many that start from them
FOUNDERS, BANK = 200, 1000  # resting cells, from which all others start
HALF = 100  # cells in each half of a reference population
GRID = 0.25  # of the integral over time
WEIGHT = 8.0  # log-odds of the promoter at full regulator protein, per unit of strength
DRIFT_AT_REST, FULL_DRIFT = -3.0, 5.0  # log-odds of the drifting signal, and what is added at most
LEAK = 0.05  # bursts without regulators, of those at most


@cache
def sampler():
    """harissa's sampler over many cells; compiled on the first call."""
    from harissa.simulation.pdmp_fast import simulate
    from numba import njit

    @njit
    def run(seed, times, basal, inter, k0, k1, b, d0, d1, s1, m, p):
        np.random.seed(seed)
        mrna = np.zeros((len(m), len(times), len(basal)))
        protein = np.zeros_like(mrna)
        for i in range(len(m)):
            states = simulate(
                times, basal, inter, k0, k1, b, d0, d1, s1, m[i].copy(), p[i].copy(), None, False
            )
            mrna[i], protein[i] = states[0], states[1]
        return mrna, protein

    return run


class Harissa:
    """A network with harissa's kinetics, and cells of it at rest."""

    def __init__(self, network: Network, rng: np.random.Generator, drift: float = 0.0):
        self.network, self.rng, self.drift = network, rng, drift
        n = len(network.names)
        self.d = np.stack([np.exp(rng.normal(0, 0.2, n)), 1 / np.exp(rng.uniform(0.4, 2.1, n))])
        fast = network.at("R1", *CASCADE)
        self.d[1, fast] = 1 / np.exp(rng.uniform(-0.7, 0.5, len(fast)))  # signalling is quick
        self.d[1, network.at(DRIFT)] = 1 / 6
        most = np.exp(rng.normal(np.log(4.0), 0.3, n))  # bursts per mRNA lifetime
        self.a = np.stack([LEAK * most, most, np.full(n, 0.02)])
        self.inter = WEIGHT * network.strength
        self.basal = rng.uniform(-0.5, 1.0, n)
        self.basal[network.at(DRIFT)] = DRIFT_AT_REST
        self._tune_cascade()
        start = np.zeros((FOUNDERS, n)), np.full((FOUNDERS, n), 0.3)
        founders = self._advance(None, 0.0, np.array([BURN_IN]), *start, at_rest=True)
        start = (state[np.arange(BANK) % FOUNDERS, 0] for state in founders)
        resting = self._advance(None, 0.0, np.array([SPREAD]), *start, at_rest=True)
        self.bank = tuple(state[:, 0] for state in resting)
        self._held: dict[tuple, np.ndarray] = {}

    def _tune_cascade(self) -> None:
        """Keep the cascade off at rest, and let each step carry the stimulus on."""
        at = self.network.at
        a1 = at("A1")[0]
        self.inter[at(STIMULUS)[0], a1] = self.inter[at("R1")[0], a1] = 9.5
        self.basal[a1] = -14.0
        for i in at("A2", "A3", "B1", "B2"):
            upstream = self.inter[:, i] != 0
            self.inter[upstream, i] += 6.0
            self.basal[i] = -7.0
        # Responders: low if the branches activate them, high if they are repressed.
        branches = self.inter[at("B1", "B2")].sum(axis=0)
        for i in at(*RESPONDERS):
            self.basal[i] = (
                self.rng.uniform(-3, -1) if branches[i] > 0 else self.rng.uniform(0.5, 1.5)
            )
        self.basal[at("R1")] = -0.5

    # ------------------------------------------------------------------ populations
    def cells(
        self, knockout: str | None, stimulus: float | None, time: float, n: int
    ) -> np.ndarray:
        """(n, genes) mRNA of fresh cells, `time` after the knockout; `stimulus` is when it came."""
        mrna, _ = self._course(knockout, stimulus, np.array([time]), n)
        return mrna[:, 0, SIGNALS:]

    def expected(self, knockout: str | None, stimulus: float | None, times: tuple) -> np.ndarray:
        """(2, times, genes) expected mRNA, from each of two independent populations.

        A lost gene that reaches no other has its own resting value: nobody compares it.
        """
        nothing = np.zeros(len(self.network.names), bool)
        by_knockout = self.network.reached_from(knockout) if knockout else nothing
        by_stimulus = self.network.reached_from(STIMULUS) if stimulus is not None else nothing
        still = ~self.network.reached_from(DRIFT) if self.drift else ~nothing
        out = self._reference(None, None, times).copy()
        out[..., still] = out.mean(axis=(0, 1))[still]
        for genes, cause in (
            (by_knockout & ~by_stimulus, (knockout, None)),
            (~by_knockout & by_stimulus, (None, stimulus)),
            (by_knockout & by_stimulus, (knockout, stimulus)),
        ):
            if genes[np.array(self.network.names) != knockout].any():
                out[..., genes] = self._reference(*cause, times)[..., genes]
        return out[..., SIGNALS:]

    def _reference(self, knockout: str | None, stimulus: float | None, times: tuple) -> np.ndarray:
        """(2, times, names) expected mRNA from the proteins of two populations of cells."""
        key = (knockout, stimulus, times)
        if key in self._held:
            return self._held[key]
        grid = np.arange(0.0, times[-1] + GRID / 2, GRID)
        _, protein = self._course(knockout, stimulus, grid, 2 * HALF)
        rates = self._kinetics(knockout)
        decay, step = self.d[0], self.d[0] * GRID
        # Weights of a rate linear between grid points, against exp(-d₀ time left).
        late = (step - 1 + np.exp(-step)) / (decay * step)
        early = (1 - np.exp(-step)) / decay - late
        resting = self._rate(self._kinetics(None, at_rest=True), self.bank[1], 0.0).mean(0) / decay
        course = np.empty((2, len(grid), len(decay)))
        course[:, 0] = resting
        for j in range(len(grid) - 1):
            on = float(stimulus is not None and grid[j] >= stimulus)
            ends = (self._rate(rates, protein[:, j + i], on) for i in (0, 1))
            before, after = (end.reshape(2, HALF, -1).mean(axis=1) for end in ends)
            course[:, j + 1] = course[:, j] * np.exp(-step) + before * early + after * late
        out = course[:, np.rint(np.array(times) / GRID).astype(int)]
        self._held[key] = out
        return out

    def _course(
        self, knockout: str | None, stimulus: float | None, times: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n, times, names) mRNA and protein of n fresh cells."""
        start = self.rng.integers(BANK, size=n)
        m, p = (state[start] for state in self.bank)
        if stimulus is None:
            return self._advance(knockout, 0.0, times, m, p)
        early = times < stimulus
        m1, p1 = self._advance(knockout, 0.0, np.append(times[early], stimulus), m, p)
        m2, p2 = self._advance(knockout, 1.0, times[~early] - stimulus, m1[:, -1], p1[:, -1])
        return np.hstack([m1[:, :-1], m2]), np.hstack([p1[:, :-1], p2])

    # ------------------------------------------------------------------ harissa
    def _kinetics(
        self, knockout: str | None, at_rest: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameters a, basal and inter; a lost promoter never fires again."""
        a, basal, inter = self.a.copy(), self.basal.copy(), self.inter.copy()
        if not at_rest:
            basal[self.network.at(DRIFT)] += FULL_DRIFT * self.drift
        if knockout is not None:
            (lost,) = self.network.at(knockout)
            a[0, lost], basal[lost], inter[:, lost] = 0.0, -100.0, 0.0
        return a, basal, inter

    def _rate(self, kinetics: tuple, protein: np.ndarray, stimulus: float) -> np.ndarray:
        """mRNA made per unit of time, (cells, names), given proteins."""
        a, basal, inter = kinetics
        protein = protein.copy()
        protein[:, 0] = stimulus
        on = expit(basal + protein @ inter)
        return ((1 - on) * a[0] + on * a[1]) * self.d[0] / a[2]

    def _advance(
        self,
        knockout: str | None,
        stimulus: float,
        times: np.ndarray,
        m: np.ndarray,
        p: np.ndarray,
        at_rest: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Let cells go on from mRNA and protein (n, names) under one condition."""
        from harissa.simulation.pdmp_fast import BurstyPDMP

        a, basal, inter = self._kinetics(knockout, at_rest)
        param = BurstyPDMP(a, self.d, basal, inter).param
        columns = [np.ascontiguousarray(param[c]) for c in ("K0", "K1", "B", "D0", "D1", "S1")]
        p = p.copy()
        p[:, 0] = stimulus
        seed = int(self.rng.integers(2**31))
        return sampler()(seed, np.asarray(times, float), basal, inter, *columns, m, p)

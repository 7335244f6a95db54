"""Cells of a network in grnlab: Hill kinetics of mRNA and protein, integrated, one clone at a time.

Clones differ in how fast they make the mRNA of each gene; cells belong to clones at random and
differ within a clone by a gamma factor per gene. Expected mRNA is the mean over clones, exactly.
Time is in mRNA lifetimes.
"""

from __future__ import annotations

import numpy as np
from networks import CASCADE, DRIFT, SIGNALS, Network

__all__ = ["Grnlab"]

CLONES = 5
CLONE_SD = 0.25  # of log production, gene by gene
BURN_IN = 80.0
GRID = 0.5  # of the times that can be asked for
LEAK = 0.03  # of the cascade's production without a regulator or the stimulus
AT_REST = 0.05  # production of the drifting signal in cells that do not drift


class Grnlab:
    """A network with grnlab's kinetics, and clones of it at rest."""

    def __init__(self, network: Network, rng: np.random.Generator, drift: float = 0.0):
        import grnlab

        self.network, self.rng, self.drift = network, rng, drift
        names = network.names[1:]  # the stimulus acts on a gene of the cascade, as grnlab's do
        self.first = SIGNALS - 1
        at = {name: i for i, name in enumerate(names)}
        signs = np.sign(network.strength[1:, 1:]).T  # grnlab: target by regulator
        model = grnlab.build_model(
            signs,
            stages=2,
            seed=int(rng.integers(2**31)),
            labels=names,
            gamma_range=(0.8, 1.25),
            hill_range=(1.5, 3.5),
            k_rel_range=(0.3, 0.9),
        )
        model.gammaP = 1 / np.exp(rng.uniform(0.4, 2.1, len(names)))
        fast = [at[name] for name in ("R1", *CASCADE)]
        model.gammaP[fast] = 1 / np.exp(rng.uniform(-0.7, 0.5, len(fast)))  # signalling is quick
        model.gammaP[at[DRIFT]] = 1 / 6
        model.beta = model.gammaP.copy()
        # What is made without regulators sets how much a lost regulator can matter.
        regulated = signs.any(axis=1)
        model.basal[regulated] = model.vmax[regulated] * rng.uniform(0.02, 0.3, regulated.sum())
        cascade = [at[name] for name in CASCADE]
        model.basal[cascade] = LEAK * model.vmax[cascade]
        self.clones = [self._clone(model) for _ in range(CLONES)]
        self.shape = np.exp(rng.normal(np.log(1.5), 0.4, len(network.genes)))
        self._held: dict[tuple, np.ndarray] = {}
        self.rest = [self._settle(clone) for clone in self.clones]

    def _clone(self, model):
        """The model with other rates of production."""
        import grnlab

        clone = model.copy()
        factor = np.exp(self.rng.normal(0, CLONE_SD, model.n))
        clone.basal, clone.vmax = clone.basal * factor, clone.vmax * factor
        clone.k = clone.k * factor[:, None]
        return grnlab.attach_handles(clone)

    def _settle(self, clone) -> np.ndarray:
        """State of a clone at rest."""
        import grnlab

        still = grnlab.stimulate(clone, self._signals(None, drift=0.0))
        state = grnlab.simulate(still, BURN_IN, BURN_IN / 2, solver="ode15s").x[-1]
        if np.abs(still.f(0.0, state)).max() > 1e-3:
            raise RuntimeError(f"cells are not at rest after {BURN_IN} mRNA lifetimes")
        return state

    def _signals(self, stimulus: float | None, drift: float) -> list:
        """What the medium and the drift do to the production of two names."""
        import grnlab

        on = 1.0 if stimulus is not None else LEAK
        start = 0.0 if stimulus is None else stimulus
        return [
            grnlab.stimulus("A1", "step", baseline=LEAK, amplitude=on, start=start),
            grnlab.stimulus(DRIFT, "step", baseline=AT_REST, amplitude=AT_REST + drift),
        ]

    # ------------------------------------------------------------------ populations
    def cells(
        self, knockout: str | None, stimulus: float | None, time: float, n: int
    ) -> np.ndarray:
        """(n, genes) mRNA of fresh cells, `time` after the knockout; `stimulus` is when it came."""
        clone = self.rng.integers(CLONES, size=n)
        mean = self._courses(knockout, stimulus, time)[clone, -1]
        return mean * self.rng.gamma(self.shape, 1 / self.shape, mean.shape)

    def expected(self, knockout: str | None, stimulus: float | None, times: tuple) -> np.ndarray:
        """(2, times, genes) expected mRNA; twice the same, as it has no error."""
        rows = [round(time / GRID) for time in times]
        mean = self._courses(knockout, stimulus, times[-1])[:, rows].mean(axis=0)
        return np.stack([mean, mean])

    def _courses(self, knockout: str | None, stimulus: float | None, until: float) -> np.ndarray:
        """(clones, times, genes) mRNA on a grid from 0 to some time."""
        import grnlab

        n = round(until / GRID) + 1
        held = self._held.get((knockout, stimulus))
        if held is not None and held.shape[1] >= n:
            return held[:, :n]
        signals = self._signals(stimulus, self.drift)
        courses = [
            grnlab.simulate(
                clone, until, GRID, initial_condition=rest, knockout=knockout, stimulus=signals
            ).mrna[:, self.first :]
            for clone, rest in zip(self.clones, self.rest)
        ]
        self._held[knockout, stimulus] = np.stack(courses)
        return self._held[knockout, stimulus]

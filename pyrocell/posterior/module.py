"""Model, guide and screen together, as scvi-tools expects a module; everything the file needs."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn

from pyrocell.data.statistics import CountStatistics
from pyrocell.generative.config import ModelConfig
from pyrocell.generative.model import GenerativeModel
from pyrocell.generative.starting_values import ScreenStatistics, starting_values
from pyrocell.guide.guide import Guide
from pyrocell.posterior.draws import Posterior
from pyrocell.posterior.gene_level.additive import (
    AdditiveLevel,
    additive_arms,
    additive_layout,
)
from pyrocell.posterior.gene_level.fit import arms_of, layout_of
from pyrocell.posterior.gene_level.sites import GeneLevelSites
from pyrocell.posterior.gene_level.states import GeneLevel
from pyrocell.priors import Priors
from pyrocell.screen.screen import Screen

__all__ = ["ScreenModule"]

_MOVED = {
    "model.gate_loading": "model.measurement.gate_loading",
    "model.log_eta_scale": "model.noise.log_eta_scale",
    "model.log_laboratory_scale": "model.noise.log_laboratory_scale",
    "model.log_interaction_scale": "model.interactions.log_scale",
}
_KEPT = "gene_level."  # names of its tensors in a file


class ScreenModule(nn.Module):
    """The generative model and its guide for one screen.

    Attributes
    ----------
    model, guide
        Plain Pyro callables with the arguments of `GenerativeModel.forward`.
    """

    def __init__(
        self, screen: Screen, config: ModelConfig, priors: Priors, statistics: ScreenStatistics
    ):
        super().__init__()
        self.config, self.priors = config, priors
        self.model = GenerativeModel(screen, config, priors, statistics)
        with torch.random.fork_rng([]):  # the same counts give the same start
            torch.manual_seed(0)
            self.guide = Guide(self.model, screen, statistics)
        self.gene_level: GeneLevel | None = None  # no parameters: not part of the state dict

    @classmethod
    def from_sums(
        cls, sums: CountStatistics, screen: Screen, config: ModelConfig, priors: Priors
    ) -> ScreenModule:
        """Build with starting values read off the counts."""
        return cls(screen, config, priors, starting_values(sums, screen, config))

    @classmethod
    def from_state(
        cls, state: dict[str, Tensor], screen: Screen, config: ModelConfig, priors: Priors
    ) -> ScreenModule:
        """Build from saved tensors and a screen without cells (its layout says how many).

        Raises
        ------
        RuntimeError
            If the tensors do not fit the screen and the settings.
        """
        _check_sizes(state, screen, config)
        module = cls(screen, config, priors, _blank_statistics(screen, config))
        kept = {name: state.pop(name) for name in list(state) if name.startswith(_KEPT)}
        for old, new in _MOVED.items():  # in files of versions before 0.2
            if old in state:
                state[new] = state.pop(old)
        module.load_state_dict(state)
        if kept:
            kind = AdditiveLevel if f"{_KEPT}additive" in kept else GeneLevel
            module.gene_level = kind({n.removeprefix(_KEPT): v for n, v in kept.items()})
            module.join(screen)
        return module

    def join(self, screen: Screen) -> None:
        """Tell the gene-level posterior what of the screen it refers to."""
        assert self.gene_level is not None
        if isinstance(self.gene_level, AdditiveLevel):
            layout = additive_layout(self.model, screen)
            self.gene_level.join(layout, additive_arms(self.model, screen))
            return
        values = Posterior(self.model, self.guide).mean()
        rest = self.gene_level.tensors.get("rest")  # files before had a spike at exactly zero
        layout = layout_of(
            self.model, screen, values, 0.0 if rest is None else round(float(rest), 6)
        )
        self.gene_level.join(layout, arms_of(self.model, screen))

    def saved_state(self) -> dict[str, Tensor]:
        """Everything that a file holds, by name."""
        kept = {} if self.gene_level is None else self.gene_level.tensors
        return self.state_dict() | {f"{_KEPT}{name}": value for name, value in kept.items()}

    def posterior(self, seed: int) -> Posterior:
        """Joint draws of the global sites."""
        if self.gene_level is None:
            return Posterior(self.model, self.guide, seed)
        kept = GeneLevelSites(self.model, self.gene_level)
        return Posterior(self.model, self.guide, seed, kept)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.model.loading.device

    def settings(self) -> dict:
        """Config and priors, JSON-safe."""
        return {"config": asdict(self.config), "priors": asdict(self.priors)}


def _check_sizes(state: dict[str, Tensor], screen: Screen, config: ModelConfig) -> None:
    """Raise RuntimeError unless names and settings have the sizes of the tensors beside them.

    A model is built before its tensors are copied; one that a damaged or hostile file describes
    could need any amount of memory.
    """
    numbers = screen.layout.to_numpy()
    counted = numbers.dtype.kind in "iu" and (numbers >= 0).all()
    if not counted or numbers.sum(1).tolist() != screen.conditions["n_cells"].tolist():
        raise RuntimeError("its layout is no table of numbers of cells")
    axes = config.n_latent + config.n_response
    genes, times = len(screen.genes), max(1, len(screen.times))
    sizes: dict[str, tuple[int, ...]] = {
        "guide.baseline_loc": (genes,),
        "guide.encoder.body.0.bias": (config.n_hidden,),
    }
    for driver, names in (("", screen.perturbations), ("media_", screen.media)):
        if names:
            sizes[f"guide.{driver}effect_loc"] = (len(names), axes)
            if config.gene_residual:
                sizes[f"guide.{'M' if driver else 'P'}_residual_loc"] = (len(names), times, genes)
    for name, expected in sizes.items():
        found = tuple(state[name].shape)
        if found != expected:
            raise RuntimeError(f"{name} has the shape {found}, and {expected} in its settings")


def _blank_statistics(screen: Screen, config: ModelConfig) -> ScreenStatistics:
    """Starting values of the right shapes, to be replaced by what was saved."""
    g, d, r = len(screen.genes), config.n_latent, config.n_response
    zeros, ones = torch.zeros(g), torch.ones(g)
    return ScreenStatistics(
        baseline=zeros,
        baseline_scale=ones,
        mean=ones,
        relative_variance=ones,
        log_dispersion=zeros,
        loading=torch.zeros(d, g),
        response=torch.ones(r, g),
        effect=torch.zeros(len(screen.perturbations), d + r),
        media_effect=torch.zeros(len(screen.media), d + r),
        low=zeros,
        usual=torch.zeros(max(1, len(config.views))),
    )

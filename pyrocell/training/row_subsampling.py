"""A step that draws only the perturbations whose cells are in its minibatch.

A minibatch of B cells meets at most B perturbations. Where a screen has many more, model and guide
of a step are views of themselves with the rows of those alone, of sites, parameters and layout, and
a cell brings its share of the prior of what it carries: of the log densities p and q of a
perturbation with n_k training cells, c_k of them in the minibatch, the estimate counts

    (N / B) c_k / n_k,

which is 1 on average over the minibatches of an epoch, and exactly so where these divide the cells.
Perturbations without training cells keep to their prior: some are drawn at every step, at least as
often as those with a single cell, and count for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrocell.data.loader import MinibatchSampler
from pyrocell.errors import ScreenError
from pyrocell.generative.model import GenerativeModel
from pyrocell.guide.guide import Guide
from pyrocell.training.row_adam import visited_rows

__all__ = ["RestrictedStep", "RowSubsampler", "row_subsampler"]

_MANY = 2**20  # gene-level residuals from which on it is worth it
_WITHOUT = 16  # perturbations without training cells that a step draws, if there are as many
_TOGETHER = 2  # cells of a perturbation that travel together

# what has a row for each perturbation, or for each perturbation and medium
_SITES: tuple[str, ...] = (
    "P.effect",
    "P.on_target",
    "P.flow",
    "P.residual",
    "M.gain",
    "W.decay_ratio",
)
_DRIVER_SITES: tuple[str, ...] = ("W.log_rate", "W.driver_scale")
_MODEL = ("target", "on_target_sign")
_CONDITIONS = ("exposure", "duration", "time_index", "interaction", "perturbed_at", "exposed_at")
_NORMALS = ("effect", "on_target", "gain", "decay", "flow_code")
_GUIDE = (
    *(f"{name}_{part}" for name in _NORMALS for part in ("loc", "log_scale")),
    *(f"P_residual_{part}" for part in ("loc", "log_scale", "tau", "phi", "kept")),
    *("effect_lower", "gain_kept", "decay_along_rate"),
    *("effect_value", "effect_cells", "P_log_ratio", "P_unseen", "P_batch_share"),
)
_DRIVERS = (
    *(f"{name}_{part}" for name in ("rate", "driver_scale") for part in ("loc", "log_scale")),
    *("rate_along_base", "cells_at_time"),
)


class RestrictedStep(NamedTuple):
    """Model and guide of a minibatch, and the minibatch in their terms."""

    model: nn.Module
    guide: nn.Module
    batch: dict[str, Tensor]
    row_weights: Mapping[str, Tensor]  # by site, (n,) of its rows


class RowSubsampler:
    """Which perturbations and conditions a minibatch meets.

    Parameters
    ----------
    model, guide
        Of the whole screen.
    condition
        (N,) conditions of the training cells.
    """

    def __init__(self, model: GenerativeModel, guide: Guide, condition: np.ndarray):
        self.model, self.guide = model, guide
        perturbed, driver = model.carried.cpu().numpy()
        n_conditions, none = len(model.duration), model.n_perturbations
        self._driver = np.full(n_conditions, none)  # (C,) the one that is carried, K for none
        self._driver[perturbed] = driver
        self.n_cells = len(condition)
        sizes = np.bincount(condition, minlength=n_conditions)
        self.cells = np.bincount(self._driver, sizes, none + 1)[:none]  # (K,) for training
        self._without = np.flatnonzero(self.cells == 0)
        self._several = np.full(n_conditions, -1)
        several = model.several.cpu().numpy()
        self._several[several] = np.arange(len(several))

    def expected(self, batch_size: int) -> float:
        """Perturbations that a minibatch meets on average, about."""
        packs = np.ceil(self.cells / _TOGETHER)
        return float((1 - (1 - min(1.0, batch_size / self.n_cells)) ** packs).sum())

    def shuffle(self, batches: MinibatchSampler, condition: np.ndarray) -> None:
        """Let cells of a perturbation travel together; `condition` is that of every cell.

        Not where neighbours are shuffled as one: there they are together, or far apart in a file.
        """
        if batches.block > 1:
            return
        label = np.where(self._driver < len(self.cells), self._driver, -1)
        labels = label[condition[batches.positions]]
        batches.generator = _Together(batches.generator, labels)

    def restrict(self, batch: dict[str, Tensor], training: bool = True) -> RestrictedStep:
        """Views of model and guide with the rows that a minibatch needs.

        In training, perturbations without cells take their turn, at random.
        """
        condition = batch["condition"].cpu().numpy()
        share = self.n_cells / len(condition)
        met = np.bincount(self._driver[condition], minlength=len(self.cells) + 1)
        weight = share * met[:-1] / np.maximum(self.cells, 1)
        if training and len(self._without):
            often = max(1 / share, min(1.0, _WITHOUT / len(self._without)))
            turn = torch.rand(len(self._without)).numpy() < often
            weight[self._without[turn]] = 1 / often
            met[self._without[turn]] = 1
        if not met[:-1].any():
            met[0] = 1  # without weight: tables of no rows are nobody's business
        met[-1] = 1  # what carries nothing stays
        rows, table = np.flatnonzero(met[:-1]), np.flatnonzero(met[self._driver])
        index = torch.from_numpy(np.searchsorted(table, condition))
        batch = batch | {"condition": index.to(batch["condition"].device)}
        model, weights = self._model_of(rows, table), self._weights(weight[rows])
        return RestrictedStep(model, self._guide_of(model, rows, table), batch, weights)

    def _weights(self, weight: np.ndarray) -> dict[str, Tensor]:
        weights = self.model.loading.new_tensor(weight)
        media = weights.new_ones(self.model.n_media)
        both = torch.cat([weights, media])
        return dict.fromkeys(_SITES, weights) | dict.fromkeys(_DRIVER_SITES, both)

    def _model_of(self, rows: np.ndarray, table: np.ndarray) -> nn.Module:
        model = self.model
        to_device = lambda a: torch.from_numpy(a).to(model.duration.device)  # noqa: E731
        genotype = np.zeros((len(table), len(rows) + 1), np.float32)
        genotype[np.arange(len(table)), np.searchsorted(rows, self._driver[table])] = 1.0
        return _view(
            model,
            n_perturbations=len(rows),
            dense_genotype=to_device(genotype[:, :-1]),
            several=to_device(np.flatnonzero(self._several[table] >= 0)),
            **_rows(model, _MODEL, to_device(rows)),
            **_rows(model, _CONDITIONS, to_device(table)),
        )

    def _guide_of(self, model: nn.Module, rows: np.ndarray, table: np.ndarray) -> nn.Module:
        guide, to_device = self.guide, self.model.duration.new_tensor
        media = np.arange(self.model.n_media) + self.model.n_perturbations
        several = self._several[table]
        index = (rows, np.concatenate([rows, media]), several[several >= 0])
        visited, drivers, joint = (to_device(i, dtype=torch.long) for i in index)
        names = ("several_cells", "several_batch_share")
        return _view(
            guide,
            _model=(model,),
            **_rows(guide, _GUIDE, visited),
            **_rows(guide, _DRIVERS, drivers),
            **_rows(guide, names, joint),
        )


def row_subsampler(
    model: GenerativeModel,
    guide: Guide,
    condition: np.ndarray,
    batch_size: int,
    wanted: bool | None = None,
) -> RowSubsampler | None:
    """How to restrict the steps of a training, or None where each is to draw everything.

    Parameters
    ----------
    model, guide
        Of the screen.
    condition
        (N,) conditions of the training cells.
    batch_size
        Cells per step.
    wanted
        Whether to; None: where a step meets less than half of the perturbations and there are a
        million gene-level residuals or more.

    Raises
    ------
    ScreenError
        If it is wanted, and a part of the model speaks of all perturbations at once.
    """
    if wanted is False:
        return None
    residuals = model.n_perturbations * model.n_times * model.n_genes
    if wanted is None and residuals < _MANY:
        return None
    if obstacle := _obstacle(model, guide):
        if wanted:
            raise ScreenError(
                f"by_minibatch=True cannot be: {obstacle} all perturbations at every step; leave "
                "it out of the model, or by_minibatch out of TrainingConfig"
            )
        return None
    visits = RowSubsampler(model, guide, condition)
    if wanted is None and visits.expected(batch_size) > model.n_perturbations / 2:
        return None
    return visits


def _obstacle(model: GenerativeModel, guide: Guide) -> str:
    """What keeps a step from drawing some perturbations alone, if anything."""
    found = {
        "assume= holds something of": model.imposed is not None or len(model.uncertain) > 0,
        "objective= compares": model.objective.weight > 0,
        "effect_prior= is a law of": model.config.effect_prior != "normal",
        "dynamics= has sites of": any("perturbation" in d for d in model.dynamics.dims.values()),
        "interactions=True ties together": model.n_interactions > 0,
        "combinations of perturbations tie together": len(guide.joined) > 0,
    }
    return next((what for what, there in found.items() if there), "")


class _Together:
    """Shuffles cells so that a few of one label follow each other; what `MinibatchSampler` asks.

    A row that a step draws is then paid for by more than one cell. Every cell comes once per epoch,
    and at any place of it with the same probability.

    Parameters
    ----------
    generator
        Where chance comes from.
    labels
        (N,) of the positions that are shuffled, in their order; -1: a cell goes by itself.
    """

    def __init__(self, generator: np.random.Generator, labels: np.ndarray):
        self.generator, self.labels = generator, labels

    def permutation(self, positions: np.ndarray) -> np.ndarray:
        """The positions in a new order."""
        order = self.generator.permutation(len(positions))
        order = order[np.argsort(self.labels[order], kind="stable")]
        label = self.labels[order]
        first = np.flatnonzero(np.diff(label, prepend=label[0] - 1))
        rank = np.arange(len(label)) - np.repeat(first, np.diff(first, append=len(label)))
        starts = (rank % _TOGETHER == 0) | (label < 0)
        key = self.generator.random(int(starts.sum()))[np.cumsum(starts) - 1]
        order = order[np.argsort(key, kind="stable")]
        return positions[np.roll(order, self.generator.integers(len(order)))]


def _view(module: nn.Module, **changes: object) -> nn.Module:
    """A view of a module in which some attributes (parameters, buffers) are others."""
    view = object.__new__(type(module))
    view.__dict__.update(module.__dict__ | changes)
    return view


def _rows(module: nn.Module, names: tuple[str, ...], rows: Tensor) -> dict[str, Tensor]:
    """Rows of those parameters and buffers that there are."""
    return {
        name: visited_rows(getattr(module, name), rows) for name in names if hasattr(module, name)
    }

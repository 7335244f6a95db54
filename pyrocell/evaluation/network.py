"""Do edges hold for regulators, genes and data sets that were left out? With anchors beside."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from pyrocell._core.messages import did_you_mean
from pyrocell.errors import ScreenError, ScreenWarning, UnknownLabelError
from pyrocell.evaluation.refit import again
from pyrocell.metrics.forecasts import expected_calibration_error

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["network_generalisation"]

_KINDS = ("nothing", "regulators", "genes", "data sets")
_ALL = 1_000_000  # neighbours, of any number of sources
_CERTAIN = ("model", "base rate")  # scores that are probabilities
Scores = dict[str, pd.DataFrame]


def network_generalisation(
    model: PyroCell,
    truth: pd.DataFrame,
    left_out: str = "regulators",
    *,
    knowledge: Any = None,
    others: Mapping[str, PyroCell] | None = None,
    n_folds: int = 5,
    train: Mapping[str, Any] | None = None,
    n_samples: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Score edges against known ones, for regulators, genes or data sets that were left out.

    Parameters
    ----------
    model
        Trained.
    truth
        Columns regulator and target: a row per known edge. Pairs of the screen's regulators and
        genes that are not among them count as no edge.
    left_out
        "regulators": the cells of a fifth of the perturbations are left out and a model is trained
        on the others; the probability that a regulator never perturbed has a target is then the
        measured regulators' with the weights of :meth:`pyrocell.PyroCell.neighbours`, so that it is
        their mean where knowledge is worth nothing. "genes": a target's probabilities are those of
        the other targets, weighted by the squared correlation with it over control cells. "data
        sets": `others` are asked for their networks, scored on the same truth. "nothing": the
        model's own network.
    knowledge
        A `pyrocell.Knowledge`, for regulators.
    others
        Trained models of other screens, by name, for data sets.
    n_folds
        Of regulators.
    train
        Arguments of `train` for the models of the folds; default: five epochs, no progress bar.
    n_samples
        Posterior draws of every network.
    seed
        Of the folds.

    Returns
    -------
    DataFrame with a row per method (and data set): left_out, data_set, method ("model", "base
    rate"; "co-expression" over control cells; "|effect|": z of the knockout where the regulator was
    measured, else the gene's mean over the other knockouts; "knowledge alone": how alike regulator
    and target are), n_pairs, n_edges, auprc, and ece (expected calibration error, of probabilities
    alone).

    Raises
    ------
    UnknownLabelError
        If a column is missing, or `left_out` is none of these.
    ScreenError
        If no edge of the truth lies among the pairs, or data sets are missing.
    """
    for column in ("regulator", "target"):
        if column not in truth:
            raise UnknownLabelError(
                f'truth= has no column "{column}"{did_you_mean(column, list(truth.columns))}'
            )
    if left_out not in _KINDS:
        raise UnknownLabelError(
            f'left_out="{left_out}" is none of {", ".join(_KINDS)}{did_you_mean(left_out, _KINDS)}'
        )
    if left_out == "data sets" and not others:
        raise ScreenError('left_out="data sets" needs others=, trained models of other screens')
    if left_out == "data sets":
        assert others is not None
        found = [(name, _of_itself(other, n_samples)) for name, other in others.items()]
    elif left_out == "regulators":
        asked = n_folds, dict(train or {"max_epochs": 5, "progress_bar": False}), n_samples, seed
        found = [("", _of_regulators(model, knowledge, *asked))]
    else:
        scores = _of_itself(model, n_samples)
        if left_out == "genes":
            scores["model"] = _of_other_targets(model, scores["model"])
        found = [("", scores)]
    edges = set(zip(truth["regulator"].astype(str), truth["target"].astype(str)))
    rows = []
    for name, scores in found:
        if knowledge is not None:
            scores["knowledge alone"] = _likeness(knowledge, scores["model"])
        rows += _scored(scores, edges, {"left_out": left_out, "data_set": name})
    return pd.DataFrame(rows)


def _scored(scores: Scores, edges: set[tuple[str, str]], where: dict[str, str]) -> list[dict]:
    """A row per method, on the pairs of a regulator and another gene."""
    first = scores["model"]
    names, genes = first.index.to_numpy(str), first.columns.to_numpy(str)
    other = names[:, None] != genes
    happened = np.array([[(r, g) in edges for g in genes] for r in names])[other]
    if not happened.any():
        raise ScreenError(
            "no edge of truth= joins a measured regulator and a gene of the screen; are the names "
            "spelled as in the screen?"
        )
    scores["base rate"] = pd.DataFrame(scores["model"].to_numpy()[other].mean(), names, genes)
    out = []
    for method, score in scores.items():
        value = score.reindex(index=names, columns=genes).to_numpy(float)[other]
        sure = method in _CERTAIN
        out.append(
            where
            | {
                "method": method,
                "n_pairs": len(value),
                "n_edges": int(happened.sum()),
                "auprc": float(average_precision_score(happened, value)),
                "ece": expected_calibration_error(happened, value) if sure else np.nan,
            }
        )
    return out


def _probabilities(model: PyroCell, n_samples: int) -> pd.DataFrame:
    """P(edge), regulators × genes; 0 for a gene on itself."""
    table = model.network(n_samples=n_samples)
    wide = table.pivot(index="regulator", columns="target", values="probability")
    return wide.reindex(table["regulator"].unique()).reindex(columns=model.screen.genes).fillna(0.0)


def _strength(model: PyroCell, names: list[str]) -> pd.DataFrame:
    """|z| of every measured effect, by the counts alone at the last time."""
    table = model.perturbation_effects(names, shrunken=False)
    assert isinstance(table, pd.DataFrame)
    z = table.assign(z=(table["mean"] / table["sd"]).abs())
    wide = z.pivot(index="perturbation", columns="gene", values="z")
    return wide.reindex(index=names, columns=model.screen.genes)


def _correlation(model: PyroCell) -> pd.DataFrame:
    """Size of the correlation of genes over control cells, (G, G)."""
    screen = model.screen
    control = screen.is_control[screen.cell_condition]
    counts = model.adata[np.flatnonzero(control)].to_df().to_numpy(float)
    depth = np.maximum(counts.sum(1, keepdims=True), 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.abs(np.nan_to_num(np.corrcoef(np.log1p(counts / depth * np.median(depth)).T)))
    return pd.DataFrame(value, screen.genes, screen.genes)


def _of_itself(model: PyroCell, n_samples: int) -> Scores:
    found = _probabilities(model, n_samples)
    names = list(found.index)
    together = _correlation(model).reindex(names).fillna(0.0)
    return {"model": found, "co-expression": together, "|effect|": _strength(model, names)}


def _of_other_targets(model: PyroCell, found: pd.DataFrame) -> pd.DataFrame:
    """Probabilities of each target from those of the others, by squared correlation."""
    weight = _correlation(model).to_numpy() ** 2
    np.fill_diagonal(weight, 0.0)
    weight = weight + 1e-6  # of all alike, where nothing is correlated
    np.fill_diagonal(weight, 0.0)
    value = found.to_numpy() @ (weight / weight.sum(0))
    return pd.DataFrame(value, found.index, found.columns)


def _of_regulators(
    model: PyroCell, knowledge: Any, n_folds: int, train: dict, n_samples: int, seed: int
) -> Scores:
    """Scores of regulators that a model of the other cells has never seen perturbed."""
    parts: dict[str, list[pd.DataFrame]] = {"model": [], "co-expression": [], "|effect|": []}
    for fit, names in _folds(model, n_folds, train, seed):
        known = _probabilities(fit, n_samples)
        predicted = pd.DataFrame(
            np.tile(known.to_numpy().mean(0), (len(names), 1)), names, known.columns
        )
        for name in names if knowledge is not None else ():
            predicted.loc[name] = _by_neighbours(fit, name, knowledge, known)
        parts["model"].append(predicted)
        parts["co-expression"].append(_correlation(fit).reindex(names).fillna(0.0))
        usual = _strength(fit, list(known.index)).to_numpy().mean(0)
        parts["|effect|"].append(
            pd.DataFrame(np.tile(usual, (len(names), 1)), names, known.columns)
        )
    return {method: pd.concat(part) for method, part in parts.items()}


def _by_neighbours(fit: PyroCell, name: str, knowledge: Any, known: pd.DataFrame) -> np.ndarray:
    """(G,) probabilities of a new regulator, from those it is like; the rest is the mean."""
    mean = known.to_numpy().mean(0)
    try:
        found = fit.neighbours(name, knowledge, n_neighbours=_ALL, n_samples=20)
    except UnknownLabelError:  # no source knows of it
        return mean
    found = found[found["neighbour"].isin(known.index)]
    weight = found["weight"].clip(lower=0).to_numpy(float)
    weight = weight / max(weight.sum(), 1.0)
    return weight @ known.loc[found["neighbour"]].to_numpy() + (1 - weight.sum()) * mean


def _folds(
    model: PyroCell, n_folds: int, train: dict, seed: int
) -> Iterator[tuple[PyroCell, list[str]]]:
    """Models of all cells but those of some perturbations, and which these are."""
    screen = model.screen
    names = list(screen.perturbations)
    if not 2 <= n_folds <= len(names):
        raise ScreenError(
            f"n_folds={n_folds} must be 2 to {len(names)}, the perturbations there are"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    member = screen.membership.tocsc()
    for fold in np.array_split(order, n_folds):
        out = np.asarray(member[:, fold].sum(1)).ravel() > 0  # (C,)
        rows = np.flatnonzero(~out[screen.cell_condition])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScreenWarning)
            fit = again(model, model.adata[rows].copy())
            fit.train(**train)
        yield fit, [names[k] for k in fold]


def _likeness(knowledge: Any, like: pd.DataFrame) -> pd.DataFrame:
    """How alike regulators and genes are, the mean of the sources."""
    names, genes = list(like.index), list(like.columns)
    every = list(dict.fromkeys([*genes, *names]))
    kernel = knowledge.kernel(every).kernels.mean(0)
    return pd.DataFrame(kernel, every, every).loc[names, genes]

"""What perturbations do to genes: the posterior's table, and what the counts alone say.

Both tables have a row per perturbation and gene and the same first columns: mean, sd, lower and
upper of the natural-log fold change against controls, log2fc (the mean in doublings), the counts of
the gene in both groups of cells, and whether these are too few to say anything.

On counts without size factors of their own the change is that against the genes which a condition
does not touch: when some genes gain a share of all counts the others lose it alike, and no gene is
called down for that (as with DESeq2's size factors). `predict` returns counts, with that share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import xarray as xr
from torch import Tensor

from pyrocell._core.threading import parallel_for
from pyrocell.data.backed import count_blocks
from pyrocell.data.statistics import add_by_group
from pyrocell.errors import ScreenError
from pyrocell.posterior.counts_alone import FEWEST_COUNTS, long_table
from pyrocell.posterior.draws import check_draws, check_level
from pyrocell.posterior.fitted_screen import Draws, FittedScreen, Part, stacked
from pyrocell.posterior.gene_level.states import Request
from pyrocell.posterior.output import OutputTarget
from pyrocell.posterior.populations import moments, resting_cells
from pyrocell.posterior.summaries import summaries

__all__ = [
    "columns_of",
    "counts_by_label",
    "draws_against_first",
    "draws_and_direction",
    "each_with_direction",
    "effect_draws",
    "expected_false_signs",
    "perturbation_effects",
]

SUMMARIES = ("mean", "sd", "lower", "upper", "lfsr")
COLUMNS = (
    *SUMMARIES,
    *("fdr", "log2fc", "prob_direction", "count", "count_control", "few_counts"),
)
_HELD = 2**25  # draws held at once
_GENES_AT_ONCE = 512  # of an interval, by one thread

Found = Iterator[tuple[slice, dict[str, np.ndarray]]]


def expected_false_signs(lfsr: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Expected share of wrong signs in the list that ends at each entry, the surest first.

    Parameters
    ----------
    lfsr
        Local false sign rates: probabilities that the effect is zero or of the other sign.
    usable
        Entries that may be listed; others are 1, as last of all.
    """
    out = np.ones(len(lfsr), np.float32)
    index = np.flatnonzero(usable)
    order = index[np.argsort(lfsr[index], kind="stable")]
    out[order] = np.cumsum(lfsr[order], dtype=float) / np.arange(1, len(order) + 1)
    return out


def perturbation_effects(
    fit: FittedScreen,
    perturbations: Sequence[str],
    media: str,
    time: float | None,
    n_samples: int,
    credible_level: float,
    progress: Callable[..., Iterable],
    keep: OutputTarget,
) -> pd.DataFrame | xr.Dataset:
    """Posterior of the change of each gene under each perturbation; see `PyroCell`."""
    if not perturbations:
        raise ScreenError(
            "perturbations=[] names none; leave it out for all of them"
            if fit.screen.perturbations
            else "the screen has no perturbation; media_effects() says what media do"
        )
    check_draws(n_samples)
    check_level(credible_level)
    screen = fit.screen
    kept = request_of_states(fit, perturbations, media, time)
    if kept is None:
        where = perturbations, media, time
        found = _from_draws(fit, *where, n_samples, credible_level, keep, progress)
    else:
        found = _from_states(fit, kept, n_samples, credible_level, progress)
    when = np.nan if time is None else float(time)
    genes, counted = screen.genes, counts_by_label(fit, media, time)
    names = [screen.label_of(screen.indices(name)) for name in perturbations]
    counts, control = np.stack([counted(name) for name in names]), counted(screen.control)
    if keep.path is not None:
        coords = {
            "perturbation": (("perturbation",), list(perturbations)),
            "gene": (("gene",), genes),
            "media": media,
            "time": when,
        }
        dims = dict.fromkeys(COLUMNS, ("perturbation", "gene"))
        chunk = {"perturbation": max(1, 2**19 // max(len(genes), 1))}
        said = {"credible_level": credible_level, "n_samples": n_samples}
        return keep.store(_blocks(found, counts, control), coords, dims, chunk, **said)
    columns = columns_of(found, counts, control)
    return long_table(columns, list(perturbations), genes, media, when)


def columns_of(found: Found, counts: np.ndarray, control: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table of effects, (n, G) each, from summaries of some rows after the other.

    Parameters
    ----------
    found
        Rows, and their `SUMMARIES`.
    counts, control
        (n, G) counts of the cells that differ, and (G,) of those they are compared with.
    """
    columns: dict[str, np.ndarray] = {name: np.empty(counts.shape, np.float32) for name in COLUMNS}
    for rows, values in _blocks(found, counts, control):
        for name, value in values.items():
            columns[name][rows] = value
    columns["few_counts"] = columns["few_counts"].astype(bool)
    for name in ("count", "count_control"):
        columns[name] = columns[name].astype(np.int64)
    return columns


def _blocks(found: Found, counts: np.ndarray, control: np.ndarray) -> Found:
    """The columns of some rows after the other, and last what needs all rows: `fdr`."""
    lfsr, few = np.empty(counts.shape, np.float32), np.empty(counts.shape, bool)
    for rows, values in found:
        here = counts[rows]
        few[rows] = (here < FEWEST_COUNTS) & (control < FEWEST_COUNTS)
        lfsr[rows] = values["lfsr"]
        yield (
            rows,
            {
                **{name: values[name] for name in SUMMARIES},
                "log2fc": values["mean"] / np.log(2),
                "prob_direction": 1 - values["lfsr"],
                "count": here,
                "count_control": np.broadcast_to(control, here.shape),
                "few_counts": few[rows],
            },
        )
    fdr = expected_false_signs(lfsr.ravel(), ~few.ravel())
    yield slice(0, len(counts)), {"fdr": fdr.reshape(counts.shape)}


def _interval(draws: np.ndarray, credible_level: float) -> np.ndarray:
    """Lower and upper end, (2, n, G), of draws (S, n, G); slices of the genes in threads."""
    tail = 50 * (1 - credible_level)
    out = np.empty((2, *draws.shape[1:]), np.float32)
    edges = range(0, draws.shape[2], _GENES_AT_ONCE)

    def work(i: int) -> None:
        genes = slice(edges[i], edges[i] + _GENES_AT_ONCE)
        ends = [tail, 100 - tail]
        out[:, :, genes] = np.percentile(draws[..., genes], ends, axis=0, method="weibull")

    parallel_for(work, len(edges))
    return out


def _from_states(
    fit: FittedScreen,
    asked: Any,
    n_samples: int,
    credible_level: float,
    progress: Callable[..., Iterable],
) -> Found:
    """Summaries that are exact given each kept state; draws for the interval alone."""
    assert fit.gene_level is not None
    for part in progress(_rows_at_once(fit, len(asked.blocks), n_samples)):
        found = fit.gene_level.columns(asked.of_rows(part), n_samples)
        lower, upper = _interval(found.draws, credible_level)
        sure = np.maximum(found.above, found.below)
        yield (
            part,
            {
                "mean": found.mean,
                "sd": found.sd,
                "lower": lower,
                "upper": upper,
                "lfsr": np.clip(1 - sure, 0, 1),
            },
        )


def _rows_at_once(fit: FittedScreen, n: int, n_samples: int) -> list[slice]:
    """Parts of n conditions whose draws are held together."""
    step = max(1, _HELD // (n_samples * len(fit.screen.genes)))
    return [slice(a, min(a + step, n)) for a in range(0, n, step)]


def _from_draws(
    fit: FittedScreen,
    perturbations: Sequence[str],
    media: str,
    time: float | None,
    n_samples: int,
    credible_level: float,
    keep: OutputTarget,
    progress: Callable[..., Iterable],
) -> Found:
    """Summaries of joint draws, for conditions and models that the states do not speak of."""
    parts = fit.parts(len(perturbations))
    found = summaries(
        lambda some: effects(fit, perturbations, media, time, n_samples, some),
        parts,
        len(fit.screen.genes),
        n_samples,
        credible_level,
        keep.memory_budget,
        progress,
    )
    for rows, values in found:
        yield rows, {**values, "lfsr": 1 - values["prob_direction"]}


# ---------------------------------------------------------------------- draws
def effects(
    fit: FittedScreen,
    perturbations: Sequence[str],
    media: str,
    time: float | None,
    n_samples: int,
    parts: Sequence[slice],
) -> Draws:
    """Log-fold changes of perturbations against control, same medium and time, (rows, G)."""
    check_draws(n_samples)
    asked = []
    for part in parts:
        labels = [fit.screen.control, *perturbations[part]]
        frame = pd.DataFrame({"perturbation": labels, "media": media, "time": time})
        asked.append(fit.part(frame, part.start))
    moves = fit.model.moves_states
    cells = resting_cells(fit.data, fit.model, fit.posterior.seed) if moves else None
    some = fit.asked_of(asked)
    for s, values in enumerate(fit.posterior.draws(n_samples, perturbations=some)):
        yield (_effect(fit, values, part, s, cells) for part in asked)


def draws_against_first(fit: FittedScreen, frame: pd.DataFrame, n_samples: int) -> np.ndarray:
    """Joint draws of the log-fold changes of conditions against the first, (S, n − 1, G)."""
    part = fit.part(frame, 0)
    moves = fit.model.moves_states
    cells = resting_cells(fit.data, fit.model, fit.posterior.seed) if moves else None
    draws = fit.posterior.draws(n_samples, perturbations=fit.asked_of([part]))
    return np.stack([_effect(fit, values, part, s, cells) for s, values in enumerate(draws)])


@torch.no_grad()
def _effect(
    fit: FittedScreen,
    values: dict[str, Tensor],
    part: Part,
    seed: int,
    cells: dict[str, Tensor] | None,
) -> np.ndarray:
    conditions = part.conditions
    shift = fit.shift(values, conditions, part.unseen, seed, first=part.first)
    if cells is None:
        return _normalise(fit, values, shift).cpu().numpy()
    # an effect is then also where cells go, of which only means have a size
    z = fit.states(values, cells, conditions, seed)
    level = moments(fit.model, values, z, shift, 1.0)[0].log()
    return (level[1:] - level[:1]).cpu().numpy()


def request_of_states(
    fit: FittedScreen, perturbations: Sequence[str], media: str, time: float | None
) -> Request | None:
    """The conditions as the kept states know them; None where they do not speak of them."""
    screen = fit.screen
    sets = [tuple(screen.indices(name)) for name in perturbations]
    medium = screen.media_index(media)
    node = 0
    if screen.times:
        asked = screen.times[-1] if time is None else time
        near = np.flatnonzero(np.isclose(screen.times, asked))
        node = int(near[0]) if len(near) else -1
    if fit.gene_level is None or node < 0 or not all(sets):
        return None
    if time is not None and not screen.times:
        return None  # the draws will say what is wrong with it
    return fit.gene_level.request(sets, medium, node)


def counts_by_label(
    fit: FittedScreen, media: str, time: float | None
) -> Callable[[str], np.ndarray]:
    """Counts (G,) of the cells of a label in a medium at a time; zero where none were measured.

    Where sets of perturbations are many: of the cells that carry its perturbations, whatever else
    they carry, and of all cells for the control (`Screen.carriers`).
    """
    if fit.screen.many_sets:
        return _counts_of_carriers(fit, media, time)
    screen, table = fit.screen, _total_counts(fit)
    here = screen.at(media, time)
    rows = screen.conditions[here].groupby("perturbation").indices
    places, none = np.flatnonzero(here), np.zeros(0, np.int64)
    return lambda label: table[places[rows.get(label, none)]].sum(0)


def _counts_of_carriers(
    fit: FittedScreen, media: str, time: float | None
) -> Callable[[str], np.ndarray]:
    """See `counts_by_label`; those of single perturbations from one pass over all counts."""
    screen, here = fit.screen, fit.screen.at(media, time)
    place = {name: k for k, name in enumerate(screen.perturbations)}
    if fit.data.conditions is not None:
        return lambda label: np.zeros(len(screen.genes))
    member = screen.membership.multiply(here[:, None])
    rows = sp.csr_array(sp.hstack([member, here.astype(float)[:, None]], format="csr"))
    table = np.zeros((1 + len(screen.perturbations), len(screen.genes)))
    for part, block in count_blocks(fit.data.counts):
        table += (rows[fit.data.condition[part]].T @ sp.csr_array(block)).toarray()

    def counted(label: str) -> np.ndarray:
        if label in place:
            return table[place[label]]
        if label == screen.control:
            return table[-1]
        mine = (here & screen.carriers(label))[fit.data.condition]
        parts = count_blocks(fit.data.counts)
        return sum(
            (np.asarray(sp.csr_array(block)[mine[part]].sum(0)).ravel() for part, block in parts),
            np.zeros(len(screen.genes)),
        )

    return counted


def _total_counts(fit: FittedScreen) -> np.ndarray:
    """(C, G) counts of the conditions that the model was fitted to, as they were measured."""
    if fit.gene_level is not None:
        return fit.gene_level.array("counts_raw")
    out = np.zeros((len(fit.screen.conditions), len(fit.screen.genes)))
    if fit.data.conditions is None:
        for rows, block in count_blocks(fit.data.counts):
            add_by_group(out, fit.data.condition[rows], sp.csr_matrix(block))
    return out


def effect_draws(
    fit: FittedScreen, perturbations: Sequence[str], media: str, time: float | None, n_samples: int
) -> np.ndarray:
    """Joint draws of log-fold changes against control, (S, perturbations, G)."""
    return draws_and_direction(fit, perturbations, media, time, n_samples)[0]


def draws_and_direction(
    fit: FittedScreen, perturbations: Sequence[str], media: str, time: float | None, n_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """`effect_draws`, and the `prob_direction` of `perturbation_effects`, (perturbations, G).

    The second is not the share of draws on one side of zero: where the states tell effects from
    what a perturbation does to most genes, a change that may be the latter has no direction.
    """
    if (asked := request_of_states(fit, perturbations, media, time)) is not None:
        assert fit.gene_level is not None
        found = fit.gene_level.columns(asked, n_samples)
        return found.draws, np.maximum(found.above, found.below)
    parts = fit.parts(len(perturbations))
    draws = stacked(effects(fit, perturbations, media, time, n_samples, parts), n_samples)
    return draws, np.maximum((draws > 0).mean(0), (draws < 0).mean(0))


def each_with_direction(
    fit: FittedScreen, perturbations: Sequence[str], media: str, time: float | None, n_samples: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`draws_and_direction` of one perturbation after the other, (S, G) and (G,).

    They are asked for in the groups in which `perturbation_effects` asks, for the same draws.
    """
    for part in _rows_at_once(fit, len(perturbations), n_samples):
        draws, sure = draws_and_direction(fit, perturbations[part], media, time, n_samples)
        yield from ((draws[:, i], sure[i]) for i in range(draws.shape[1]))


def _normalise(fit: FittedScreen, values: dict[str, Tensor], shift: Tensor) -> Tensor:
    """Shift against the first row, or where it has a gauge, against the average expression.

    Kept states have one: genes that a condition does not touch have no shift.
    """
    view = fit.model.measurement
    if not view.compositions or fit.gene_level is not None:
        return shift[1:] - shift[:1]
    level = view.relative(values["V.baseline"] + shift)
    return level[1:] - level[:1]

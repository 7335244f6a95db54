"""How far two populations of cells are apart (App. B.3, eq. 23), as functions of tensors.

Cells cannot be followed, and one does not choose how many are caught, so a prediction from I
control cells is compared with J perturbed cells as one distribution with another. Where there is an
unbiased estimator it is used: pairs of a cell with itself are left out (U-statistics), the mean
over random splits of one sample is zero, single values can be negative, and gradients of
minibatches are unbiased. None is a root, which would not be.

============ ================================================== =============== ================
method       what it sees                                       unit            same population
============ ================================================== =============== ================
``energy``   every difference                                   of the features 0 on average
``mmd``      every difference, most at the bandwidth's scale    none            0 on average
``sinkhorn`` every difference, as cost of transport             squared         > 0, falls with n
``moments``  differences of mean and spread, by feature         squared, fourth 0 on average
``matched``  as ``energy``, in time linear in the cells         of the features 0 on average
============ ================================================== =============== ================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrocell._core.messages import did_you_mean

__all__ = [
    "METHODS",
    "default_entropy",
    "distance",
    "energy_distance",
    "matched_distance",
    "median_bandwidth",
    "mmd",
    "moment_distance",
    "sinkhorn_divergence",
]

_ENTROPY = 0.1  # of the Sinkhorn divergence by default, as a share of the mean cost
# Of Sinkhorn, on the marginals: values are then within some 1e-5 of those of full convergence.
_ITERATIONS, _TOLERANCE = 1000, 1e-5


def energy_distance(
    x: Tensor, y: Tensor, weights_x: Tensor | None = None, weights_y: Tensor | None = None
) -> Tensor:
    """2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖, unbiased (Székely & Rizzo 2013).

    Norms are Euclidean, not squared. With squared norms, as in Peidli et al. (2024), this is twice
    the squared difference of the means and sees nothing else: see `moment_distance`.

    Parameters
    ----------
    x, y
        (n, d) and (m, d) cells; two or more each.
    weights_x, weights_y
        (n,) and (m,) non-negative weights of the cells, equal when None; they need not sum to one.

    Returns
    -------
    (), in the unit of the features. Zero on average where both are samples of one population.

    Raises
    ------
    ValueError
        If shapes do not fit, a population has fewer than two cells, or weights are no weights.
    """
    w, v = _populations(x, y, weights_x, weights_y)
    return 2 * (w @ _norms(x, y) @ v) - _within(_norms(x, x), w) - _within(_norms(y, y), v)


def mmd(
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    *,
    bandwidth: float | Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased (Gretton et al. 2012).

    E k(x, x') + E k(y, y') − 2 E k(x, y) with k(a, b) = exp(−‖a − b‖² / 2h²).

    Parameters
    ----------
    x, y, weights_x, weights_y
        As in `energy_distance`.
    bandwidth
        h, in the unit of the features; several are averaged over. When None, the median heuristic:
        `median_bandwidth`. Give a fixed one to compare distances between conditions, or during
        training.

    Returns
    -------
    () without unit, at most 2.

    Raises
    ------
    ValueError
        As `energy_distance`, or if a bandwidth is not positive.
    """
    w, v = _populations(x, y, weights_x, weights_y)
    if bandwidth is None:
        bandwidth = median_bandwidth(x, y)
    h = torch.as_tensor(bandwidth, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
    if not (h > 0).all():
        raise ValueError(f"bandwidth={bandwidth} must be positive")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(_norms(a, b) ** 2) / (2 * h**2)).mean(0)

    return _within(kernel(x, x), w) + _within(kernel(y, y), v) - 2 * (w @ kernel(x, y) @ v)


def median_bandwidth(x: Tensor, y: Tensor) -> Tensor:
    """Median distance between two different cells of both populations together, a constant.

    Where more than half of the pairs coincide, the median of those that do not; 1 if all coincide.
    """
    pooled = torch.cat([x, y]).detach()
    rows, columns = torch.triu_indices(len(pooled), len(pooled), 1, device=pooled.device)
    between = _norms(pooled, pooled)[rows, columns]
    median = between.median()
    if median > 0:
        return median
    apart = between[between > 0]
    return apart.median() if len(apart) else torch.ones_like(median)


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    *,
    entropy: float | None = None,
) -> Tensor:
    """Entropic optimal transport from x to y less half that of each to itself (Feydy et al. 2019).

    The cost is squared Euclidean. Subtracting the self-transport removes the bias of the entropy,
    not that of sampling: two samples of one population are apart, the farther the fewer cells and
    the more features there are, and no unbiased estimator is known. Compare with two halves of one
    sample, as `pyrocell.metrics.distribution_distance` does.

    Parameters
    ----------
    x, y, weights_x, weights_y
        As in `energy_distance`; one cell each is enough.
    entropy
        Strength of the entropic term, in squared units of the features. Small: nearer to the
        transport itself, slower. Large: nearer to the squared difference of the means. When None,
        `default_entropy`.

    Returns
    -------
    () in squared units of the features, not negative but for rounding.

    Raises
    ------
    ValueError
        As `energy_distance`, or if `entropy` is not positive.
    ImportError
        Without the extra ``transport``.
    """
    w, v = _populations(x, y, weights_x, weights_y, least=1)
    x, y, w, v = x[w > 0], y[v > 0], w[w > 0], v[v > 0]
    if entropy is None:
        entropy = default_entropy(x, y, w, v)
    if not entropy > 0:
        raise ValueError(f"entropy={entropy} must be positive")
    solve = _solver()

    def transport(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
        return solve(
            _norms(a, b) ** 2,
            of_a,
            of_b,
            reg=entropy,
            grad="envelope",  # at the optimum only the cost needs a gradient, not the iterations
            max_iter=_ITERATIONS,
            tol=_TOLERANCE,
        ).value

    return transport(x, y, w, v) - (transport(x, x, w, w) + transport(y, y, v, v)) / 2


def default_entropy(
    x: Tensor, y: Tensor, weights_x: Tensor | None = None, weights_y: Tensor | None = None
) -> float:
    """A tenth of the mean squared distance between two populations; 1 where all points coincide."""
    w, v = _populations(x.detach(), y.detach(), weights_x, weights_y, least=1)
    return _ENTROPY * float(w.detach() @ _norms(x, y).detach() ** 2 @ v.detach()) or 1.0


def moment_distance(
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    *,
    order: int = 2,
) -> Tensor:
    """Squared difference of the moments of each feature, up to an order, unbiased.

    Moments are about the mean of both populations together, which is taken as a constant. So the
    second is the variance plus the square of how far the population's mean lies from that.

    Parameters
    ----------
    x, y, weights_x, weights_y
        As in `energy_distance`.
    order
        1: means. 2: means and spread.

    Returns
    -------
    (), the mean over features of Σₖ (E (x − c)ᵏ − E (y − c)ᵏ)², k up to `order`. Units differ
    between orders: divide features by their standard deviation to give all a similar weight.

    Raises
    ------
    ValueError
        As `energy_distance`, or if `order` is below 1.
    """
    w, v = _populations(x, y, weights_x, weights_y)
    if order < 1:
        raise ValueError(f"order={order} must be at least 1")
    centre = torch.cat([x, y]).detach().mean(0)
    powers = range(1, order + 1)
    p, q = (torch.cat([(a - centre) ** k for k in powers], 1) for a in (x, y))  # (n, order · d)
    between = (w @ p) @ (v @ q)
    within = _squared_mean(p, w) + _squared_mean(q, v)
    return (within - 2 * between) / x.shape[1]


def matched_distance(
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    *,
    n_matchings: int = 10,
    corrected: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean distance of cells that were matched at random, over several matchings.

    With `corrected`, the mean distance of cells of one population matched among themselves is taken
    off: an unbiased estimate of `energy_distance` from ``n_matchings · n`` pairs instead of n².
    Without, this is the heuristic of Roohani et al. (2022). That is no distance: it is not zero for
    equal populations, and least for a prediction without any spread.

    Parameters
    ----------
    x, y, weights_x, weights_y
        As in `energy_distance`.
    n_matchings
        Random matchings; each uses every cell of the smaller population once.
    corrected
        Whether to take off what matched cells of one population differ by.
    generator
        Of the matchings; torch's own when None. The value depends on it.

    Returns
    -------
    () in the unit of the features.

    Raises
    ------
    ValueError
        As `energy_distance`, or if `n_matchings` is below 1.
    """
    w, v = _populations(x, y, weights_x, weights_y)
    if n_matchings < 1:
        raise ValueError(f"n_matchings={n_matchings} must be at least 1")
    total = x.new_zeros(())
    for _ in range(n_matchings):
        i, j = _shuffled(x, generator), _shuffled(y, generator)
        k = min(len(i), len(j))
        # In expectation the weights of k matched pairs sum to k / nm, whatever the matching.
        between = _matched(x[i[:k]], y[j[:k]], w[i[:k]] * v[j[:k]]) * (len(x) * len(y) / k)
        total = total + between
        if corrected:
            total = total - (_self_matched(x[i], w[i]) + _self_matched(y[j], v[j])) / 2
    return (2 if corrected else 1) * total / n_matchings


METHODS: dict[str, Callable[..., Tensor]] = {
    "energy": energy_distance,
    "mmd": mmd,
    "sinkhorn": sinkhorn_divergence,
    "moments": moment_distance,
    "matched": matched_distance,
}


def distance(method: str) -> Callable[..., Tensor]:
    """The function of a method, or raise ValueError with the names that there are."""
    if method not in METHODS:
        raise ValueError(f'method="{method}" is not known{did_you_mean(method, METHODS)}')
    return METHODS[method]


def _populations(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, least: int = 2
) -> tuple[Tensor, Tensor]:
    """Weights of both that sum to one, or raise."""
    for name, cells in (("x", x), ("y", y)):
        if cells.dim() != 2 or not cells.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point (cells, features) tensor, not "
                f"{tuple(cells.shape)} {cells.dtype}"
            )
        if len(cells) < least:
            raise ValueError(f"{name} has {len(cells)} cells; at least {least} are needed")
    if x.shape[1] != y.shape[1] or not x.shape[1]:
        raise ValueError(f"x has {x.shape[1]} features and y {y.shape[1]}; they must be the same")
    return _weights("weights_x", x, weights_x, least), _weights("weights_y", y, weights_y, least)


def _weights(name: str, cells: Tensor, weights: Tensor | None, least: int) -> Tensor:
    if weights is None:
        return cells.new_full((len(cells),), 1 / len(cells))
    weights = torch.as_tensor(weights, dtype=cells.dtype, device=cells.device)
    if weights.shape != (len(cells),):
        raise ValueError(f"{name} has shape {tuple(weights.shape)}, not ({len(cells)},)")
    if not (weights >= 0).all() or not weights.isfinite().all():
        raise ValueError(f"{name} must be finite and not negative")
    if int((weights > 0).sum()) < least:
        raise ValueError(f"{name} must be positive for at least {least} cells")
    return weights / weights.sum()


def _norms(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) Euclidean distances, with gradient 0 where points coincide."""
    # By matrix product it is faster, but float32 loses the small distances to cancellation.
    exact = a.dtype != torch.float64
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist_if_necessary"
    return torch.cdist(a, b, compute_mode=mode)


def _within(values: Tensor, w: Tensor) -> Tensor:
    """Weighted mean of a symmetric (n, n) matrix over pairs of different cells."""
    return (w @ values @ w - w**2 @ values.diagonal()) / (1 - (w**2).sum())


def _squared_mean(p: Tensor, w: Tensor) -> Tensor:
    """Unbiased square of the mean of features (n, f), summed over them."""
    mean = w @ p
    return (mean @ mean - w**2 @ (p**2).sum(1)) / (1 - (w**2).sum())


def _shuffled(cells: Tensor, generator: torch.Generator | None) -> Tensor:
    device = cells.device if generator is None else generator.device
    return torch.randperm(len(cells), generator=generator, device=device).to(cells.device)


def _matched(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the distances of row to row, with gradient 0 where rows coincide."""
    squared = ((a - b) ** 2).sum(1)
    apart = squared > 0
    norm = torch.where(apart, squared, 1.0).sqrt()
    return (weights * torch.where(apart, norm, 0.0)).sum()


def _self_matched(cells: Tensor, w: Tensor) -> Tensor:
    """Mean distance of each cell to the next of a random order, never to itself."""
    following = torch.arange(1, len(cells) + 1, device=cells.device) % len(cells)
    pairs = _matched(cells, cells[following], w * w[following])
    return pairs * (len(cells) - 1) / (1 - (w**2).sum())


def _solver() -> Callable[..., Any]:
    try:
        import ot  # seconds to import, and only this method needs it
    except ImportError as error:
        raise ImportError(
            'method "sinkhorn" needs the package POT: pip install "pyrocell[transport]"'
        ) from error
    return ot.solve

r"""How far a course is shifted in time against another, beside whatever else differs.

Levels of a gene in controls follow a course c(t), a Gaussian process; a perturbation's follow

    m(t) = c(t − δ) + o(t),

with one shift δ for all genes and something else, o, in every gene: a process of its own whose
width is nothing or one of six sizes, the shares of genes with each learned at every δ. So the rest
may be in a few genes or in all, and the more of it there is the less certain is δ. The levels are
seen with errors: of counting, of batch noise, which conditions in one batch share, and of cells'
state, which genes share: a sample of cells that happens to be far along looks advanced. Courses and
rest are summed out exactly for each gene; the states and which gene has which width by a
variational bound (states and widths independent), which is taken for the likelihood of δ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

__all__ = ["Course", "Levels", "ShiftPosterior", "fit_course", "shift_posterior"]

FURTHEST = 0.6  # of the range of times: largest shift that is looked for
_SD = 0.25  # of the range: standard deviation of a shift
_COARSE = 25  # odd: zero is one of them
_WITHIN = 15  # shifts of the grid that shall be within `_UNLIKELY` of the likeliest
_UNLIKELY = 8.0  # nats
_FINER = 5  # rounds at most
_WIDTHS = (0.0, 0.06, 0.15, 0.4, 1.0)  # of the rest, natural-log fold change
_WALKS = (0.03, 1.0)  # variance of courses beyond the controls' times, over that within
_AMPLITUDES = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6])  # of the controls' course
_LENGTHS = (0.25, 0.5, 1.0, 2.0)  # over which it changes, in units of the range of times
_STEP = 0.25  # of the range of times, at which the walk beyond it is as wide as the process in it
_LEVEL = 9.0  # prior variance of a gene's level about the mean seen
_ROUNDS = 25
_ENOUGH = 0.01  # nats by which the bound may still rise
_PRIOR_COUNT = 0.5  # of each width, as of a Dirichlet prior
_JITTER = 1e-6


@dataclass(frozen=True)
class Levels:
    """Levels of a control at its times and of a perturbation at its own, N in all.

    Attributes
    ----------
    times
        (N,) of the control first.
    n_control
        How many of them are the control's.
    value
        (N, G) log expression.
    noise
        (G, N, N) covariance of errors, without what genes share.
    factor
        (N, d, G) errors that genes share: those of an observation are f · factor, f ~ N(0, I).
    """

    times: np.ndarray
    n_control: int
    value: np.ndarray
    noise: np.ndarray
    factor: np.ndarray

    @property
    def span(self) -> float:
        """Range of the control's times."""
        return float(np.ptp(self.times[: self.n_control]))

    def of(self, genes: np.ndarray) -> Levels:
        """Some of the genes."""
        return replace(
            self,
            value=self.value[:, genes],
            noise=self.noise[genes],
            factor=self.factor[:, :, genes],
        )


@dataclass(frozen=True)
class Course:
    """Prior of the controls' course.

    Attributes
    ----------
    length
        Over which it changes, in units of time.
    first, last
        Times between which it was seen.
    amplitude
        (G,) its standard deviation in each gene.
    """

    length: float
    first: float
    last: float
    amplitude: np.ndarray


@dataclass(frozen=True)
class ShiftPosterior:
    """What is known of a shift.

    Attributes
    ----------
    shifts
        (D,) grid, finer where the posterior is.
    mass
        (D,) posterior of a shift that is not nothing.
    none
        Posterior probability that there is no shift.
    draws
        (S,) shifts drawn from the posterior, zeros among them.
    moved, other
        (S, N_k, G) what moving along the controls' course does in each draw, and what is left.
    """

    shifts: np.ndarray
    mass: np.ndarray
    none: float
    draws: np.ndarray
    moved: np.ndarray
    other: np.ndarray

    def quantile(self, q: float) -> float:
        """Quantile of a shift that is not nothing."""
        below = np.cumsum(self.mass) - self.mass / 2
        return float(np.interp(q, below, self.shifts))

    def above_zero(self) -> float:
        """Probability that a shift that is not nothing is a delay."""
        return float(self.mass[self.shifts > 0].sum() + self.mass[self.shifts == 0].sum() / 2)


def _kernels(a: np.ndarray, b: np.ndarray, course: Course) -> np.ndarray:
    """Correlation of a course at times a and b by how far it walks, (2, len(a), len(b)).

    Within the controls' range Matérn, twice differentiable at most. Beyond it a random walk from the
    last level that was seen: a smooth process would go on with its slope, and courses that level off
    before the first or after the last time would look less shifted than they are. How far it walks
    is learned: many genes have levelled off, others have not.
    """
    inside = [np.clip(times, course.first, course.last) for times in (a, b)]
    found = _matern(inside[0][:, None] - inside[1], course.length)
    step = _STEP * (course.last - course.first)
    rate = 2 * (1 - _matern(np.array(step), course.length)) / step
    walk = np.zeros_like(found)
    for early in (True, False):
        beyond = [
            np.maximum(course.first - times if early else times - course.last, 0)
            for times in (a, b)
        ]
        walk = walk + rate * np.minimum(beyond[0][:, None], beyond[1])
    return found + np.array(_WALKS)[:, None, None] * walk


def _matern(distance: np.ndarray, length: float) -> np.ndarray:
    r = np.sqrt(5.0) * np.abs(distance) / length
    return (1 + r + r**2 / 3) * np.exp(-r)


def fit_course(levels: Levels) -> Course:
    """Length and amplitudes of the controls' course, by their likelihood."""
    n, t = levels.n_control, levels.times[: levels.n_control]
    value = levels.value[:n] - levels.value[:n].mean(0)
    noise = levels.noise[:, :n, :n].copy()
    i = np.arange(n)
    noise[:, i, i] += (levels.factor[:n] ** 2).sum(1).T
    best, found = -np.inf, None
    for length in levels.span * np.array(_LENGTHS):
        course = _matern(t[:, None] - t, length)
        log = np.stack([_normal(value.T, noise + _LEVEL + a**2 * course) for a in _AMPLITUDES])
        total = float(logsumexp(log, axis=0).sum())
        if total > best:
            weight = np.exp(log - logsumexp(log, axis=0))
            amplitude = np.sqrt((weight * _AMPLITUDES[:, None] ** 2).sum(0))
            ends = float(t.min()), float(t.max())
            best, found = total, Course(float(length), *ends, amplitude)
    assert found is not None
    return found


def _normal(value: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log density of values (G, N) with covariances (G, N, N), without its constant."""
    solved = np.linalg.solve(covariance, value[..., None])[..., 0]
    return -0.5 * ((value * solved).sum(-1) + np.linalg.slogdet(covariance)[1])


def shift_posterior(
    levels: Levels,
    course: Course,
    none: float,
    n_samples: int,
    rng: np.random.Generator,
) -> ShiftPosterior:
    """Posterior of the shift between control and perturbation.

    Parameters
    ----------
    levels, course
        What was seen, and the prior of the controls' course.
    none
        Prior probability of no shift. One that is not nothing is normal about zero with a standard
        deviation of a quarter of the controls' range of times, up to `FURTHEST` of it.
    n_samples
        Joint draws of shift, what it does, and the rest.
    rng
        For these.
    """
    value = (levels.value - levels.value[: levels.n_control].mean(0)).T  # (G, N)
    at: dict[float, _State] = {}

    def look(shifts: np.ndarray) -> None:
        for shift in sorted(shifts, key=abs):  # from zero, each from its neighbour
            if shift not in at:
                near = min(at, key=lambda other: abs(other - shift), default=None)
                start = None if near is None else at[near]
                at[shift] = _bound(levels, value, course, float(shift), start)

    look(np.linspace(-FURTHEST, FURTHEST, _COARSE) * levels.span)
    for _ in range(_FINER):
        shifts = np.array(sorted(at))
        log = np.array([at[shift].bound for shift in shifts])
        likely = np.flatnonzero(log > log.max() - _UNLIKELY)
        first, last = max(likely[0] - 1, 0), min(likely[-1] + 1, len(shifts) - 1)
        if len(likely) >= _WITHIN:
            break
        look(np.linspace(shifts[first], shifts[last], _WITHIN + 2)[1:-1])
    shifts = np.array(sorted(at))
    bound = np.array([at[shift].bound for shift in shifts])
    cell = np.gradient(shifts)
    density = norm.pdf(shifts, 0, _SD * levels.span) / (2 * norm.cdf(FURTHEST / _SD) - 1)
    log = bound + np.log(density * cell)
    log_some, log_none = logsumexp(log) + np.log1p(-none), at[0.0].bound + np.log(none)
    mass = np.exp(log - logsumexp(log))
    p_none = float(np.exp(log_none - np.logaddexp(log_some, log_none)))
    zero = int(np.flatnonzero(shifts == 0)[0])
    mixed = mass * (1 - p_none) + p_none * (np.arange(len(shifts)) == zero)
    drawn = rng.choice(len(shifts), n_samples, p=mixed / mixed.sum())
    n = len(levels.times) - levels.n_control
    moved = np.empty((n_samples, n, value.shape[0]))
    other = np.empty_like(moved)
    for i in np.unique(drawn):
        rows = np.flatnonzero(drawn == i)
        shift = float(shifts[i])
        moved[rows], other[rows] = _draw(levels, value, course, shift, at[shift], len(rows), rng)
    return ShiftPosterior(shifts, mass, p_none, shifts[drawn], moved, other)


@dataclass(frozen=True)
class _State:
    """The bound at a shift, and the approximate posterior there.

    `share` (J,) and `own` (G, J) are of the components, overall and gene by gene: the width of the
    rest, and how far the course walks beyond the controls' times. `mean` (N, d) and `covariance`
    (N d, N d) are of the states.
    """

    bound: float
    share: np.ndarray
    own: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


_COMPONENTS = np.array([(w, i) for w in _WIDTHS for i in range(len(_WALKS))])  # (J, 2)
_WIDTH, _WALK = _COMPONENTS[:, 0], _COMPONENTS[:, 1].astype(int)


def _prior(levels: Levels, course: Course, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of means without a rest (G, 2, N, N), by how far courses walk, and of the rest."""
    n = levels.n_control
    at = np.concatenate([levels.times[:n], levels.times[n:] - shift])
    mean = _LEVEL + course.amplitude[:, None, None, None] ** 2 * _kernels(at, at, course)
    rest = np.zeros((len(at), len(at)))
    rest[n:, n:] = _rest(levels.times[n:], levels.span)
    return mean, rest


def _rest(times: np.ndarray, span: float) -> np.ndarray:
    return np.exp(-np.abs(times[:, None] - times) / span)


def _bound(
    levels: Levels, value: np.ndarray, course: Course, shift: float, start: _State | None
) -> _State:
    """Variational bound on the log likelihood of a shift."""
    n_genes, n = value.shape
    d = levels.factor.shape[1]
    mean, rest = _prior(levels, course, shift)
    plain = mean + levels.noise[:, None]
    total = plain[:, _WALK] + _WIDTH[:, None, None] ** 2 * rest  # (G, J, N, N)
    precision = np.linalg.inv(total)
    log_det = np.linalg.slogdet(total)[1]
    share = np.full(len(_WIDTH), 1 / len(_WIDTH)) if start is None else start.share
    state, state_cov = (
        (np.zeros((n, d)), np.zeros((n * d, n * d)))
        if start is None
        else (start.mean, start.covariance)
    )
    before = -np.inf
    bound, own = before, np.zeros((n_genes, len(_WIDTH)))
    for _ in range(_ROUNDS):
        left = value - np.einsum("ndg,nd->gn", levels.factor, state)
        spread = state_cov.reshape(n, d, n, d)
        uncertain = np.einsum("nag,namb,mbg->gnm", levels.factor, spread, levels.factor)
        square = left[:, :, None] * left[:, None, :] + uncertain
        log = -0.5 * (log_det + np.einsum("gjnm,gnm->gj", precision, square))
        log += np.log(share)
        most = logsumexp(log, axis=1)
        own = np.exp(log - most[:, None])
        divergence = 0.5 * (np.trace(state_cov) + (state**2).sum() - n * d)
        if state_cov.any():
            divergence -= 0.5 * np.linalg.slogdet(state_cov)[1]
        prior = (_PRIOR_COUNT * np.log(share)).sum()
        bound = float(most.sum() - divergence + prior) if state_cov.any() else -np.inf
        if bound - before < _ENOUGH and np.isfinite(bound):
            break
        before = bound
        share = own.sum(0) + _PRIOR_COUNT
        share /= share.sum()
        used = np.einsum("gj,gjnm->gnm", own, precision)
        inner = np.einsum("nag,gnm,mbg->namb", levels.factor, used, levels.factor)
        state_cov = np.linalg.inv(inner.reshape(n * d, n * d) + np.eye(n * d))
        pull = np.einsum("nag,gnm,gm->na", levels.factor, used, value)
        state = (state_cov @ pull.ravel()).reshape(n, d)
    return _State(bound, share, own, state, state_cov)


def _draw(
    levels: Levels,
    value: np.ndarray,
    course: Course,
    shift: float,
    state: _State,
    n_samples: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of what the shift does and of the rest, (S, N_k, G) each, given the shift."""
    n, n_genes = levels.n_control, value.shape[0]
    later = levels.times[n:]
    k = len(later)
    at = np.concatenate([levels.times[:n], later - shift])
    points = np.concatenate([later, later - shift])
    variance = course.amplitude[:, None, None, None] ** 2
    moved = np.concatenate([-np.eye(k), np.eye(k)], 1)  # c(t − δ) − c(t): the level cancels
    inside = variance * (moved @ _kernels(points, points, course) @ moved.T)  # (G, 2, k, k)
    across = variance * (moved @ _kernels(points, at, course))  # (G, 2, k, N)
    mean, rest = _prior(levels, course, shift)
    root = np.linalg.cholesky(state.covariance + _JITTER * np.eye(len(state.covariance)))
    genes = np.arange(n_genes)
    out = np.empty((2, n_samples, k, n_genes))
    for s in range(n_samples):
        part = (rng.random(n_genes)[:, None] > state.own.cumsum(1)).sum(1)
        part = part.clip(max=len(_WIDTH) - 1)
        walk = _WALK[part]
        f = state.mean + (root @ rng.standard_normal(len(root))).reshape(state.mean.shape)
        left = value - np.einsum("ndg,nd->gn", levels.factor, f)
        ours = _WIDTH[part, None, None] ** 2 * rest
        cross = np.concatenate([across[genes, walk], ours[:, n:]], 1)  # (G, 2 k, N)
        prior = np.zeros((n_genes, 2 * k, 2 * k))
        prior[:, :k, :k], prior[:, k:, k:] = inside[genes, walk], ours[:, n:, n:]
        gain = np.linalg.solve(mean[genes, walk] + levels.noise + ours, cross.transpose(0, 2, 1))
        covariance = prior - cross @ gain + _JITTER * np.eye(2 * k)
        found = np.einsum("gnk,gn->gk", gain, left)
        noise = rng.standard_normal((n_genes, 2 * k, 1))
        found += (np.linalg.cholesky(covariance) @ noise)[..., 0]
        out[:, s] = found.reshape(n_genes, 2, k).transpose(1, 2, 0)
    return out[0], out[1]

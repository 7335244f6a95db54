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
_RARE = 0.005  # share of the posterior on either side that is left out of what is likely
_MARGIN = 0.06  # of the range of times, by which that is widened
_NEAR = 0.08  # of the range: beyond the controls' times by so little counts as within
_FEWEST = 2  # observations of a perturbation within them
_WIDTHS = (0.0, 0.06, 0.15, 0.4, 1.0)  # of the rest, natural-log fold change
_BEYOND = (0.02, 0.5)  # variance beyond the controls' times, over that of the course
_ONSET, _ALIKE = 0.05, 0.25  # of the range: times beyond at which it departs, and is another
_AMPLITUDES = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6])  # of the controls' course
_LENGTHS = (
    0.15,
    0.2,
    0.3,
    0.4,
    0.55,
    0.75,
    1.0,
)  # over which it changes, in units of the range of times
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

    def at(self, kept: np.ndarray) -> Levels:
        """Some of the observations (N,) bool, all of the control's among them."""
        return replace(
            self,
            times=self.times[kept],
            value=self.value[kept],
            noise=self.noise[:, kept][:, :, kept],
            factor=self.factor[kept],
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
    """Correlation of a course at times a and b by how it goes on, (3, len(a), len(b)).

    Within the controls' range a smooth process. Beyond it nobody has seen it: it goes on as it
    would within, or departs from the last level that was seen by an amount of its own, more or
    less. Which is learned.
    """
    inside = [np.clip(times, course.first, course.last) for times in (a, b)]
    found = _correlation(inside[0][:, None] - inside[1], course.length)
    smooth = _correlation(a[:, None] - b, course.length)
    span = course.last - course.first
    ends = course.first - _NEAR * span, course.last + _NEAR * span
    if all(times.min() >= ends[0] and times.max() <= ends[1] for times in (a, b)):
        return np.tile(smooth, (len(_BEYOND) + 1, 1, 1))
    beyond = np.zeros_like(found)
    for early in (True, False):
        gaps = [
            np.maximum(course.first - times if early else times - course.last, 0)
            for times in (a, b)
        ]
        begun = [np.sqrt(-np.expm1(-0.5 * (gap / (_ONSET * span)) ** 2)) for gap in gaps]
        alike = _correlation(gaps[0][:, None] - gaps[1], _ALIKE * span)
        beyond = beyond + begun[0][:, None] * begun[1] * alike
    anew = found + np.array(_BEYOND)[:, None, None] * beyond
    return np.concatenate([smooth[None], anew])


def _correlation(distance: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-0.5 * (distance / length) ** 2)


def fit_course(levels: Levels) -> Course:
    """Length and amplitudes of the controls' course, by their likelihood."""
    n, t = levels.n_control, levels.times[: levels.n_control]
    value = levels.value[:n] - levels.value[:n].mean(0)
    noise = levels.noise[:, :n, :n].copy()
    i = np.arange(n)
    noise[:, i, i] += (levels.factor[:n] ** 2).sum(1).T
    best, found = -np.inf, None
    for length in levels.span * np.array(_LENGTHS):
        course = _correlation(t[:, None] - t, length)
        log = np.stack([_normal(value.T, noise + _LEVEL + a**2 * course) for a in _AMPLITUDES])
        total = float(logsumexp(log, axis=0).sum())  # pyright: ignore[reportAttributeAccessIssue]
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
    span = levels.span
    at = _bounds(levels, course, -FURTHEST * span, FURTHEST * span)
    shifts, mass, log_some = _weighed(at, span)
    log_some, log_none = log_some + np.log1p(-none), at[0.0].bound + np.log(none)
    p_none = float(np.exp(log_none - np.logaddexp(log_some, log_none)))
    # where it is: by what was seen within the controls' times under any shift that is likely
    below = np.cumsum(mass)
    low, high = (float(np.interp(q, below, shifts)) for q in (_RARE, 1 - _RARE))
    low, high = low - _MARGIN * span, high + _MARGIN * span
    moved_low, moved_high = levels.times - high, levels.times - low
    inside = (moved_low >= course.first - _NEAR * span) & (moved_high <= course.last + _NEAR * span)
    inside[: levels.n_control] = True
    if inside[levels.n_control :].sum() >= _FEWEST:
        at_all = at
        at = _bounds(levels.at(inside), course, low, high)
        shifts, mass, _ = _weighed(at, span)
    else:
        at_all, inside = at, np.ones(len(inside), bool)
    value = _centred(levels)
    whole = {shift: at_all[shift] for shift in at_all if shift in (0.0,)}
    nothing = rng.random(n_samples) < p_none
    drawn = np.where(nothing, 0.0, rng.choice(shifts, n_samples, p=mass / mass.sum()))
    n = len(levels.times) - levels.n_control
    moved = np.empty((n_samples, n, value.shape[0]))
    other = np.empty_like(moved)
    for shift in np.unique(drawn):
        rows = np.flatnonzero(drawn == shift)
        if shift not in whole:  # of all that was seen, which is what is to be explained
            near = min(at_all, key=lambda known: abs(known - shift))
            whole[shift] = _bound(levels, value, course, float(shift), at_all[near])
        moved[rows], other[rows] = _draw(
            levels, value, course, float(shift), whole[shift], len(rows), rng
        )
    return ShiftPosterior(shifts, mass, p_none, drawn, moved, other)


def _centred(levels: Levels) -> np.ndarray:
    """Levels about the controls' mean, (G, N)."""
    return (levels.value - levels.value[: levels.n_control].mean(0)).T


def _bounds(levels: Levels, course: Course, low: float, high: float) -> dict[float, _State]:
    """The bound on a grid of shifts, zero among them if it is between, finer where it is high."""
    value = _centred(levels)
    at: dict[float, _State] = {}

    def look(shifts: np.ndarray) -> None:
        for shift in sorted(shifts, key=abs):  # from zero, each from its neighbour
            if shift not in at:
                near = min(at, key=lambda other: abs(other - shift), default=None)
                start = None if near is None else at[near]
                at[float(shift)] = _bound(levels, value, course, float(shift), start)

    look(np.linspace(low, high, _COARSE if low == -high else _WITHIN))
    for _ in range(_FINER):
        shifts = np.array(sorted(at))
        log = np.array([at[shift].bound for shift in shifts])
        likely = np.flatnonzero(log > log.max() - _UNLIKELY)
        first, last = max(likely[0] - 1, 0), min(likely[-1] + 1, len(shifts) - 1)
        if len(likely) >= _WITHIN:
            break
        look(np.linspace(shifts[first], shifts[last], _WITHIN + 2)[1:-1])
    return at


def _weighed(at: dict[float, _State], span: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Shifts of a grid, the posterior mass of each, and the log evidence of all of them."""
    shifts = np.array(sorted(at))
    bound = np.array([at[shift].bound for shift in shifts])
    density = norm.pdf(shifts, 0, _SD * span) / (2 * norm.cdf(FURTHEST / _SD) - 1)
    log = bound + np.log(density * np.gradient(shifts))
    total = float(logsumexp(log))  # pyright: ignore[reportArgumentType]
    return shifts, np.exp(log - total), total


@dataclass(frozen=True)
class _State:
    """The bound at a shift, and the approximate posterior there.

    `share` (J,) and `own` (G, J) are of the components, overall and gene by gene: the width of the
    rest, and how the course goes on beyond the controls' times. `mean` (N, d) and `covariance`
    (N d, N d) are of the states.
    """

    bound: float
    share: np.ndarray
    own: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


_COMPONENTS = np.array([(w, i) for w in _WIDTHS for i in range(len(_BEYOND) + 1)])  # (J, 2)
_WIDTH, _GOES_ON = _COMPONENTS[:, 0], _COMPONENTS[:, 1].astype(int)


def _prior(levels: Levels, course: Course, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of means without a rest (G, 3, N, N), by how courses go on, and of the rest."""
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
    total = plain[:, _GOES_ON] + _WIDTH[:, None, None] ** 2 * rest  # (G, J, N, N)
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
        own = np.exp(log - most[:, None])  # pyright: ignore[reportArgumentType, reportCallIssue]
        divergence = 0.5 * (np.trace(state_cov) + (state**2).sum() - n * d)
        if state_cov.any():
            divergence -= 0.5 * np.linalg.slogdet(state_cov)[1]
        prior = (_PRIOR_COUNT * np.log(share)).sum()
        bound = float(most.sum() - divergence + prior) if state_cov.any() else -np.inf  # pyright: ignore[reportAttributeAccessIssue]
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
    inside = variance * (moved @ _kernels(points, points, course) @ moved.T)  # (G, 3, k, k)
    across = variance * (moved @ _kernels(points, at, course))  # (G, 3, k, N)
    mean, rest = _prior(levels, course, shift)
    root = np.linalg.cholesky(state.covariance + _JITTER * np.eye(len(state.covariance)))
    genes = np.arange(n_genes)
    out = np.empty((2, n_samples, k, n_genes))
    for s in range(n_samples):
        part = (rng.random(n_genes)[:, None] > state.own.cumsum(1)).sum(1)
        part = part.clip(max=len(_WIDTH) - 1)
        goes_on = _GOES_ON[part]
        f = state.mean + (root @ rng.standard_normal(len(root))).reshape(state.mean.shape)
        left = value - np.einsum("ndg,nd->gn", levels.factor, f)
        ours = _WIDTH[part, None, None] ** 2 * rest
        cross = np.concatenate([across[genes, goes_on], ours[:, n:]], 1)  # (G, 2 k, N)
        prior = np.zeros((n_genes, 2 * k, 2 * k))
        prior[:, :k, :k], prior[:, k:, k:] = inside[genes, goes_on], ours[:, n:, n:]
        gain = np.linalg.solve(mean[genes, goes_on] + levels.noise + ours, cross.transpose(0, 2, 1))
        covariance = prior - cross @ gain + _JITTER * np.eye(2 * k)
        found = np.einsum("gnk,gn->gk", gain, left)
        noise = rng.standard_normal((n_genes, 2 * k, 1))
        found += (np.linalg.cholesky(covariance) @ noise)[..., 0]
        out[:, s] = found.reshape(n_genes, 2, k).transpose(1, 2, 0)
    return out[0], out[1]

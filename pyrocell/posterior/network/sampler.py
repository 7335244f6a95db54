"""Gibbs sampler of which regulators move a target directly, for one target after the other.

Of a target, y (C, T) are its changes in C perturbations at T times, and

    y = z β + f + u + e,    β_r = 0 or Normal(0, ω²),

with z (C, T, K) how far each regulator is lost; f (T,) the error of the controls, common to all
perturbations; u a departure of each perturbation that lasts over times, and e errors of known
variance. Sizes β, f and u are summed out: a step draws whether a regulator is in given which others
are (spike and slab, George and McCulloch 1993), and a second kind of step puts one regulator in the
place of another, since those of one cascade are alike in what they explain.
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["LASTING", "step"]

LASTING = 0.7  # share of the variance of departures that lasts over times

_jit = numba.njit(nogil=True, cache=True)


@_jit
def _evidence(gram, pull, prior, active, k, root, half):
    """Log likelihood given which columns are in, up to what does not depend on them.

    `root` and `half` are left as the Cholesky factor of the precision and what solves for the mean.
    """
    log = 0.0
    for a in range(k):
        i = active[a]
        for b in range(a + 1):
            value = gram[i, active[b]]
            if a == b:
                value += prior[i]
            for c in range(b):
                value -= root[a, c] * root[b, c]
            if a == b:
                root[a, a] = np.sqrt(max(value, 1e-12))
            else:
                root[a, b] = value / root[b, b]
        value = pull[i]
        for c in range(a):
            value -= root[a, c] * half[c]
        half[a] = value / root[a, a]
        log += 0.5 * half[a] * half[a] + 0.5 * np.log(prior[i]) - np.log(root[a, a])
    return log


@_jit
def _columns(inside, n_times, active):
    """Write the columns that are in, those of the controls' error first; how many there are."""
    n_reg = len(inside)
    for t in range(n_times):
        active[t] = n_reg + t
    k = n_times
    for j in range(n_reg):
        if inside[j]:
            active[k] = j
            k += 1
    return k


@_jit
def _products(z, y, variance, departure, bent, active, k, gram, pull):
    """Write z'Pz and z'Py of some columns; return -½ y'Py + ½ log |P|.

    P is the precision of u + e: of each perturbation a diagonal less a part of rank one.
    """
    n, n_times, n_reg = z.shape
    for a in range(k):
        pull[active[a]] = 0.0
        for b in range(k):
            gram[active[a], active[b]] = 0.0
    log = 0.0
    p, column, summed = np.empty(n_times), np.empty((k, n_times)), np.empty(k)
    for c in range(n):
        total = mean = square = 0.0
        lasting = LASTING * (departure + bent[c])
        for t in range(n_times):
            p[t] = 1 / (variance[c, t] + (1 - LASTING) * (departure + bent[c]))
            total += p[t]
            mean += p[t] * y[c, t]
            square += p[t] * y[c, t] ** 2
            log += 0.5 * np.log(p[t])
        less = lasting / (1 + lasting * total)
        log -= 0.5 * np.log1p(lasting * total) + 0.5 * (square - less * mean * mean)
        for a in range(k):
            j, value, along = active[a], 0.0, 0.0
            for t in range(n_times):
                x = z[c, t, j] if j < n_reg else (1.0 if j - n_reg == t else 0.0)
                column[a, t] = p[t] * x
                value += column[a, t]
                along += column[a, t] * y[c, t]
            summed[a] = value
            pull[j] += along - less * value * mean
            for b in range(a + 1):
                i, inner = active[b], 0.0
                for t in range(n_times):
                    x = z[c, t, i] if i < n_reg else (1.0 if i - n_reg == t else 0.0)
                    inner += column[a, t] * x
                gram[j, i] += inner - less * summed[a] * summed[b]
    for a in range(k):
        for b in range(a):
            gram[active[b], active[a]] = gram[active[a], active[b]]
    return log


@_jit
def _bent(z, beta, relative):
    """(C,) variance by which indirect effects are off the straight line, relative to their size."""
    n, n_times, n_reg = z.shape
    out = np.zeros(n)
    for c in range(n):
        for t in range(n_times):
            through = 0.0
            for r in range(n_reg):
                if r != c:
                    through += z[c, t, r] * beta[r]
            out[c] += relative**2 * through**2 / n_times
    return out


@_jit
def _pick(log):
    """Number of an entry, drawn in proportion to exp(log)."""
    weight = np.exp(log - log.max())
    at = np.random.random() * weight.sum()
    for i in range(len(weight)):
        at -= weight[i]
        if at <= 0:
            return i
    return len(weight) - 1


@_jit
def step(
    z, y, variance, prior, log_odds, allowed, relative, log_course, departures, log_departure,
    inside, beta, chosen, chance, seed, rounds,
):  # fmt: skip
    """Draw course and departures of a target, then some rounds over its regulators, then sizes.

    Parameters
    ----------
    z
        (courses, C, T, K) how far each regulator is lost, as a target feels it.
    y, variance
        (C, T) changes and the variance of their errors, the controls' aside.
    prior
        (K + T,) precisions of the sizes and of the controls' error.
    log_odds, allowed
        (K,) prior log odds that a regulator is in, and whether it may be.
    log_course, departures, log_departure
        (courses,) log weights; (Q,) variances of departures and their log weights.
    inside, beta, chosen
        (K,), (K,), (2,) state, changed in place: who is in, sizes, course and departure.
    chance
        (K,) to which the probabilities of being in, given the others, are added.
    """
    np.random.seed(seed)
    n_reg, n_times = len(inside), y.shape[1]
    n = n_reg + n_times
    gram, pull = np.empty((n, n)), np.empty(n)
    active, root, half = np.empty(n, np.int64), np.empty((n, n)), np.empty(n)
    bent = _bent(z[chosen[0]], beta, relative)
    k = _columns(inside, n_times, active)
    log = np.empty(len(log_course))
    for o in range(len(log)):
        log[o] = log_course[o]
        log[o] += _products(z[o], y, variance, departures[chosen[1]], bent, active, k, gram, pull)
        log[o] += _evidence(gram, pull, prior, active, k, root, half)
    chosen[0] = _pick(log)
    log = np.empty(len(log_departure))
    for q in range(len(log)):
        log[q] = log_departure[q]
        log[q] += _products(z[chosen[0]], y, variance, departures[q], bent, active, k, gram, pull)
        log[q] += _evidence(gram, pull, prior, active, k, root, half)
    chosen[1] = _pick(log)
    for j in range(n):
        active[j] = j
    _products(z[chosen[0]], y, variance, departures[chosen[1]], bent, active, n, gram, pull)

    k = _columns(inside, n_times, active)
    now = _evidence(gram, pull, prior, active, k, root, half)
    for _ in range(rounds):
        for j in np.random.permutation(n_reg):
            if not allowed[j]:
                continue
            inside[j] = not inside[j]
            k = _columns(inside, n_times, active)
            other = _evidence(gram, pull, prior, active, k, root, half)
            logit = (other - now if inside[j] else now - other) + log_odds[j]
            p = 1 / (1 + np.exp(-min(max(logit, -500.0), 500.0)))
            chance[j] += p
            wanted = np.random.random() < p
            if wanted == inside[j]:
                now = other
            else:
                inside[j] = wanted
        n_in = inside.sum()
        for _ in range(n_in if n_in < n_reg else 0):
            i, j = np.random.choice(np.flatnonzero(inside)), np.random.randint(n_reg)
            if inside[j] or not allowed[j]:
                continue
            inside[i], inside[j] = False, True
            k = _columns(inside, n_times, active)
            other = _evidence(gram, pull, prior, active, k, root, half)
            if np.log(np.random.random()) < other - now + log_odds[j] - log_odds[i]:
                now = other
            else:
                inside[i], inside[j] = True, False
    k = _columns(inside, n_times, active)
    _evidence(gram, pull, prior, active, k, root, half)
    beta[:] = 0.0
    for a in range(k - 1, -1, -1):  # L' β = half + noise
        value = half[a] + np.random.normal()
        for b in range(a + 1, k):
            value -= root[b, a] * half[b]
        half[a] = value / root[a, a]
        if active[a] < n_reg:
            beta[active[a]] = half[a]

"""Numba kernels of the sampler of gene-level effects: one gene after the other, blocks in between.

A block is a perturbation (or the controls, or a combination) with its rows, the conditions whose
level it moves. Its effect on these is M w, w ~ N(0, I_k), for one of several matrices M, the
components of its prior; the first is the spike, k = 0. The level of row i is x_i = o_i + (M w)_i,
and its counts are T_i ~ NB(mean D_i exp(x_i), variance mean + k_i mean²).
"""

from __future__ import annotations

import math

import numpy as np

from pyrocell.distributions.kernels.fastmath import F32, exp32, jit, log1p32, log32

__all__ = ["coefficient_sums", "draw_blocks", "frame_sums", "move_genes", "row_sums"]

_NODES = np.array([-2.8569700, -1.3556262, 0.0, 1.3556262, 2.8569700])  # Gauss-Hermite, N(0, 1)
_LOG_WEIGHTS = np.log(np.array([0.0112574, 0.2220759, 0.5333333, 0.2220759, 0.0112574]))
_CORRECTION = _LOG_WEIGHTS + 0.5 * _NODES**2
_NEWTON = 8
_NEAR = 4e-3  # squared last Newton step, in standard deviations
_SKEW = 0.1  # squared skewness up to which expansions do
_FARTHEST = 3.0  # of a working response from the level it is taken at
_LEAST = 1e-6

_NODES32, _CORRECTION32 = _NODES.astype(F32), _CORRECTION.astype(F32)
_ROUNDS = 4  # of Newton's method where all genes are worked on at once

quick = jit("nsz", "contract", "arcp", "reassoc")

_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xBF58476D1CE4E5B9)
_C = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@quick
def _uniform(seed, block, gene, number):  # type: ignore[no-untyped-def]
    """Uniform number that depends on its four counters alone (splitmix64)."""
    z = np.uint64(seed) * _A + np.uint64(block) * _B + np.uint64(gene) * _C + np.uint64(number)
    for _ in range(2):
        z = z + _A
        z = (z ^ (z >> _S30)) * _B
        z = (z ^ (z >> _S27)) * _C
        z = z ^ (z >> _S31)
    return (np.float64(z >> _S11) + 0.5) * (1.0 / 9007199254740992.0)


@quick
def _normal(seed, block, gene, number):  # type: ignore[no-untyped-def]
    radius = math.sqrt(-2.0 * math.log(_uniform(seed, block, gene, number)))
    return radius * math.cos(2.0 * math.pi * _uniform(seed, block, gene, number + 1))


@quick
def _above_zero(z):  # type: ignore[no-untyped-def]
    """Probability that N(z, 1) is above zero, within 2e-7.

    Abramowitz and Stegun (1964), 7.1.26, in double precision but for the exponential.
    """
    y = 0.7071067811865476 * abs(z)
    t = 1.0 / (1.0 + 0.3275911 * y)
    p = 1.061405429 * t - 1.453152027
    p = p * t + 1.421413741
    p = p * t - 0.284496736
    p = (p * t + 0.254829592) * t
    tail = 0.5 * p * exp32(F32(-y * y))
    return 1.0 - tail if z > 0.0 else tail


@quick
def _log_likelihood(t, d, k, x):  # type: ignore[no-untyped-def]
    return t * x - (t + 1.0 / k) * math.log(1.0 + k * d * math.exp(x))


@quick
def _along_line(n, t, d, k, offset, toward, error, m, moments):  # type: ignore[no-untyped-def]
    """Log evidence of w ~ N(0, 1) where rows move along m.

    By Laplace's method with the terms of third and fourth order, or by quadrature about the mode
    where these are not small. `toward` and `error` are how far the counts alone would move rows,
    and its variance; `moments` takes the posterior mean and variance of w.
    """
    numerator, denominator = 0.0, 1.0
    for i in range(n):
        numerator += m[i] * toward[i] / error[i]
        denominator += m[i] * m[i] / error[i]
    w = min(max(numerator / denominator, -4.0), 4.0)
    for _ in range(_NEWTON):
        slope, curvature = -w, 1.0
        for i in range(n):
            mu = d[i] * math.exp(offset[i] + m[i] * w)
            whole = 1.0 + k[i] * mu
            slope += m[i] * (t[i] - mu) / whole
            curvature += m[i] * m[i] * (1.0 + k[i] * t[i]) * mu / (whole * whole)
        step = slope / curvature
        step = min(max(step, -2.0), 2.0)
        w += step
        if step * step * curvature < _NEAR:
            break
    base, slope, curvature, third, fourth = -0.5 * w * w, -w, 1.0, 0.0, 0.0
    for i in range(n):
        mu = d[i] * math.exp(offset[i] + m[i] * w)
        whole = 1.0 + k[i] * mu
        base += t[i] * (offset[i] + m[i] * w) - (t[i] + 1.0 / k[i]) * math.log(whole)
        slope += m[i] * (t[i] - mu) / whole
        square = m[i] * m[i] * (1.0 + k[i] * t[i]) * mu / (whole * whole)
        curvature += square
        bend = (1.0 - k[i] * mu) / whole
        third -= m[i] * square * bend
        fourth -= m[i] * m[i] * square * (bend * bend - 2.0 * k[i] * mu / (whole * whole))
    variance = 1.0 / curvature
    skew = third * third * variance * variance * variance
    if skew < _SKEW and abs(fourth) * variance * variance < _SKEW:
        moments[0] = w + slope * variance + 0.5 * third * variance * variance
        more = skew + 0.5 * fourth * variance * variance
        moments[1] = variance * max(1.0 + more, 0.5)
        value = base + 0.5 * slope * slope * variance - 0.5 * math.log(curvature)
        return value + 5.0 / 24.0 * skew + 0.125 * fourth * variance * variance
    scale = math.sqrt(variance)
    total, first, second = 0.0, 0.0, 0.0
    for q in range(5):
        v = w + scale * _NODES[q]
        value = -0.5 * v * v - base + _CORRECTION[q]
        for i in range(n):
            value += _log_likelihood(t[i], d[i], k[i], offset[i] + m[i] * v)
        value = math.exp(value)
        total += value
        first += value * v
        second += value * v * v
    moments[0] = first / total
    moments[1] = max(second / total - moments[0] * moments[0], 1e-10)
    return base + math.log(total * scale)


@quick
def _spread_one_row(n, t, d, k, offset, base, toward, error):  # type: ignore[no-untyped-def]
    """What all scales of a block with one row share, by gene: (n,) each, float32."""
    for g in range(n):
        base[g] = d[g] * exp32(offset[g])
        error[g] = F32(1.0) / (t[g] + F32(0.5)) + k[g]
        toward[g] = log32((t[g] + F32(0.5)) / d[g]) - offset[g]


@quick
def _along_one_row(n, s, t, k, base, toward, error, value, mean, variance, first, second, mode,
                   scale, peak):  # fmt: skip
    """What `_along_line` finds, for n genes with one row each and a prior N(0, s²) of its effect.

    Single precision, so that genes are worked on side by side; the log evidence is that over no
    effect. `mean` and `variance` are of the effect over s; the arrays from `first` on are scratch.
    """
    one, prior = F32(1.0), F32(1.0) / (s * s)
    for g in range(n):
        e = s * s * toward[g] / (s * s + error[g])
        e = min(max(e, -F32(4.0) * s), F32(4.0) * s)
        curvature = one
        for _ in range(_ROUNDS):
            mu = base[g] * exp32(e)
            whole = one / (one + k[g] * mu)
            slope = (t[g] - mu) * whole - e * prior
            curvature = (one + k[g] * t[g]) * mu * whole * whole + prior
            step = slope / curvature
            e += min(max(step, -F32(2.0) * s), F32(2.0) * s)
        mode[g] = e
        scale[g] = one / math.sqrt(curvature)
        mu = base[g] * exp32(e)
        inside = k[g] * (mu - base[g]) / (one + k[g] * base[g])
        peak[g] = t[g] * e - (t[g] + one / k[g]) * log1p32(inside) - F32(0.5) * e * e * prior
        value[g], first[g], second[g] = F32(0.0), F32(0.0), F32(0.0)
    for q in range(_NODES32.size):
        node, correction = _NODES32[q], _CORRECTION32[q]
        for g in range(n):
            away = scale[g] * node
            e = mode[g] + away
            mu = base[g] * exp32(e)
            inside = k[g] * (mu - base[g]) / (one + k[g] * base[g])
            log = t[g] * e - (t[g] + one / k[g]) * log1p32(inside) - F32(0.5) * e * e * prior
            weight = exp32(log - peak[g] + correction)
            value[g] += weight
            first[g] += weight * away
            second[g] += weight * away * away
    for g in range(n):
        m = first[g] / value[g]
        mean[g] = (mode[g] + m) / s
        variance[g] = max(second[g] / value[g] - m * m, F32(1e-10) * s * s) * prior
        value[g] = peak[g] + log32(value[g] * scale[g] / s)


@quick
def cholesky(a, n):  # type: ignore[no-untyped-def]
    """Factor in place, lower triangle; the log determinant of a."""
    log_det = 0.0
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for l in range(j):
                s -= a[i, l] * a[j, l]
            if i == j:
                a[i, i] = math.sqrt(max(s, 1e-12))
                log_det += 2.0 * math.log(a[i, i])
            else:
                a[i, j] = s / a[j, j]
    return log_det


@quick
def solve(a, b, n):  # type: ignore[no-untyped-def]
    """b ← (aa')⁻¹ b for a lower factor."""
    for i in range(n):
        s = b[i]
        for j in range(i):
            s -= a[i, j] * b[j]
        b[i] = s / a[i, i]
    _solve_upper(a, b, n)


@quick
def _solve_upper(a, b, n):  # type: ignore[no-untyped-def]
    """b ← a'⁻¹ b."""
    for i in range(n - 1, -1, -1):
        s = b[i]
        for j in range(i + 1, n):
            s -= a[j, i] * b[j]
        b[i] = s / a[i, i]


@quick
def _laplace(n, dim, t, d, k, offset, m, w, root, gradient):  # type: ignore[no-untyped-def]
    """Log evidence of w ~ N(0, I), more than one, by Laplace's method.

    `w` takes the mode, `root` the Cholesky factor of the precision there.
    """
    for j in range(dim):
        w[j] = 0.0
    log_det = 0.0
    for _ in range(2 * _NEWTON):
        for a in range(dim):
            gradient[a] = -w[a]
            for b in range(dim):
                root[a, b] = 1.0 if a == b else 0.0
        for i in range(n):
            x = offset[i]
            for a in range(dim):
                x += m[i, a] * w[a]
            mu = d[i] * math.exp(min(x, 60.0))
            whole = 1.0 + k[i] * mu
            score = (t[i] - mu) / whole
            weight = (1.0 + k[i] * t[i]) * mu / (whole * whole)
            for a in range(dim):
                gradient[a] += m[i, a] * score
                for b in range(a + 1):
                    root[a, b] += weight * m[i, a] * m[i, b]
        log_det = cholesky(root, dim)
        solve(root, gradient, dim)
        most = 0.0
        for a in range(dim):
            step = min(max(gradient[a], -1.5), 1.5)
            w[a] += step
            most = max(most, abs(step))
        if most < 1e-2:
            break
    value = -0.5 * log_det
    for a in range(dim):
        value -= 0.5 * w[a] * w[a]
    for i in range(n):
        x = offset[i]
        for a in range(dim):
            x += m[i, a] * w[a]
        value += _log_likelihood(t[i], d[i], k[i], x)
    return value


@quick
def draw_blocks(
    first, last, seeds, blocks, names, row_start, rows, owned, mixture_start, component_start, dims,
    mixtures, coefficient_start, factor_start, factors, log_weights, own_weights, spike, target,
    total, depth, spread, x, effect, share, precision_start, precision, response,
    coefficients, table, center, least, widths, evidence,
):  # fmt: skip
    """Draw the effects of blocks on genes first..last given all else, in place.

    Parameters
    ----------
    seeds
        Of several independent draws, the first of which `x` and `effect` take.
    blocks
        Which to draw, in this order.
    names
        Numbers of all blocks, on which the random numbers of their draws depend.
    row_start, rows, owned
        Rows of each block: conditions, and whether the block is the one whose effect on the
        condition is integrated out when other parts are drawn.
    mixture_start, mixtures
        Where the matrices M of each block begin in a flat array, component after component, each
        (rows, k) by rows.
    component_start, dims
        (blocks, 2) first and last of each block's components in `dims`, which holds their k.
    coefficient_start, factor_start, factors
        Coefficients of each block in `coefficients`, and where the matrices that turn w into them
        begin, laid out as `mixtures`.
    log_weights, own_weights
        (blocks, components) log weights, and those of a perturbation's own gene, `target`.
    spike
        (blocks,) factor by which the spike's matrices are multiplied.
    total, depth, spread
        (C, G) the likelihood, see `counts`.
    x, effect
        (C, G) levels and (rows, G) what each block adds to each of its rows; both are moved.
    share
        (blocks, components) to which responsibilities are added.
    precision_start, precision, response
        For each block with owned rows: the precision matrix of these rows with the block's effect
        integrated out, given its component, and the working response. (entries, G) and (C, G);
        empty where they are not wanted.
    coefficients
        (draws, coefficients, G) to which draws are written; empty where not wanted.
    table, center
        If not empty: (coefficients, 4, G) to which mean, second moment, and probabilities of being
        above and below zero of coefficient + center are added, center (coefficients, G).
    least
        (coefficients, G) least size at which coefficient + center counts as above or below zero
        where it is in the spike and the counts say nothing; it shrinks with the ratio of the
        posterior standard deviation to the prior's.
    widths, evidence
        Other values of `spike`, and (blocks, widths) to which the log evidence of each is added, of
        the genes that were drawn to be in the spike. Normal in the score at no effect, whose mean
        and variance are exact however few the counts are.
    """
    most_rows, most_dim = 1, 1
    for b in blocks:
        most_rows = max(most_rows, row_start[b + 1] - row_start[b])
        for c in range(component_start[b, 0], component_start[b, 1]):
            most_dim = max(most_dim, dims[c])
    t, d, k = np.empty(most_rows), np.empty(most_rows), np.empty(most_rows)
    offset, line = np.empty(most_rows), np.empty(most_rows)
    toward, error = np.empty(most_rows), np.empty(most_rows)
    m = np.empty((most_rows, most_dim))
    n_components = share.shape[1]
    log_share = np.empty(n_components)
    mean = np.empty((n_components, most_dim))
    root = np.empty((n_components, most_dim, most_dim))
    gradient, w = np.empty(most_dim), np.empty(most_dim)
    moments = np.empty(2)
    information = np.empty(most_rows)
    inner = np.empty((most_dim, most_dim))
    column = np.empty(max(most_dim, most_rows))
    square = np.empty((most_rows, most_rows))
    projected = np.empty((most_rows, most_dim))
    genes = last - first
    shared = np.empty((7, genes), np.float32)  # t, d, k, offset, base, toward, error
    scratch = np.empty((5, genes), np.float32)
    found = np.empty((3, n_components, genes), np.float32)  # value, mean, variance
    for b in blocks:
        begin = row_start[b]
        n = row_start[b + 1] - begin
        low, high = component_start[b, 0], component_start[b, 1]
        n_coefficients = coefficient_start[b + 1] - coefficient_start[b]
        one_row = n == 1
        for j in range(high - low):
            one_row = one_row and dims[low + j] <= 1
        if one_row:
            c = rows[begin]
            for g in range(genes):
                shared[0, g], shared[1, g] = total[c, first + g], depth[c, first + g]
                shared[2, g] = spread[c, first + g]
                shared[3, g] = x[c, first + g] - effect[begin, first + g]
            _spread_one_row(
                genes, shared[0], shared[1], shared[2], shared[3], shared[4], shared[5], shared[6]
            )
            place = mixture_start[b]
            for j in range(high - low):
                if dims[low + j] == 0:
                    found[0, j] = F32(0.0)
                    continue
                _along_one_row(
                    genes,
                    F32(abs(mixtures[place]) * (spike[b] if j == 0 else 1.0)),
                    shared[0],
                    shared[2],
                    shared[4],
                    shared[5],
                    shared[6],
                    found[0, j],
                    found[1, j],
                    found[2, j],
                    scratch[0],
                    scratch[1],
                    scratch[2],
                    scratch[3],
                    scratch[4],
                )
                if mixtures[place] < 0.0:
                    for g in range(genes):
                        found[1, j, g] = -found[1, j, g]
                place += 1
        for g in range(first, last):
            for i in range(n):
                c = rows[begin + i]
                t[i], d[i], k[i] = total[c, g], depth[c, g], spread[c, g]
                offset[i] = x[c, g] - effect[begin + i, g]
                toward[i] = math.log((t[i] + 0.5) / d[i]) - offset[i]
                error[i] = 1.0 / (t[i] + 0.5) + k[i]
            most = -1e300
            place = mixture_start[b]
            for j in range(high - low):
                dim = dims[low + j]
                value = own_weights[b, j] if g == target[b] else log_weights[b, j]
                if value < -40.0 and j > 0:
                    place += n * dim
                    log_share[j] = -1e300
                    continue
                if one_row and (dim == 0 or mixtures[place] != 0.0):
                    value += found[0, j, g - first]
                    if dim == 1:
                        mean[j, 0] = found[1, j, g - first]
                        root[j, 0, 0] = 1.0 / math.sqrt(found[2, j, g - first])
                elif dim == 0:
                    for i in range(n):
                        value += _log_likelihood(t[i], d[i], k[i], offset[i])
                elif dim == 1:
                    for i in range(n):
                        line[i] = mixtures[place + i] * (spike[b] if j == 0 else 1.0)
                    value += _along_line(n, t, d, k, offset, toward, error, line, moments)
                    mean[j, 0], root[j, 0, 0] = moments[0], 1.0 / math.sqrt(moments[1])
                else:
                    for i in range(n):
                        for a in range(dim):
                            m[i, a] = mixtures[place + i * dim + a]
                    value += _laplace(n, dim, t, d, k, offset, m, w, root[j], gradient)
                    for a in range(dim):
                        mean[j, a] = w[a]
                place += n * dim
                log_share[j] = value
                most = max(most, value)
            whole = 0.0
            for j in range(high - low):
                if log_share[j] > most - 80.0:
                    log_share[j] = exp32(F32(log_share[j] - most))
                else:
                    log_share[j] = 0.0
                whole += log_share[j]
            if g != target[b]:
                for j in range(high - low):
                    share[b, j] += log_share[j] / whole
            for turn in range(seeds.size - 1, -1, -1):  # the first draw last: it stays
                seed = seeds[turn]
                u = _uniform(seed, names[b], g, 0) * whole
                chosen, cumulated = 0, 0.0
                for j in range(high - low):
                    if log_share[j] > 0.0:
                        chosen = j
                    cumulated += log_share[j]
                    if u < cumulated:
                        break
                dim = dims[low + chosen]
                for a in range(dim):
                    gradient[a] = _normal(seed, names[b], g, 1 + 2 * a)
                if dim > 0:
                    _solve_upper(root[chosen], gradient, dim)
                for a in range(dim):
                    w[a] = mean[chosen, a] + gradient[a]
                if coefficients.shape[0] > 0:
                    spot = factor_start[b]
                    for j in range(chosen):
                        spot += n_coefficients * dims[low + j]
                    for q in range(n_coefficients):
                        value = 0.0
                        for a in range(dim):
                            value += factors[spot + q * dim + a] * w[a]
                        if chosen == 0:
                            value *= spike[b]
                        coefficients[turn, coefficient_start[b] + q, g] = value
            # what was drawn, row by row
            place = mixture_start[b]
            for j in range(chosen):
                place += n * dims[low + j]
            if chosen == 0 and dim == 1 and g != target[b] and widths.size > 0:
                known, score = 0.0, 0.0
                for i in range(n):
                    mu = d[i] * math.exp(offset[i])
                    whole_i = 1.0 + k[i] * mu
                    known += mixtures[place + i] * mixtures[place + i] * mu / whole_i
                    score += mixtures[place + i] * (t[i] - mu) / whole_i
                for q in range(widths.size):
                    square_q = widths[q] * widths[q]
                    over = 1.0 + square_q * known
                    evidence[b, q] += 0.5 * (square_q * score * score / over - math.log(over))
            for i in range(n):
                value = 0.0
                for a in range(dim):
                    m[i, a] = mixtures[place + i * dim + a] * (spike[b] if chosen == 0 else 1.0)
                    value += m[i, a] * w[a]
                effect[begin + i, g] = value
                x[rows[begin + i], g] = offset[i] + value
            if table.shape[0] > 0:
                spot = factor_start[b]
                for j in range(high - low):
                    dim_j = dims[low + j]
                    weight = log_share[j] / whole
                    for q in range(n_coefficients):
                        at = coefficient_start[b] + q
                        value, variance = 0.0, 0.0
                        for a in range(dim_j):
                            column[a] = factors[spot + q * dim_j + a]
                            column[a] *= spike[b] if j == 0 else 1.0
                            value += column[a] * mean[j, a]
                        if weight > 1e-12:
                            for a in range(dim_j):  # root⁻¹ column: its square is the variance
                                s = column[a]
                                for l in range(a):
                                    s -= root[j, a, l] * column[l]
                                column[a] = s / root[j, a, a]
                                variance += column[a] * column[a]
                            value += center[at, g]
                            table[at, 0, g] += weight * value
                            table[at, 1, g] += weight * (value * value + variance)
                            if j == 0 and variance > 0.0:  # too small, mostly, to be an effect
                                z, usual = 1.0 / math.sqrt(max(variance, 1e-12)), 0.0
                                for a in range(dim_j):
                                    usual += (factors[spot + q * dim_j + a] * spike[b]) ** 2
                                enough = least[at, g] * math.sqrt(min(variance / usual, 1.0))
                                table[at, 2, g] += weight * _above_zero((value - enough) * z)
                                table[at, 3, g] += weight * _above_zero((-value - enough) * z)
                            elif variance > 0.0:
                                above = _above_zero(value / math.sqrt(variance))
                                table[at, 2, g] += weight * above
                                table[at, 3, g] += weight * (1.0 - above)
                            elif value > (least[at, g] if j == 0 else 0.0):
                                table[at, 2, g] += weight
                            elif value < (-least[at, g] if j == 0 else 0.0):
                                table[at, 3, g] += weight
                    spot += n_coefficients * dim_j
            if precision.shape[0] == 0:
                continue
            # owned rows with w integrated out, given the component
            for a in range(dim):
                column[a] = 0.0
                for l in range(dim):
                    inner[a, l] = 1.0 if a == l else 0.0
            n_owned = 0
            for i in range(n):
                level = x[rows[begin + i], g]
                mu = d[i] * math.exp(level)
                over = 1.0 + k[i] * mu
                information[i] = max((1.0 + k[i] * t[i]) * mu / (over * over), _LEAST)
                step = (t[i] - mu) / over / information[i]
                step = min(max(step, -_FARTHEST), _FARTHEST)
                line[i] = effect[begin + i, g] + step
                if owned[begin + i]:
                    n_owned += 1
                else:
                    for a in range(dim):
                        column[a] += information[i] * m[i, a] * line[i]
                        for l in range(a + 1):
                            inner[a, l] += information[i] * m[i, a] * m[i, l]
            if n_owned == 0:
                continue
            if dim > 0:
                cholesky(inner, dim)
                solve(inner, column, dim)
            if n == 1 and dim <= 1:
                over = 1.0 / information[0] + (m[0, 0] * m[0, 0] if dim else 0.0)
                precision[precision_start[b], g] = 1.0 / over
                response[rows[begin], g] = line[0]
                continue
            at = 0
            for i in range(n):
                if not owned[begin + i]:
                    continue
                value = line[i]
                for a in range(dim):
                    value -= m[i, a] * column[a]
                    s = m[i, a]
                    for l in range(a):
                        s -= inner[a, l] * projected[at, l]
                    projected[at, a] = s / inner[a, a]
                response[rows[begin + i], g] = value
                for l in range(at + 1):
                    s = 1.0 / information[i] if l == at else 0.0
                    for a in range(dim):
                        s += projected[at, a] * projected[l, a]
                    square[at, l] = s
                at += 1
            cholesky(square, n_owned)
            for l in range(n_owned):
                for i in range(n_owned):
                    column[i] = 1.0 if i == l else 0.0
                solve(square, column, n_owned)
                for i in range(n_owned):
                    precision[precision_start[b] + l * n_owned + i, g] = column[i]


@quick
def row_sums(first, last, genes, block_of, position, owned_start, owned_rows, precision_start,
             precision, response, value, curvature, gradient):  # fmt: skip
    """For conditions first..last: Σ_g v² P and Σ_g v (P r), v (G,), or (C, G), given by gene.

    `value` is (1, G) or (C, G); `genes` those that count.
    """
    for c in range(first, last):
        b, i = block_of[c], position[c]
        start, stop = owned_start[b], owned_start[b + 1]
        n = stop - start
        at = precision_start[b] + i * n
        v = c if value.shape[0] > 1 else 0
        a, s = 0.0, 0.0
        for g in genes:
            a += value[v, g] * value[v, g] * precision[at + i, g]
        for j in range(n):
            r = owned_rows[start + j]
            for g in genes:
                s += value[v, g] * precision[at + j, g] * response[r, g]
        curvature[c] = a
        gradient[c] = s


@quick
def coefficient_sums(first, last, row_value, owned_start, owned_rows, precision_start, precision,
                     response, curvature, gradient):  # fmt: skip
    """For genes first..last: Σ c'Pc and Σ c'Pr over blocks, of a row vector c (C,)."""
    curvature[first:last] = 0.0
    gradient[first:last] = 0.0
    for b in range(owned_start.size - 1):
        start, stop = owned_start[b], owned_start[b + 1]
        n = stop - start
        for i in range(n):
            c = row_value[owned_rows[start + i]]
            if c == 0.0:
                continue
            for j in range(n):
                at, r = precision_start[b] + i * n + j, owned_rows[start + j]
                other = c * row_value[r]
                for g in range(first, last):
                    curvature[g] += other * precision[at, g]
                    gradient[g] += c * precision[at, g] * response[r, g]


@quick
def frame_sums(first, last, design, owned_start, owned_rows, precision_start, precision, response,
               curvature, gradient):  # fmt: skip
    """What `coefficient_sums` finds, for several columns: design (C, Q) to (G, Q, Q) and (G, Q)."""
    n_columns = design.shape[1]
    curvature[first:last] = 0.0
    gradient[first:last] = 0.0
    for b in range(owned_start.size - 1):
        start, stop = owned_start[b], owned_start[b + 1]
        n = stop - start
        for i in range(n):
            c = owned_rows[start + i]
            for j in range(n):
                at, r = precision_start[b] + i * n + j, owned_rows[start + j]
                for p in range(n_columns):
                    v = design[c, p]
                    if v == 0.0:
                        continue
                    for g in range(first, last):
                        gradient[g, p] += v * precision[at, g] * response[r, g]
                    for q in range(n_columns):
                        u = v * design[r, q]
                        if u != 0.0:
                            for g in range(first, last):
                                curvature[g, p, q] += u * precision[at, g]


@quick
def move_genes(first, last, row_value, change, x, response):  # type: ignore[no-untyped-def]
    """Add row_value (C,) times change (G,) to levels, and take it from the working responses."""
    for c in range(row_value.size):
        v = row_value[c]
        if v != 0.0:
            for g in range(first, last):
                x[c, g] += v * change[g]
                response[c, g] -= v * change[g]

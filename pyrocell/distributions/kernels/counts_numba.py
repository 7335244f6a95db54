"""Count likelihood over CSR rows: value and gradient in one pass that stays in cache.

Dense likelihood code spends its time in lgamma, digamma and in writing intermediates of shape
(cells, genes). Here a zero entry costs three exponentials and two logarithms, written as
polynomials that LLVM vectorises, and only non-zero entries pay for the count itself: a table per
gene up to 16, Stirling's series in double precision above.

Notation, per entry: s = log μ, u = μ/θ, L = log(1 + u), r = -θL (log probability of a zero under
the negative binomial), π the logit of dropout.
"""

from __future__ import annotations

import math

import numpy as np

from pyrocell.distributions.kernels.fastmath import (
    F32,
    I32,
    exact,
    exp32,
    jit,
    log1p32,
    log32,
    summing,
)

__all__ = ["CURVE", "FREE", "NO_GATE", "TABLE", "add_rows", "fill_tables", "sum_rows"]

TABLE = 16  # largest count answered by the table
MAX_LOG_MU = 60.0  # a row beyond this is left to the general formula
NO_GATE, CURVE, FREE = 0, 1, 2

ONE, ZERO, HALF = F32(1.0), F32(0.0), F32(0.5)


@exact
def _theta_slope(u, share, log1p_u):  # type: ignore[no-untyped-def]
    """L - u/(1+u), which is -dr/dlogθ / θ; by its series where the difference would cancel."""
    series = (
        u
        * u
        * (HALF - u * (F32(0.6666667) - u * (F32(0.75) - u * (F32(0.8) - u * F32(0.8333333)))))
    )
    return series if u < F32(0.04) else log1p_u - share


@exact
def _expm1_small(r):  # type: ignore[no-untyped-def]
    """exp(r) - 1 for -0.25 < r <= 0."""
    p = ONE + r * F32(0.16666667)
    p = ONE + r * F32(0.2) * p
    p = ONE + r * F32(0.25) * p
    p = ONE + r * F32(0.33333333) * p
    return r * (ONE + r * HALF * p)


@exact
def fill_tables(theta, value, slope):  # type: ignore[no-untyped-def]
    """Fill value[x, g] and slope[x, g], x = 0..TABLE.

    value = log Γ(x+θ)/Γ(θ) - log x!  (less x log θ where θ > 1, so that it stays small), and
    slope = x - θ (ψ(x+θ) - ψ(θ)) = Σ_{k<x} k/(θ+k).
    """
    product = np.ones(theta.size)
    total = np.zeros(theta.size)
    value[0] = ZERO
    slope[0] = ZERO
    for k in range(TABLE):
        up = 1.0 / (k + 1)
        for g in range(theta.size):
            t = np.float64(theta[g])
            product[g] *= (t + k) * up / max(t, 1.0)
            total[g] += k / (t + k)
            value[k + 1, g] = log32(F32(product[g]))
            slope[k + 1, g] = F32(total[g])


@exact
def _large_count(x, s, log_theta):  # type: ignore[no-untyped-def]
    """Negative binomial log probability and its slope in log θ, in double, for any real x > 0.

    Both gamma functions are raised by 16 where θ is small, so that Stirling's series holds.
    """
    t = math.exp(log_theta)
    u = math.exp(s - log_theta)
    log1p_u = math.log1p(u)
    b, ratio, digamma = t, 1.0, 0.0
    if t < 16.0:
        for k in range(16):
            ratio *= (x + t + k) / (t + k)
            digamma += 1.0 / (t + k) - 1.0 / (x + t + k)
        b = t + 16.0
    a = x + b
    grow = math.log1p(x / b)
    series = 0.0  # Stirling's remainder at a less that at b
    for sign, v in ((1.0, 1.0 / a), (-1.0, 1.0 / b)):
        w = v * v
        series += sign * v * (1.0 / 12 - w * (1.0 / 360 - w * (1.0 / 1260 - w / 1680)))
        digamma -= sign * (v * 0.5 + w * (1.0 / 12 - w * (1.0 / 120 - w / 252)))
    rising = x * math.log(b) + (a - 0.5) * grow - x + series - math.log(ratio)
    value = rising - math.lgamma(x + 1.0) + x * (s - log_theta - log1p_u) - t * log1p_u
    slope = t * (grow + digamma - log1p_u) + (math.exp(s) - x) / (1.0 + u)
    return value, slope


@jit("fast")
def _largest(row):  # type: ignore[no-untyped-def]
    top = row[0]
    for g in range(row.size):
        top = max(top, row[g])
    return top


@summing
def _total(values):  # type: ignore[no-untyped-def]
    """Sum of float32 values in double."""
    total = 0.0
    for i in range(values.size):
        total += values[i]
    return total


@summing
def _log_mean(logits, offset, rows, log_size, composition, s, mu, share):  # type: ignore[no-untyped-def]
    """Fill s = log μ, μ and (for a composition) the softmax; False if the row is out of range."""
    row = s
    for g in range(row.size):
        row[g] = logits[g]
    for i in rows:
        for g in range(row.size):
            row[g] += offset[i, g]
    check = 0.0
    for g in range(row.size):
        check += row[g]
    if not math.isfinite(check) or not math.isfinite(log_size):
        return False
    top = _largest(row)
    shift = log_size
    if composition:
        for g in range(row.size):
            share[g] = exp32(row[g] - top)
        total = _total(share)
        inverse = F32(1.0 / total)
        shift = F32(np.float64(log_size) - np.float64(top) - math.log(total))
        size = F32(math.exp(np.float64(log_size))) if log_size < F32(MAX_LOG_MU) else ZERO
        for g in range(row.size):
            s[g] = row[g] + shift
            share[g] *= inverse
            mu[g] = share[g] * size
    else:
        for g in range(row.size):
            s[g] = row[g] + shift
            mu[g] = exp32(s[g])
    return top + shift < F32(MAX_LOG_MU)


@summing
def _zeros_plain(theta, inverse_theta, live, mu, r, term, gs, gt, weight):  # type: ignore[no-untyped-def]
    """Zero entries without dropout: values (term), slopes in s (gs), added slopes in log θ (gt)."""
    for g in range(mu.size):
        u = mu[g] * inverse_theta[g]
        part = u / (ONE + u)
        log1p_u = log1p32(u)
        r[g] = -theta[g] * log1p_u
        term[g] = live[g] * r[g]
        gs[g] = -live[g] * theta[g] * part
        gt[g] -= weight * live[g] * theta[g] * _theta_slope(u, part, log1p_u)


@summing
def _zeros_gated(theta, inverse_theta, live, mu, pi, r, term, gs, gp, gt, weight):  # type: ignore[no-untyped-def]
    """Zero entries with dropout: as `_zeros_plain`, and slopes in π (gp).

    log p(0) = log(sig(π) + sig(-π) e^r), written as base + log1p(y) without cancellation.
    """
    for g in range(mu.size):
        u = mu[g] * inverse_theta[g]
        part = u / (ONE + u)
        log1p_u = log1p32(u)
        rg = -theta[g] * log1p_u
        p = pi[g]
        q = rg - p
        e1 = exp32(-abs(p))
        e2 = exp32(-abs(q))
        both = ONE / ((ONE + e1) * (ONE + e2))
        i1 = both * (ONE + e2)
        i2 = both * (ONE + e1)
        counted = e1 * i1 if p > ZERO else i1  # sig(-π)
        kept = i2 if q > ZERO else e2 * i2  # probability that this zero was counted, not dropped
        dropped = e2 * i2 if q > ZERO else i2
        near = rg > F32(-0.25)
        small = _expm1_small(max(rg, F32(-0.25)))
        y = counted * small if near else (e2 - e1) * i1
        base = ZERO if (near or p > ZERO) else max(rg, p)
        r[g] = rg
        term[g] = live[g] * (base + log1p32(y))
        gs[g] = -live[g] * kept * theta[g] * part
        # sig(-π) less `kept`, again without cancellation
        apart = e1 - e2 if p > ZERO else (e2 - e1 if q > ZERO else ONE - e1 * e2)
        gp[g] = live[g] * (-counted * dropped * small if near else both * apart)
        gt[g] -= weight * live[g] * kept * theta[g] * _theta_slope(u, part, log1p_u)


@exact
def _gather(n, where, x, gene, table, slope, s, mu, pi, r, at):  # type: ignore[no-untyped-def]
    """Copy what the non-zero entries need side by side: vector loops cannot index indirectly."""
    for i in range(n):
        g = where[i]
        k = I32(min(x[i], F32(TABLE)))
        at[0, i] = mu[g]
        at[1, i] = r[g]
        at[2, i] = pi[g]
        at[3, i] = s[g] - min(gene[2, g], ZERO)  # the table leaves out x log θ where θ > 1
        at[4, i] = gene[0, g]
        at[5, i] = gene[1, g]
        at[6, i] = table[k, g]
        at[7, i] = slope[k, g]


@exact
def _counts(n, x, gated, at, out):  # type: ignore[no-untyped-def]
    """Non-zero entries: out rows are value, slope in s, in log θ, and in π."""
    mu, r, pi, odds, theta, inverse_theta = at[0], at[1], at[2], at[3], at[4], at[5]
    table, slope = at[6], at[7]
    value, ds, dt, dp = out[0], out[1], out[2], out[3]
    for i in range(n):
        u = mu[i] * inverse_theta[i]
        inverse = ONE / (ONE + u)
        part = u * inverse
        log1p_u = -r[i] * inverse_theta[i]
        value[i] = r[i] + x[i] * (odds[i] - log1p_u) + table[i]
        ds[i] = (x[i] - mu[i]) * inverse
        dt[i] = x[i] * part - slope[i] - theta[i] * _theta_slope(u, part, log1p_u)
    if gated:
        for i in range(n):
            p = pi[i]
            e = exp32(-abs(p))
            value[i] -= max(p, ZERO) + log1p32(e)
            dp[i] = -(ONE if p > ZERO else e) / (ONE + e)


@exact
def _correct_large(n, where, x, gated, log_theta, s, pi, out):  # type: ignore[no-untyped-def]
    """Answer counts that the table lacks in double; returns the change in the summed value."""
    change = 0.0
    for i in range(n):
        if x[i] <= F32(TABLE) and x[i] == F32(I32(x[i])):
            continue
        g = where[i]
        value, slope = _large_count(np.float64(x[i]), np.float64(s[g]), np.float64(log_theta[g]))
        if gated:
            p = np.float64(pi[g])
            value -= max(p, 0.0) + math.log1p(math.exp(-abs(p)))
        change += value - np.float64(out[0, i])
        out[2, i] = F32(slope)
    return change


@summing
def _finish_gate(kind, intercept_slope, s, gs, gp, gate_grad, gene_grad, weight):  # type: ignore[no-untyped-def]
    """Pass slopes in π on to the gate's parameters, and through its curve to s."""
    if kind == CURVE:
        curve = intercept_slope[1]
        for g in range(s.size):
            gene_grad[1, g] += weight * gp[g]
            gene_grad[2, g] += weight * gp[g] * s[g]
            gs[g] += gp[g] * curve[g]
    else:
        for g in range(s.size):
            gate_grad[g] = weight * gp[g]


@summing
def _finish_mean(composition, share, gs, logit_grad, weight):  # type: ignore[no-untyped-def]
    """Slopes in s to slopes in the logits (weighted); returns their sum, the slope in log size."""
    total = ZERO
    for g in range(gs.size):
        total += gs[g]
    if composition:
        for g in range(gs.size):
            logit_grad[g] = weight * (gs[g] - share[g] * total)
    else:
        for g in range(gs.size):
            logit_grad[g] = weight * gs[g]
    return total


@exact
def sum_rows(  # type: ignore[no-untyped-def]
    first,
    last,
    kind,
    composition,
    logits,
    offset,
    rows,
    log_size,
    gate,
    gene,
    table,
    slope,
    start,
    column,
    count,
    weight,
    value,
    logit_grad,
    size_grad,
    gate_grad,
    gene_grad,
):
    """Rows first..last-1. Gradients are skipped where `logit_grad` has no rows.

    Logits are those given plus rows of `offset`. gene holds θ, 1/θ and log θ; gate the curve's
    (2, G) or the rows' own logits (cells, G); gene_grad (3, G) collects the slopes in log θ,
    intercept and slope. A row out of range gets nan.
    """
    n_genes = logits.shape[1]
    with_grad = logit_grad.shape[0] > 0
    work = np.zeros((8, n_genes), F32)
    s, mu, share, r = work[0], work[1], work[2], work[3]
    gs, gp, pi, term = work[4], work[5], work[6], work[7]
    live = np.ones(n_genes, F32)
    where = np.empty(n_genes, np.int32)
    x = np.empty(n_genes, F32)
    at = np.empty((8, n_genes), F32)
    out = np.empty((4, n_genes), F32)
    theta, inverse_theta, gt = gene[0], gene[1], gene_grad[0]
    for c in range(first, last):
        w = weight[c]
        if not _log_mean(logits[c], offset, rows[c], log_size[c], composition, s, mu, share):
            value[c] = np.nan
            continue
        n = 0
        for j in range(start[c], start[c + 1]):
            if count[j] > ZERO:
                where[n] = column[j]
                x[n] = count[j]
                live[column[j]] = ZERO
                n += 1
        if kind == NO_GATE:
            _zeros_plain(theta, inverse_theta, live, mu, r, term, gs, gt, w)
        else:
            if kind == CURVE:
                for g in range(n_genes):
                    pi[g] = gate[0, g] + gate[1, g] * s[g]
            else:
                for g in range(n_genes):
                    pi[g] = gate[c, g]
            _zeros_gated(theta, inverse_theta, live, mu, pi, r, term, gs, gp, gt, w)
        gated = kind != NO_GATE
        _gather(n, where, x, gene, table, slope, s, mu, pi, r, at)
        _counts(n, x, gated, at, out)
        total = _total(term) + _total(out[0, :n])
        total += _correct_large(n, where, x, gated, gene[2], s, pi, out)
        value[c] = F32(total)
        for i in range(n):
            g = where[i]
            live[g] = ONE
            gs[g] = out[1, i]
            gt[g] += w * out[2, i]
            gp[g] = out[3, i]
        if with_grad:
            if gated:
                row = gate_grad[c] if kind == FREE else gp
                _finish_gate(kind, gate, s, gs, gp, row, gene_grad, w)
            size_grad[c] = w * _finish_mean(composition, share, gs, logit_grad[c], w)


@exact
def add_rows(first, last, values, rows, out):  # type: ignore[no-untyped-def]
    """Add columns first..last-1 of values[c] to the rows[c] of out."""
    for c in range(rows.shape[0]):
        source = values[c, first:last]
        for i in rows[c]:
            target = out[i, first:last]
            for g in range(last - first):
                target[g] += source[g]

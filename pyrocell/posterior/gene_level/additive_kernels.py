"""Numba kernel of the additive sampler: one gene after the other, a driver after the other.

The counts y of cell i have the mean μ = exp(x_i), x_i = log size + level of its batch + Σ_k M_ik
(o_k + e_k), and the variance f μ + μ² / θ. With the weights w = 1 / (f + μ / θ) held, the working
log likelihood Σ w (y x − exp(x)) has the score and the information of the quasi-likelihood
(Wedderburn 1974), and of one effect, the others given, it needs two sums over the cells that carry
it, T = Σ w y and D = Σ w μ: T e − D exp(e) up to a constant.
"""

from __future__ import annotations

import math

import numpy as np

from pyrocell.distributions.kernels.fastmath import jit

__all__ = ["draw_genes", "fit_genes"]

_NEWTON = 12
_NEAR = 1e-4
_FARTHEST = 3.0  # of a step, natural logs
_FREEDOM = 5.0  # of proposals: the tails of a normal at the mode are too light where counts are few

quick = jit("nsz", "contract", "arcp", "reassoc")


@quick
def _mode(total, depth, precision, centre, start):  # type: ignore[no-untyped-def]
    """Mode of total e − depth exp(e) − precision (e − centre)² / 2."""
    e = start
    for _ in range(_NEWTON):
        mu = depth * math.exp(e)
        step = (total - mu - precision * (e - centre)) / (mu + precision)
        step = min(max(step, -1.0), 1.0)
        e += step
        if abs(step) < _NEAR:
            break
    return e


@quick
def _above(z):  # type: ignore[no-untyped-def]
    """Probability that a standard normal is below z."""
    return 0.5 * math.erfc(-0.7071067811865476 * z)


@quick
def draw_genes(
    first, last, seed, log_size, group, start, cells, cell_start, drivers, indptr, rows, counts,
    level, centre, width, effect, component, offset, log_weights, own_log_weights, precisions,
    spike_precision, target, inverse, factor, tried, least, share, moments, evidence, table,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Draw levels and effects of some genes, in place.

    Parameters
    ----------
    first, last, seed
        Genes, and the seed of this sweep.
    log_size, group
        (N,) of cells.
    start, cells, cell_start, drivers
        Cells of each driver, and drivers of each cell.
    indptr, rows, counts
        Counts above zero by gene.
    level, centre, width
        (B, G) levels of batches, (G,) their centre, (G,) standard deviation about it.
    effect, component
        (n, G) float32, int8: effects, and of which component of the prior each is.
    offset
        (n,) shift of a driver in all genes alike.
    log_weights, own_log_weights, precisions, spike_precision
        (n, J), (J,) of the gene a driver is aimed at, (J,), and (n,) of the first component.
    target
        (n,) gene of the perturbation itself, -1 for none.
    inverse, factor
        (G,) 1 / θ and f.
    tried
        (W,) standard deviations that a spike may have.
    least
        (n,) change from which an effect is called.
    share
        (n, J) number of genes of each component is added.
    moments
        (2, n): precision of the offset, and its product with the mean, are added.
    evidence
        (n, W) log evidence of the widths of the spike is added.
    table
        (4, n, G): mean, second moment, probability above and below zero are added; empty: not.
    """
    np.random.seed((seed * 1_000_003 + first) % 4294967295)
    n_cells, n_groups, n = log_size.size, level.shape[0], start.size - 1
    n_parts, n_tried = precisions.size, tried.size
    x, weight, mean = np.empty(n_cells), np.empty(n_cells), np.empty(n_cells)
    total, of_group, deep = np.empty(n), np.empty(n_groups), np.empty(n_groups)
    log, at, variance = np.empty(n_parts), np.empty(n_parts), np.empty(n_parts)
    middle, spread = np.empty(n_parts), np.empty(n_parts)
    for g in range(first, last):
        for i in range(n_cells):
            x[i] = log_size[i] + level[group[i], g]
        for k in range(n):
            moved = offset[k] + effect[k, g]
            if moved != 0.0:
                for j in range(start[k], start[k + 1]):
                    x[cells[j]] += moved
        for i in range(n_cells):
            mu = math.exp(x[i])
            weight[i] = 1.0 / (factor[g] + mu * inverse[g])
            mean[i] = weight[i] * mu
        total[:], of_group[:], deep[:] = 0.0, 0.0, 0.0
        for j in range(indptr[g], indptr[g + 1]):
            i = rows[j]
            y = weight[i] * counts[j]
            of_group[group[i]] += y
            for q in range(cell_start[i], cell_start[i + 1]):
                total[drivers[q]] += y
        for i in range(n_cells):
            deep[group[i]] += mean[i]
        # level of all cells, then of each batch about the centre
        whole, depth = of_group.sum() + 0.5, deep.sum() + 0.5
        change = math.log(whole / depth) - 0.5 / whole + np.random.normal() / math.sqrt(whole)
        change = min(max(change, -_FARTHEST), _FARTHEST)
        centre[g] += change
        grown = math.exp(change)
        for b in range(n_groups):
            deep[b] *= grown
            level[b, g] += change
        if n_groups > 1:
            precision, summed = 1.0 / (width[g] * width[g]), 0.0
            for b in range(n_groups):
                away = centre[g] - level[b, g]
                e = _mode(of_group[b], deep[b], precision, away, 0.0)
                mu = deep[b] * math.exp(e)
                e += np.random.normal() / math.sqrt(mu + precision)
                e = min(max(e, -_FARTHEST), _FARTHEST)
                level[b, g] += e
                deep[b] = grown * math.exp(e)
                summed += level[b, g]
            sd = width[g] / math.sqrt(n_groups)
            centre[g] = summed / n_groups + sd * np.random.normal()
        else:
            deep[0] = grown
        for i in range(n_cells):
            mean[i] *= deep[group[i]]
        for k in range(n):
            depth, old, t = 0.0, effect[k, g], total[k]
            for j in range(start[k], start[k + 1]):
                depth += mean[cells[j]]
            # the driver's shift of all genes, this effect integrated out
            known = max(depth, 1e-6)
            left = min(max((t - depth) / known, -_FARTHEST), _FARTHEST)
            c = component[k, g]
            tau = spike_precision[k] if c == 0 else precisions[c]
            certain = 1.0 / (1.0 / known + 1.0 / tau)
            moments[0, k] += certain
            moments[1, k] += certain * (offset[k] + old + left)
            depth *= math.exp(-old)
            if c == 0:
                slope = t - depth
                for q in range(n_tried):
                    wide = tried[q] * tried[q]
                    more = 1.0 + wide * depth
                    evidence[k, q] += 0.5 * wide * slope * slope / more - 0.5 * math.log(more)
            most = -1e300
            for j in range(n_parts):
                tau = spike_precision[k] if j == 0 else precisions[j]
                begin = 0.0 if j == 0 else at[j - 1]
                e = _mode(t, depth, tau, 0.0, begin)
                mu = depth * math.exp(e)
                v = 1.0 / (mu + tau)
                at[j], variance[j] = e, v
                skew, fourth = mu * mu * v * v * v, -mu * v * v
                middle[j] = e - 0.5 * mu * v * v
                spread[j] = v * max(1.0 + skew + 0.5 * fourth, 0.5)
                log[j] = t * e - mu - 0.5 * tau * e * e + 0.5 * math.log(tau * v)
                if skew < 0.1:  # else the expansion does not hold
                    log[j] += 5.0 / 24.0 * skew + 0.125 * fourth
                log[j] += own_log_weights[j] if target[k] == g else log_weights[k, j]
                most = max(most, log[j])
            norm = 0.0
            for j in range(n_parts):
                log[j] = math.exp(log[j] - most)
                norm += log[j]
            u, new = np.random.random() * norm, n_parts - 1
            for j in range(n_parts):
                u -= log[j]
                if u <= 0.0:
                    new = j
                    break
            e = at[new] + math.sqrt(variance[new]) * np.random.standard_t(_FREEDOM)
            # accept or stay: the proposal is near the posterior, and does not depend on the state
            ratio = 0.0
            for side in range(2):
                j, value = (new, e) if side == 0 else (int(c), old)
                tau = spike_precision[k] if j == 0 else precisions[j]
                own = own_log_weights[j] if target[k] == g else log_weights[k, j]
                target_log = t * value - depth * math.exp(value) + own
                target_log += 0.5 * math.log(tau) - 0.5 * tau * value * value
                off = (value - at[j]) * (value - at[j]) / variance[j]
                proposal = math.log(log[j] + 1e-300) - 0.5 * math.log(variance[j])
                proposal -= 0.5 * (_FREEDOM + 1.0) * math.log(1.0 + off / _FREEDOM)
                ratio += (target_log - proposal) * (1.0 if side == 0 else -1.0)
            if not (ratio > -700.0 and math.log(np.random.random()) < ratio):
                new, e = int(c), old
            effect[k, g], component[k, g] = e, new
            factor_of_cells = math.exp(effect[k, g] - old)
            if factor_of_cells != 1.0:
                for j in range(start[k], start[k + 1]):
                    mean[cells[j]] *= factor_of_cells
            for j in range(n_parts):
                share[k, j] += log[j] / norm if target[k] != g else 0.0
            if table.shape[1]:
                for j in range(n_parts):
                    p, sd = log[j] / norm, math.sqrt(spread[j])
                    table[0, k, g] += p * middle[j]
                    table[1, k, g] += p * (middle[j] * middle[j] + spread[j])
                    table[2, k, g] += p * _above((middle[j] - least[k]) / sd)
                    table[3, k, g] += p * _above((-least[k] - middle[j]) / sd)


@quick
def fit_genes(
    first, last, passes, log_size, group, start, cells, cell_start, drivers, indptr, rows, counts,
    level, effect, total, depth, inverse, factor,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Fit levels and effects of some genes without a prior, in place; arguments as in `draw_genes`.

    A level or an effect after the other takes the value at which the counts of its cells, half a
    count added, are those expected. `total` and `depth` (n, G) get T and D without the effect.
    """
    n_cells, n_groups, n = log_size.size, level.shape[0], start.size - 1
    weight, mean = np.empty(n_cells), np.empty(n_cells)
    of_group, deep = np.empty(n_groups), np.empty(n_groups)
    for g in range(first, last):
        for _ in range(passes):
            for i in range(n_cells):
                mean[i] = log_size[i] + level[group[i], g]
            for k in range(n):
                if effect[k, g] != 0.0:
                    for j in range(start[k], start[k + 1]):
                        mean[cells[j]] += effect[k, g]
            for i in range(n_cells):
                mu = math.exp(mean[i])
                weight[i] = 1.0 / (factor[g] + mu * inverse[g])
                mean[i] = weight[i] * mu
            of_group[:], deep[:] = 0.0, 0.0
            for k in range(n):
                total[k, g] = 0.0
            for j in range(indptr[g], indptr[g + 1]):
                i = rows[j]
                y = weight[i] * counts[j]
                of_group[group[i]] += y
                for q in range(cell_start[i], cell_start[i + 1]):
                    total[drivers[q], g] += y
            for i in range(n_cells):
                deep[group[i]] += mean[i]
            for b in range(n_groups):
                change = math.log((of_group[b] + 0.5) / (deep[b] + 1e-12))
                change = min(max(change, -_FARTHEST), _FARTHEST)
                level[b, g] += change
                deep[b] = math.exp(change)
            for i in range(n_cells):
                mean[i] *= deep[group[i]]
            for k in range(n):
                found = 0.0
                for j in range(start[k], start[k + 1]):
                    found += mean[cells[j]]
                found = max(found, 1e-12)
                change = math.log((total[k, g] + 0.5) / found)
                change = min(max(change, -_FARTHEST), _FARTHEST)
                depth[k, g] = found * math.exp(-effect[k, g])
                effect[k, g] += change
                grown = math.exp(change)
                for j in range(start[k], start[k + 1]):
                    mean[cells[j]] *= grown

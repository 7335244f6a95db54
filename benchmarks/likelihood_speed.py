"""Time of the count likelihood, forward and backward from the logits, against scvi-tools.

One thread. The variants take turns within each repeat, so that a slow spell of the machine meets
all of them; figures are medians of processor time. Prints a table, then one line of JSON.

    python benchmarks/likelihood_speed.py --cells 512 1024 --repeats 15
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from common import part_of, write_results
from scvi.distributions import ZeroInflatedNegativeBinomial as ScviZINB
from scvi.distributions._negative_binomial import log_zinb_positive
from torch import Tensor

from pyrocell.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrocell.distributions.counts import likelihood_path

ROOMS = ("distributions",)  # that the figures depend on
BASELINE = "scvi ZeroInflatedNegativeBinomial, free gate"
SAME_FREE = "scvi log_zinb_positive, free gate"
SAME_CURVE = "scvi log_zinb_positive, dropout curve"
BEST = "pyrocell CSR rows, dropout curve"
FREE = "pyrocell CSR rows, free gate"
ANALYTIC = "pyrocell analytic in torch, dropout curve"
COMPILED = "pyrocell compiled by torch, dropout curve"
WARM_UP = 3


def minibatch(n_cells: int, n_genes: int, non_zero: float) -> dict[str, Tensor]:
    """Parameters as leaves, and counts of which the given share is not zero."""
    torch.manual_seed(0)
    inputs = {
        "logits": 1.6 * torch.randn(n_genes) + 0.35 * torch.randn(n_cells, n_genes),
        "log_theta": 0.5 + 0.8 * torch.randn(n_genes),
        "gate_intercept": torch.randn(n_genes) - 3,
        "gate_slope": 0.2 * torch.randn(n_genes) - 0.3,
    }
    low, high, noise = 0.0, 12.0, 0.35 * torch.randn(n_cells)
    for _ in range(30):  # the depth that leaves this share of entries non-zero
        depth = (low + high) / 2
        family = ZeroInflatedNegativeBinomial(**inputs, log_size=noise + depth)
        if float(1 - family.zero_probability.mean()) < non_zero:
            low = depth
        else:
            high = depth
    inputs["log_size"] = family.log_size
    inputs["gate_logits"] = torch.full((n_cells, n_genes), -2.0)
    counts = family.sample()
    for key in inputs.keys() - {"log_size"}:
        inputs[key].requires_grad_()
    return inputs | {"dense": counts, "csr": counts.to_sparse_csr()}


def variants(p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Log probability per cell, each from the same logits."""
    curve = {k: p[k] for k in ("gate_intercept", "gate_slope")}
    free = {"gate_logits": p["gate_logits"]}
    shared = {"log_size": p["log_size"], "validate_args": False}
    size = p["log_size"].exp()[:, None]

    def mean() -> Tensor:
        return size * torch.softmax(p["logits"], -1)

    def scvi_distribution() -> Tensor:
        family = ScviZINB(
            mu=mean(), theta=p["log_theta"].exp(), zi_logits=p["gate_logits"], validate_args=False
        )
        return family.log_prob(p["dense"]).sum(-1)

    def scvi_function(gate: bool) -> Tensor:
        mu = mean()
        pi = p["gate_intercept"] + p["gate_slope"] * mu.log() if gate else p["gate_logits"]
        return log_zinb_positive(p["dense"], mu, p["log_theta"].exp(), pi).sum(-1)

    def ours(counts: str, path: str, gate: dict[str, Tensor]) -> Tensor:
        with likelihood_path(path):
            family = ZeroInflatedNegativeBinomial(p["logits"], p["log_theta"], **gate, **shared)
            return family.log_prob(p[counts])

    def plain() -> Tensor:
        return NegativeBinomial(p["logits"], p["log_theta"], **shared).log_prob(p["csr"])

    return {
        BASELINE: scvi_distribution,
        SAME_FREE: lambda: scvi_function(False),
        SAME_CURVE: lambda: scvi_function(True),
        BEST: lambda: ours("csr", "rows", curve),
        FREE: lambda: ours("csr", "rows", free),
        "pyrocell CSR rows, no dropout": plain,
        "pyrocell dense counts by rows, dropout curve": lambda: ours("dense", "rows", curve),
        ANALYTIC: lambda: ours("csr", "analytic", curve),
        COMPILED: lambda: ours("csr", "compiled", curve),
    }


def measure(p: dict[str, Tensor], repeats: int) -> dict[str, float]:
    """Median milliseconds of forward and backward, by variant, alternating."""
    leaves = [t for t in p.values() if t.requires_grad]
    found: dict[str, list[float]] = {}
    for repeat in range(-WARM_UP, repeats):
        for name, log_prob in variants(p).items():
            start = time.process_time()
            (-log_prob().sum()).backward()
            taken = 1e3 * (time.process_time() - start)
            for leaf in leaves:
                leaf.grad = None
            if repeat >= 0:
                found.setdefault(name, []).append(taken)
    return {name: statistics.median(times) for name, times in found.items()}


def compiling(p: dict[str, Tensor]) -> float:
    """Seconds until the compiled path has its first answer, compiler and its cache included."""
    start = time.perf_counter()
    variants(p)[COMPILED]()
    return time.perf_counter() - start


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--non-zero", type=float, default=0.13)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR")
    torch.set_num_threads(1)
    results, first = [], None
    for n_cells in options.cells:
        p = minibatch(n_cells, options.genes, options.non_zero)
        first = compiling(p) if first is None else first
        share = float((p["dense"] > 0).float().mean())
        values = {name: float(f().detach().mean()) for name, f in variants(p).items()}
        times = measure(p, options.repeats)

        def ratio(slow: str, fast: str, times: dict[str, float] = times) -> float:
            return round(times[slow] / times[fast], 2)

        print(f"{n_cells} cells x {options.genes} genes, {share:.1%} non-zero, one thread")
        print(f"{'':46s} {'ms':>8s} {'speed-up':>9s} {'nats/cell':>11s}")
        for name in times:
            print(
                f"{name:46s} {times[name]:8.2f} {ratio(BASELINE, name):9.2f} {values[name]:11.4f}"
            )
        print()
        results.append(
            {
                "cells": n_cells,
                "genes": options.genes,
                "non_zero": round(share, 4),
                "milliseconds": {name: round(t, 3) for name, t in times.items()},
                "speedup_compiled_over_analytic": ratio(ANALYTIC, COMPILED),
                "speedup_csr_over_compiled": ratio(COMPILED, BEST),
                "speedup_csr": ratio(BASELINE, BEST),
                "speedup_csr_over_function": ratio(SAME_CURVE, BEST),
                "speedup_csr_free_gate": ratio(BASELINE, FREE),
                "speedup_csr_free_gate_over_function": ratio(SAME_FREE, FREE),
            }
        )
    print(f"first compiled call: {first:.1f} s of wall time\n")
    write_results(
        "likelihood_speed",
        {
            part_of(parser, options): {
                "threads": 1,
                "compile_seconds": round(first, 1),
                "results": results,
            }
        },
        [0],
        rooms=ROOMS,
    )


if __name__ == "__main__":
    main()

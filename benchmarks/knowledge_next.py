"""Which perturbations to run next: those chosen by knowledge against as many at random.

Of each screen of 300 perturbations 80 are never measured. From the others 20, 40 or 80 are chosen
without looking at any effect, and the 80 are predicted from those. Effects have unit length, so
that every perturbation counts alike. The figure is the squared error over that of the mean of all
220; `own_shares` weighs knowledge by what was chosen, `trusting` takes a share of .9 as known.

    python benchmarks/knowledge_next.py
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from common import part_of, quiet, write_results
from knowledge_screens import gene_sets, screens, squared_errors

from pyrocell import Knowledge
from pyrocell.design import next_perturbations
from pyrocell.knowledge import EffectRegression

ROOMS = ("knowledge", "design", "errors")
SCREENS = ("replogle22k562", "nadig25hepg2", "nadig25jurkat", "replogle22rpe1")
HELD, SIZES, RANDOM = 80, (20, 40, 80), 4


def unit_length(gram: np.ndarray) -> np.ndarray:
    """Inner products of effects of length one; the shortest tenth count as their longest."""
    square = np.diag(gram)
    size = np.sqrt(np.maximum(square, np.quantile(square[square > 0], 0.1)))
    return gram / np.outer(size, size)


def errors(gram, names, knowledge: Knowledge, chosen, held) -> dict[str, float]:
    """Squared error of `held` predicted from `chosen`, at learned shares and at .9."""
    fit = EffectRegression(gram[np.ix_(chosen, chosen)], [names[i] for i in chosen], knowledge)
    target, out = [names[i] for i in held], {}
    out["own_shares"] = squared_errors(fit.predict(target).weights, gram, held, chosen).sum()
    even = np.full((1, len(knowledge.sources)), 0.9 / len(knowledge.sources))
    fit.fit = replace(fit.fit, shares=even, weights=np.ones(1), log_evidence=np.zeros(1))
    out["trusting"] = squared_errors(fit.predict(target).weights, gram, held, chosen).sum()
    return out


def one(gram, names, knowledge: Knowledge, seed: int) -> list[dict]:
    """Rows of the table for one choice of what is never measured."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    held, pool = order[:HELD], order[HELD:]
    of_pool = [names[i] for i in pool]
    table = next_perturbations(of_pool, knowledge, max(SIZES), targets=names)
    place = {name: i for i, name in enumerate(names)}
    ranked = np.array([place[name] for name in table["perturbation"]])
    mean = squared_errors(np.full((HELD, len(pool)), 1 / len(pool)), gram, held, pool).sum()
    rows = []
    for n in SIZES:
        greedy = errors(gram, names, knowledge, ranked[:n], held)
        random = [
            errors(gram, names, knowledge, rng.choice(pool, n, False), held) for _ in range(RANDOM)
        ]
        row = {"n": n, "expected": table["expected_error"].iloc[n - 1]}
        for how in greedy:
            row[how] = greedy[how] / mean
            row[f"{how}_random"] = np.mean([r[how] for r in random]) / mean
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(20, 26)))
    arguments = parser.parse_args()
    quiet()
    knowledge, every, figures = gene_sets(), screens(), {}
    for name in SCREENS:
        gram, genes = every[name]
        gram = unit_length(gram)
        rows = [row for seed in arguments.seeds for row in one(gram, genes, knowledge, seed)]
        figures[name] = {
            str(n): {
                key: np.mean([row[key] for row in rows if row["n"] == n])
                for key in rows[0]
                if key != "n"
            }
            for n in SIZES
        }
        print(name, {n: {k: round(v, 3) for k, v in f.items()} for n, f in figures[name].items()})
    part = part_of(parser, arguments)
    write_results("knowledge_next", {part: figures}, arguments.seeds, rooms=ROOMS)


if __name__ == "__main__":
    main()

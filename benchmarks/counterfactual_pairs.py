"""Counterfactuals of single cells against the same cell in both worlds (eq. 6).

The simulator knows what each cell would express under any other condition: its resting state with
the other condition's shift. A screen is fitted as a user would; control cells are
asked about perturbations and the medium, perturbed cells about control. Printed: the share of genes
inside the 90% intervals, and the error of log expression per cell and gene beside three anchors:
the mean of the other condition's own cells (the cell is forgotten), the cell as the model denoises
it where it is (the treatment is forgotten), and the true treatment of an average cell.

    python benchmarks/counterfactual_pairs.py
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from common import covered, part_of, quiet, run_all, write_results
from scipy.special import log_softmax

import pyrocell

SEEDS = (501, 502, 503)
SCREEN = {
    "n_perturbations": 12,
    "n_genes": 200,
    "n_cells_per_condition": 100,
    "n_controls": 400,
    "n_batches": 3,
    "batch_sd": 0.2,
    "effect_rms": 0.3,
    "media": 1,
    "media_rms": 0.4,
}
N_CELLS = 60  # asked about each question


def pairs(seed: int) -> dict:
    """Fit one screen and ask it about cells whose other world is known."""
    adata = pyrocell.simulate.screen(seed=seed, **SCREEN)
    truth, obs = adata.uns["truth"], adata.obs
    bias = np.asarray(truth["bias"], float).ravel()
    table = truth["conditions"].reset_index(drop=True)
    number = {key: i for i, key in enumerate(zip(table.perturbation, table.media, strict=True))}
    shift, loading = np.asarray(truth["shift"], float), np.asarray(truth["resting_loading"], float)
    eta = truth["eta"].loc[obs["batch"].astype(str)].to_numpy()

    def log_share(cells: np.ndarray, key: tuple, state: float = 1.0) -> np.ndarray:
        logits = bias + state * truth["z"][cells] @ loading + shift[number[key]] + eta[cells]
        return log_softmax(logits, axis=1)

    pyrocell.PyroCell.setup_anndata(adata, media_key="media")
    model = pyrocell.PyroCell(adata)
    model.train(progress_bar=False, seed=seed)
    rng = np.random.default_rng(seed)
    where = pd.Series(list(zip(obs.perturbation.astype(str), obs.media.astype(str), strict=True)))
    control, baseline = ("control", "baseline"), "baseline"
    silent = np.asarray(truth["silent"], bool).ravel()
    active = [n for n, s in zip(truth["effect"].index, silent, strict=True) if not s][:4]
    questions = [(control, (name, baseline)) for name in active]
    questions += [((name, baseline), control) for name in active]
    questions += [(control, ("control", "medium0")), (control, (active[0], "medium0"))]
    denoised = np.log(model.get_normalized_expression())
    rows = []
    for old, new in questions:
        cells = rng.choice(np.flatnonzero([k == old for k in where]), N_CELLS, replace=False)
        answer = model.counterfactual(adata[cells], perturbation=new[0], media=new[1])
        level = log_share(cells, new)
        size = np.asarray(adata.X[cells].sum(1)).reshape(-1, 1)  # the size factor it keeps
        expected = np.exp(level) * size
        share = np.log(np.asarray(answer.X) / np.asarray(answer.X).sum(1, keepdims=True))
        there = np.asarray(adata.X[np.flatnonzero([k == new for k in where])].mean(0)).ravel()
        error = lambda guess, level=level: float(((guess - level) ** 2).mean())  # noqa: E731
        own = np.asarray(denoised)[cells]
        rows.append(
            {
                "from": "+".join(old),
                "to": "+".join(new),
                "covered": covered(answer.layers["lower"], answer.layers["upper"], expected),
                "error": error(share),
                "other cells' mean": error(np.log((there + 0.01) / (there + 0.01).sum())),
                "cell as it is": error(own - np.log(np.exp(own).sum(1, keepdims=True))),
                "true treatment, average cell": error(log_share(cells, new, 0.0)),
            }
        )
    frame = pd.DataFrame(rows)
    return {"seed": seed, **frame.iloc[:, 2:].mean().to_dict(), "table": frame.to_numpy()}


def main() -> None:
    """Run the seeds and print coverage and errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    args = parser.parse_args()
    quiet()
    found = run_all(pairs, [(seed,) for seed in args.seeds], args.jobs)
    names = [k for k in found[0] if k not in ("seed", "table", "seconds")]
    figures = {name: float(np.mean([f[name] for f in found])) for name in names}
    each = np.concatenate([f["table"][:, 2].astype(float) for f in found])
    print(pd.DataFrame(found).drop(columns="table").round(4).to_string(index=False))
    print(f"coverage of single questions: {each.min():.3f} to {each.max():.3f}")
    write_results("counterfactual_pairs", {part_of(parser, args): figures}, args.seeds)


if __name__ == "__main__":
    main()

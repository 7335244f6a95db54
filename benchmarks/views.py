"""Several views of one state: effects, what is silent where, cells that lack a view, and peers.

Parts: `effects` on simulated screens of RNA and protein, beside a fit of RNA alone and the plain
log ratio of mean counts (no model), and what is silent in which view; `shuffled`, with labels that
mean nothing; `lag`, whether proteins follow RNA, and how late; `missing`, proteins of cells without
them, beside scvi-tools' TOTALVI and the mean; `unpaired`, RNA in half of the cells and chromatin in
the others, beside as many cells with both; `links`, effects on regions that are linked to genes;
`two stages`, effects in cells of grnlab, where it is installed;
`citeseq` and `multiome`, held-out cells of real ones beside TOTALVI, PEAKVI and POISSONVI; `step`
and `time`, how long. Seeds below 100 are for development.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from common import part_of, quiet, run_all, shared, write_results
from mudata import MuData
from scipy.stats import rankdata
from torch.distributions import Normal
from view_grnlab import grnlab_screen
from view_screens import linked_screen, only, view_screen

import pyrocell

REGION = 0.05  # of `assumptions()`
CPU = {"accelerator": "cpu", "progress_bar": False}


# ---------------------------------------------------------------------- effects
def fitted(mdata: MuData, seed: int, epochs: int | None = None, **views: Any) -> pyrocell.PyroCell:
    """A model of the views named."""
    pyrocell.PyroCell.setup_mudata(mdata, **views)
    model = pyrocell.PyroCell(mdata)
    model.train(max_epochs=epochs, seed=seed, **CPU)
    return model


def scored(table: pd.DataFrame, truth: pd.DataFrame, moved: float = 0.05) -> dict[str, float]:
    """Errors and coverage of effects on the features of a view."""
    found = table.set_index(["perturbation", "gene"])
    true = truth.stack()
    true = true[true.index.isin(found.index)]
    found = found.loc[true.index]
    inside = (found["lower"] <= true) & (true <= found["upper"])
    active, listed = true.abs() > moved, found["fdr"] <= 0.1
    wrong = listed & ((true == 0) | (np.sign(true) != np.sign(found["mean"])))
    return {
        "rmse": float(np.sqrt(((found["mean"] - true) ** 2).mean())),
        "rmse_of_zero": float(np.sqrt((true**2).mean())),
        "cover_active": float(inside[active].mean()),
        "cover_silent": float(inside[~active].mean()),
        "cover_sure": float(inside[found["lfsr"] < 0.5].mean()),
        "false_at_10": float(wrong.sum() / max(listed.sum(), 1)),
        "listed": int(listed.sum()),
    }


def plain_ratio(adata: ad.AnnData, truth: pd.DataFrame, shares: bool) -> float:
    """RMSE of log ratios of mean counts of perturbed and control cells: no model."""
    labels = adata.obs["perturbation"].to_numpy()
    total = {p: np.asarray(adata.X[labels == p].mean(0)).ravel() for p in [*truth.index, "control"]}
    level = {p: np.log(m + 1e-3) - (np.log(m.sum()) if shares else 0) for p, m in total.items()}
    found = np.stack([level[p] - level["control"] for p in truth.index])
    return float(np.sqrt(((found - truth.to_numpy()) ** 2).mean()))


def effects(seed: int) -> dict[str, Any]:
    """Effects on proteins and genes of a screen with both, and of genes alone."""
    mdata, truth = view_screen(seed)
    start = time.process_time()
    model = fitted(mdata, seed, rna="rna", protein="prot")
    seconds = time.process_time() - start
    alone = mdata["rna"].copy()
    pyrocell.PyroCell.setup_anndata(alone)
    one = pyrocell.PyroCell(alone)
    one.train(seed=seed, **CPU)
    out = {
        "seed": seed,
        "protein": scored(model.perturbation_effects(view="protein"), truth["protein"]),
        "rna": scored(model.perturbation_effects(view="rna"), truth["rna"]),
        "rna_alone": scored(one.perturbation_effects(), truth["rna"]),
        "plain_protein": plain_ratio(mdata["prot"], truth["protein"], False),
        "plain_rna": plain_ratio(mdata["rna"], truth["rna"], True),
        "silent": silent(model, truth),
        "seconds_of_fit": seconds,
    }
    out["rna_ratio"] = out["rna"]["rmse"] / out["rna_alone"]["rmse"]
    return out


def silent(model: pyrocell.PyroCell, truth: dict[str, Any]) -> dict[str, Any]:
    """Whether a perturbation does nothing at baseline, in each view, and what P says.

    Nothing is a root mean square of its true effects below the region of `assumptions()`.
    """
    out = {}
    for view in ("rna", "protein"):
        table = model.assumptions(view=view)
        rows = table[(table["assumption"] == "silent_at_baseline") & table["testable"]]
        size = np.sqrt((truth[view] ** 2).mean(1))
        is_silent = (rows["perturbation"].map(size) < REGION).to_numpy()
        p = rows["posterior"].to_numpy()
        out[view] = {"auroc": auroc(p, is_silent), "brier": float(((p - is_silent) ** 2).mean())}
    return out


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve."""
    rank, n = rankdata(score), positive.sum()
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def shuffled(seed: int) -> dict[str, Any]:
    """Labels that mean nothing: what is listed, and intervals without 0."""
    mdata, _ = view_screen(seed)
    order = np.random.default_rng(seed).permutation(mdata.n_obs)
    for part in mdata.mod.values():
        part.obs["perturbation"] = part.obs["perturbation"].to_numpy()[order]
    mdata = MuData(dict(mdata.mod))
    model = fitted(mdata, seed, rna="rna", protein="prot")
    out: dict[str, Any] = {"seed": seed}
    for view in ("rna", "protein"):
        table = model.perturbation_effects(view=view)
        without = (table["lower"] > 0) | (table["upper"] < 0)
        rows = model.assumptions(view=view)
        rows = rows[(rows["assumption"] == "silent_at_baseline") & rows["testable"]]
        out[view] = {
            "listed": int((table["fdr"] <= 0.1).sum()),
            "excluding_zero": float(without.mean()),
            "called_active": float((rows["posterior"] < 0.5).mean()),
        }
    return out


def lag(seed: int, n_screens: int = 10) -> dict[str, Any]:
    """Whether proteins follow RNA: none, and lags of .3, 1 and 2 at a common constant of 1."""
    out: dict[str, Any] = {"seed": seed}
    for true in (0.0, 0.3, 1.0, 2.0):
        found = []
        for i in range(n_screens):
            times = (0.5, 1.0, 2.0, 4.0)
            more = {"n_cells": 3_000, "seed": 1_000 * seed + i}
            mdata = pyrocell.simulate.views(times=times, lag=true, **more)
            pyrocell.PyroCell.setup_mudata(mdata, rna="rna", protein="prot", time_key="time")
            found.append(pyrocell.PyroCell(mdata).lag("protein"))
        table = pd.concat(found)
        of = {"said": float((table["posterior"] > 0.5).mean())}
        if true:
            of["cover"] = float(((table["lower"] <= true) & (true <= table["upper"])).mean())
            of["median"] = float(table["lag"].median())
        out[f"{true:g}"] = of
    return out


# ---------------------------------------------------------------------- cells that lack a view
def totalvi(
    mdata: MuData, seed: int, n_latent: int, epochs: int | None = None, **setup: Any
) -> Any:
    """scvi-tools' TOTALVI of an AnnData with protein_expression in obsm."""
    import scvi

    scvi.settings.seed = seed
    adata = mdata
    scvi.model.TOTALVI.setup_anndata(
        adata, protein_expression_obsm_key="protein_expression", batch_key="batch", **setup
    )
    model = scvi.model.TOTALVI(adata, n_latent=n_latent)
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def for_totalvi(rna: ad.AnnData, protein: pd.DataFrame) -> ad.AnnData:
    """RNA with proteins in obsm."""
    out = rna.copy()
    out.obsm["protein_expression"] = protein.loc[out.obs_names].copy()
    return out


def missing(seed: int) -> dict[str, Any]:
    """Proteins of cells without: a third at random, and all of a batch."""
    mdata, truth = view_screen(seed, 3_000)
    n = mdata.n_obs
    third = np.random.default_rng(seed).random(n) < 1 / 3
    batch = (mdata["prot"].obs["batch"] == "b2").to_numpy()
    return {
        "seed": seed,
        "at_random": foretold(mdata, truth, third, seed),
        "whole_batch": foretold(mdata, truth, batch, seed),
    }


def foretold(mdata: MuData, truth: dict[str, Any], lacks: np.ndarray, seed: int) -> dict[str, Any]:
    """Errors of proteins of cells that lack them, and coverage of their counts."""
    prot = mdata["prot"]
    some = only(mdata, {"rna": np.ones(len(lacks), bool), "prot": ~lacks})
    model = fitted(some, seed, rna="rna", protein="prot")
    at = np.flatnonzero(model.adata.obs_names.isin(prot.obs_names[lacks]))
    start = time.process_time()
    found = model.impute("protein", indices=at, n_samples=100)
    seconds = time.process_time() - start
    measured = pd.DataFrame(prot.X.toarray(), prot.obs_names, prot.var_names)
    counts = measured.loc[found.obs_names]
    expected = truth["expected_protein"].loc[found.obs_names].to_numpy()
    inside = (found.layers["lower"] <= counts) & (counts <= found.layers["upper"])
    hidden = measured.copy()
    hidden.loc[lacks] = 0  # which TOTALVI takes for not measured where a batch has nothing else
    rna = mdata["rna"].copy()
    label = rna.obs["batch"].astype(str).to_numpy()
    rna.obs["batch"] = np.where(lacks, np.char.add(label.astype(str), " without"), label)
    theirs = totalvi(for_totalvi(rna, hidden), seed, 10)
    # as its tutorial does, in the batches that have proteins, and in the cells' own
    peers = []
    for batches in (sorted(set(label[~lacks])), None):
        _, peer = theirs.get_normalized_expression(
            n_samples=25,
            return_mean=True,
            include_protein_background=True,
            sample_protein_mixing=False,
            scale_protein=False,
            transform_batch=batches,
        )
        peers.append(peer.loc[found.obs_names].to_numpy())

    def errors(values: np.ndarray) -> dict[str, float]:
        log = np.log1p(values)
        return {
            "rmse_counts": float(np.sqrt(((log - np.log1p(counts.to_numpy())) ** 2).mean())),
            "rmse_expected": float(np.sqrt(((log - np.log1p(expected)) ** 2).mean())),
        }

    mean = np.broadcast_to(measured[~lacks].mean(0).to_numpy(), expected.shape)
    return {
        "cover": float(inside.to_numpy().mean()),
        "pyrocell": errors(np.asarray(found.X)),
        "totalvi": min((errors(peer) for peer in peers), key=lambda e: e["rmse_counts"]),
        "mean": errors(mean),
        "seconds_of_imputation": seconds,
    }


def unpaired(seed: int) -> dict[str, Any]:
    """RNA in half of the cells, chromatin in the others, against both in as many cells."""
    mdata, truth = view_screen(seed, n_cells=12_000, n_regions=400)
    half = np.zeros(mdata.n_obs, bool)
    half[np.random.default_rng(seed).permutation(mdata.n_obs)[: mdata.n_obs // 2]] = True
    apart = fitted(only(mdata, {"rna": half, "atac": ~half}), seed, rna="rna", chromatin="atac")
    paired = fitted(only(mdata, {"rna": half, "atac": half}), seed, rna="rna", chromatin="atac")
    out: dict[str, Any] = {"seed": seed}
    for view in ("rna", "chromatin"):
        both = [scored(m.perturbation_effects(view=view), truth[view]) for m in (apart, paired)]
        out[view] = {"unpaired": both[0], "paired": both[1]}
        out[view]["ratio"] = both[0]["rmse"] / both[1]["rmse"]
    return out


def links(seed: int) -> dict[str, Any]:
    """Effects on regions without links, with those that are true, and with shuffled ones."""
    mdata, truth, table = linked_screen(seed)
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = table.assign(gene=table["gene"].to_numpy()[order])
    out: dict[str, Any] = {"seed": seed}
    for name, known in (("none", None), ("true", table), ("shuffled", shuffled)):
        model = fitted(mdata, seed, rna="rna", chromatin="atac", links=known)
        out[name] = scored(model.perturbation_effects(view="chromatin"), truth["atac"])
    return out


def two_stages(seed: int) -> dict[str, Any]:
    """Effects on proteins and genes of cells of grnlab, knocked-out genes themselves left out."""
    mdata, truth = grnlab_screen(seed)
    model = fitted(mdata, seed, rna="rna", protein="prot")
    alone = mdata["rna"].copy()
    pyrocell.PyroCell.setup_anndata(alone)
    one = pyrocell.PyroCell(alone)
    one.train(seed=seed, **CPU)
    tables = {
        "protein": (model.perturbation_effects(view="protein"), truth["prot"]),
        "rna": (model.perturbation_effects(view="rna"), truth["rna"]),
        "rna_alone": (one.perturbation_effects(), truth["rna"]),
    }
    out: dict[str, Any] = {"seed": seed}
    for name, (table, true) in tables.items():
        others = table[table["perturbation"] != table["gene"].str.removeprefix("ab-")]
        # a list of others alone: own genes, all of them sure, would let others in
        others = others.sort_values("lfsr")
        others["fdr"] = others["lfsr"].expanding().mean()
        out[name] = scored(others, true)
    out["plain_protein"] = plain_ratio(mdata["prot"], truth["prot"], False)
    return out


# ---------------------------------------------------------------------- real cells, held out
@torch.no_grad()
def by_view(model: pyrocell.PyroCell, cells: Any, n_particles: int = 500) -> np.ndarray:
    """(cells, 1 + views) log p of all counts of each cell, and of those of each view alone."""
    posterior, found = model.fitted.posterior, None
    module, guide = model.module.model, model.module.guide
    args = cells.rows(np.arange(len(cells)))
    labels = (args["condition"], args["batch"], args.get("covariates"), cells.conditions)
    for s, values in enumerate(posterior.draws(n_particles)):
        torch.manual_seed(s)
        loc, scale = guide.encode(values, args["x"], *labels, log_size=args["log_size"])
        q = Normal(loc, scale)
        z = q.sample()
        logits = module.resting_logits(values, z) + module.cell_shift(values, *labels)
        view = module.view(values, logits, args["log_size"], z)
        each = (
            view.by_view(args["x"])
            if hasattr(view, "by_view")
            else view.log_prob(args["x"])[:, None]
        )
        weight = Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        parts = torch.cat([each.sum(1, keepdim=True), each], 1) + weight[:, None]
        parts = parts.double().numpy()
        found = parts if found is None else np.logaddexp(found, parts)
    assert found is not None
    return found - np.log(n_particles)


@torch.no_grad()
def totalvi_by_view(model: Any, adata: ad.AnnData, n_particles: int = 500) -> np.ndarray:
    """(cells, 3): as `by_view`, of TOTALVI, background integrated over its own posterior."""
    module, total = model.module.eval(), None
    adata = model._validate_anndata(adata)
    (batch,) = list(model._make_data_loader(adata=adata, batch_size=len(adata), shuffle=False))
    for s in range(n_particles):
        torch.manual_seed(s)
        inference, generative, losses = module(batch)
        qz, z = inference["qz"], inference["z"]
        back, py = generative["log_pro_back_mean"], generative["py_"]
        own = Normal(0, 1).log_prob(z).sum(-1) - qz.log_prob(z).sum(-1)
        # background is a latent variable of proteins alone
        of_back = module.back_mean_prior.log_prob(back).sum(-1)
        of_back -= Normal(py["back_alpha"], py["back_beta"]).log_prob(back).sum(-1)
        gene = -losses.reconstruction_loss["reconst_loss_gene"]
        protein = -losses.reconstruction_loss["reconst_loss_protein"] + of_back
        parts = torch.stack([own + gene + protein, own + gene, own + protein], 1).double().numpy()
        total = parts if total is None else np.logaddexp(total, parts)
    assert total is not None
    return total - np.log(n_particles)


def halves(n: int, seed: int, share: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Positions of cells to train on, and of those held out."""
    order = np.random.default_rng(seed).permutation(n)
    k = round(share * n)
    return np.sort(order[k:]), np.sort(order[:k])


def register(first: ad.AnnData | None, other: ad.AnnData | None, **views: Any) -> MuData:
    """A MuData of an unperturbed screen, registered."""
    mods = {"rna": first, "other": other}
    mdata = MuData({k: v for k, v in mods.items() if v is not None})
    pyrocell.PyroCell.setup_mudata(mdata, perturbation_key=None, **views)
    return mdata


def citeseq(seed: int, n_genes: int = 1_000) -> dict[str, Any]:
    """Held-out cells of two batches of CITE-seq."""
    adata = shared("pbmc_citeseq_10k_5k.h5ad")
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    top = np.sort(np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:n_genes])
    rna = adata[:, top].copy()
    names = adata.obsm["protein_expression"].columns
    table = pd.DataFrame(np.asarray(adata.obsm["protein_expression"]), adata.obs_names, names)
    del rna.obsm["protein_expression"]
    prot = ad.AnnData(sp.csr_matrix(table.to_numpy(np.float32)), obs=rna.obs.copy())
    prot.var_names = names
    train, test = halves(adata.n_obs, seed)
    views = {"rna": "rna", "protein": "other"}
    mdata = register(rna[train].copy(), prot[train].copy(), **views)
    model = pyrocell.PyroCell(mdata, n_latent=10)
    start = time.process_time()
    model.train(train_size=0.9, seed=seed, **CPU)
    seconds = time.process_time() - start
    ours = by_view(model, held_out(model, rna[test].copy(), prot[test].copy(), **views))
    one = rna[train].copy()
    pyrocell.PyroCell.setup_anndata(one, perturbation_key=None)
    alone = pyrocell.PyroCell(one, n_latent=10)
    alone.train(train_size=0.9, seed=seed, **CPU)
    held = rna[test].copy()
    pyrocell.PyroCell.setup_anndata(
        held, perturbation_key=None, source_registry=alone.adata_manager.registry
    )
    of_rna = by_view(alone, alone._cells_of(held)[0])
    start = time.process_time()
    peer = totalvi(for_totalvi(rna[train].copy(), table), seed, 10)
    their_seconds = time.process_time() - start
    theirs = totalvi_by_view(peer, for_totalvi(rna[test].copy(), table))
    mean = lambda a: float(a.mean())  # noqa: E731
    return {
        "seed": seed,
        "protein": mean(ours[:, 0] - ours[:, 1]),
        "protein_totalvi": mean(theirs[:, 0] - theirs[:, 1]),
        "protein_by_itself": mean(ours[:, 2]),
        "protein_by_itself_totalvi": mean(theirs[:, 2]),
        "rna": mean(ours[:, 1]),
        "rna_alone": mean(of_rna[:, 0]),
        "rna_totalvi": mean(theirs[:, 1]),
        "both": mean(ours[:, 0]),
        "both_totalvi": mean(theirs[:, 0]),
        "seconds": seconds,
        "seconds_totalvi": their_seconds,
    }


def held_out(model: pyrocell.PyroCell, first: ad.AnnData | None, other: Any, **views: Any) -> Any:
    """Cells that a model was not trained on, as it takes them."""
    mods = {"rna": first, "other": other}
    mdata = MuData({k: v for k, v in mods.items() if v is not None})
    registry = model.adata_manager.registry
    pyrocell.PyroCell.setup_mudata(mdata, perturbation_key=None, source_registry=registry, **views)
    return model._cells_of(mdata)[0]


def multiome(seed: int) -> dict[str, Any]:
    """Held-out cells' regions, as counts and as binary data, each model of regions alone."""
    import scvi

    adata = shared("pbmc_multiome_muon_chr.h5ad")
    counts = sp.csr_matrix(adata.obsm["atac_counts"], dtype=np.float32)
    some = np.asarray(counts.sum(1)).ravel() > 0
    atac = ad.AnnData(counts[some], obs=adata.obs[some].copy())
    atac.var_names = [f"region{i}" for i in range(atac.n_vars)]
    train, test = halves(atac.n_obs, seed)
    out: dict[str, Any] = {"seed": seed}
    for kind in ("fragments", "poisson fragments", "binary fragments"):
        views = {"chromatin": "other", "kinds": {"chromatin": kind}}
        mdata = register(None, atac[train].copy(), **views)
        model = pyrocell.PyroCell(mdata, n_latent=10)
        model.train(train_size=0.9, seed=seed, **CPU)
        found = by_view(model, held_out(model, None, atac[test].copy(), **views))
        out[kind] = float(found[:, 0].mean())
    peers = {"POISSONVI": scvi.external.POISSONVI, "PEAKVI": scvi.model.PEAKVI}
    for name, kind in peers.items():
        scvi.settings.seed = seed
        mine = atac[train].copy()
        kind.setup_anndata(mine, batch_key="batch")
        peer = kind(mine, n_latent=10)
        peer.train(accelerator="cpu", enable_progress_bar=False)
        out[name] = peer_evidence(peer, atac[test].copy())
    return out


@torch.no_grad()
def peer_evidence(model: Any, adata: ad.AnnData, n_particles: int = 500) -> float:
    """Importance-weighted log p per cell of PEAKVI (of binary data) or POISSONVI (of counts)."""
    module, total = model.module.eval(), None
    adata = model._validate_anndata(adata)
    (batch,) = list(model._make_data_loader(adata=adata, batch_size=len(adata), shuffle=False))
    x = batch["X"]
    binary = type(model).__name__ == "PEAKVI"
    for s in range(n_particles):
        torch.manual_seed(s)
        inference, generative = module(batch, compute_loss=False)
        qz = (
            inference["qz"]
            if "qz" in inference
            else Normal(inference["qz_m"], inference["qz_v"].sqrt())
        )
        z = inference["z"]
        weight = Normal(0, 1).log_prob(z).sum(-1) - qz.log_prob(z).sum(-1)
        if binary:
            factor = (
                torch.sigmoid(module.region_factors) if module.region_factors is not None else 1
            )
            depth = inference["d"]
            p = (generative["p"] if "p" in generative else generative["px"]) * depth * factor
            p = p.clamp(1e-7, 1 - 1e-7)
            log_p = torch.where(x > 0, p.log(), (1 - p).log()).sum(-1)
        else:
            log_p = generative["px"].log_prob(x).sum(-1)
        part = (log_p + weight).double().numpy()
        total = part if total is None else np.logaddexp(total, part)
    assert total is not None
    return float((total - np.log(n_particles)).mean())


# ---------------------------------------------------------------------- time
def step(seed: int) -> dict[str, Any]:
    """Processor time of epochs of RNA with 200 proteins, and of RNA, in turns."""
    mdata, _ = view_screen(seed, 8_000, 100, 2_000, 200)
    pyrocell.PyroCell.setup_mudata(mdata, rna="rna", protein="prot")
    alone = mdata["rna"].copy()
    pyrocell.PyroCell.setup_anndata(alone)
    models = [pyrocell.PyroCell(mdata), pyrocell.PyroCell(alone)]
    seconds: list[list[float]] = [[], []]
    for turn in range(6):
        for model, mine in zip(models, seconds, strict=True):
            start = time.process_time()
            model.train(max_epochs=3, gene_level=False, **CPU)
            if turn:  # the first compiles
                mine.append(time.process_time() - start)
    both, one = (float(np.median(mine)) for mine in seconds)
    return {"seed": seed, "rna_and_proteins": both, "rna": one, "ratio": both / one}


def time_to_evidence(seed: int) -> dict[str, Any]:
    """Processor time until held-out cells are as likely as under TOTALVI when it has ended."""
    mdata, _ = view_screen(seed, 4_000)
    train, test = halves(mdata.n_obs, seed, 0.2)
    table = pd.DataFrame(
        mdata["prot"].X.toarray(), mdata["prot"].obs_names, mdata["prot"].var_names
    )
    start = time.process_time()
    peer = totalvi(for_totalvi(mdata["rna"][train].copy(), table), seed, 10)
    theirs = time.process_time() - start
    goal = float(
        totalvi_by_view(peer, for_totalvi(mdata["rna"][test].copy(), table), 100)[:, 0].mean()
    )
    views = {"rna": "rna", "protein": "prot"}
    some = MuData({name: part[train].copy() for name, part in mdata.mod.items()})
    held = MuData({name: part[test].copy() for name, part in mdata.mod.items()})
    out: dict[str, Any] = {"seed": seed, "totalvi": goal, "seconds_totalvi": theirs, "ours": {}}
    for epochs in (2, 4, 8, 16, 32, 64):
        start = time.process_time()
        pyrocell.PyroCell.setup_mudata(some, **views)
        model = pyrocell.PyroCell(some)
        model.train(max_epochs=epochs, seed=seed, gene_level=False, **CPU)
        seconds = time.process_time() - start
        registry = model.adata_manager.registry
        pyrocell.PyroCell.setup_mudata(held, source_registry=registry, **views)
        reached = float(by_view(model, model._cells_of(held)[0], 100)[:, 0].mean())
        out["ours"][str(epochs)] = {"evidence": reached, "seconds": seconds}
        if reached >= goal:
            break
    out["ratio"] = seconds / theirs if reached >= goal else float("nan")
    return out


PARTS = {
    "time": time_to_evidence,
    "effects": effects,
    "shuffled": shuffled,
    "lag": lag,
    "missing": missing,
    "unpaired": unpaired,
    "links": links,
    "two stages": two_stages,
    "citeseq": citeseq,
    "multiome": multiome,
    "step": step,
}


def averaged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of every number, however deep."""
    out = {}
    for key, first in found[0].items():
        values = [each[key] for each in found]
        if isinstance(first, dict):
            out[key] = averaged(values)
        elif isinstance(first, int | float) and key != "seed":
            out[key] = float(np.mean(values))
    return out


def main() -> None:
    """Run the parts asked for, and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[301, 302, 303])
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore")
    for name in arguments.parts:
        seeds = arguments.seeds[:1] if name in ("step", "time") else arguments.seeds
        found = run_all(PARTS[name], [(seed,) for seed in seeds], arguments.jobs)
        figures = {"mean": averaged(found), "of_seeds": found}
        write_results("views", {part_of(parser, arguments, name): figures}, seeds)


if __name__ == "__main__":
    main()

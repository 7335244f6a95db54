"""A simulated screen as Cell Ranger would write it: lanes, captured guides, multiplets."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

__all__ = ["GuideCapture", "write_10x"]

_GENES, _GUIDES = "Gene Expression", "CRISPR Guide Capture"
_BASES = np.array(list("ACGT"))


@dataclass(frozen=True)
class GuideCapture:
    """How guides are captured.

    Parameters
    ----------
    guides_per_target, control_guides
        Guides of each perturbation, and of the controls.
    absent_guides
        Guides of the library that no cell has.
    multiplets
        Share of droplets that hold two cells, from 0 to 1.
    own
        Mean counts of a guide in its cell.
    own_sd
        Standard deviation of the logarithm of that mean between guides.
    dispersion
        Inverse dispersion of those counts between cells of equal depth.
    ambient
        Mean counts of ambient guides in a droplet, all guides together.
    ambient_sd
        Standard deviation of the logarithm of that mean between lanes.
    depth
        Power at which counts of guides follow the depth of the cell.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    guides_per_target: int = 2
    control_guides: int = 4
    absent_guides: int = 1
    multiplets: float = 0.05
    own: float = 40.0
    own_sd: float = 0.5
    dispersion: float = 2.0
    ambient: float = 3.0
    ambient_sd: float = 0.5
    depth: float = 0.7

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        least = {"guides_per_target": 1, "control_guides": 1}
        for name, value in vars(self).items():
            if not np.isfinite(value) or value < least.get(name, 0):
                raise ValueError(f"{name}={value!r}: must be at least {least.get(name, 0)}")
        if self.multiplets > 1 or not self.own or not self.dispersion:
            raise ValueError("multiplets must be at most 1, own and dispersion above zero")


def write_10x(
    adata: AnnData,
    folder: str | Path,
    capture: GuideCapture | None = None,
    *,
    seed: int = 0,
    kind: str = "h5",
) -> pd.DataFrame:
    """Write a simulated screen as Cell Ranger writes lanes with captured guides.

    Parameters
    ----------
    adata
        From :func:`screen`, without combinations; it stays as it is. Each batch becomes a lane.
    folder
        Gets a subfolder for each batch, named after it.
    capture
        How guides are captured; the defaults of :class:`GuideCapture` when None.
    seed
        The same seed, screen and settings give the same files.
    kind
        "h5" for `filtered_feature_bc_matrix.h5`, or "mtx" for `matrix.mtx.gz`, `features.tsv.gz`
        and `barcodes.tsv.gz`.

    Returns
    -------
    The truth, a row for each droplet, named `<batch>_<barcode>` as `pyrocell.preprocess.read_10x`
    does: `batch`, `guides` (names of the guides, in the order of the features, joined by +; two
    cells with the same guide give one), `n_cells`, `cells` (names of its cells in `adata`, joined
    by +) and `perturbation` of its first cell.

    Raises
    ------
    ValueError
        If `kind` is neither.

    Notes
    -----
    Guides are named `<perturbation>_<number>` and `NT_<number>`. Two cells in a droplet add up, RNA
    and guides. Ambient guides are Poisson counts in proportion to the counts of all guides in the
    cells of the lane.
    """
    if kind not in ("h5", "mtx"):
        raise ValueError(f'kind="{kind}" is neither "h5" nor "mtx"')
    capture = capture or GuideCapture()
    rng = np.random.default_rng(seed)
    label = adata.obs["perturbation"].astype(str).to_numpy()
    targets = sorted(set(label) - {"control"})
    guides = [f"{t}_{i + 1}" for t in targets for i in range(capture.guides_per_target)]
    n_used = len(guides) + capture.control_guides
    n_nt = capture.control_guides + capture.absent_guides
    guides += [f"NT_{i + 1}" for i in range(n_nt)]
    first = {t: i * capture.guides_per_target for i, t in enumerate(targets)}
    first["control"] = len(targets) * capture.guides_per_target
    several = np.where(label == "control", capture.control_guides, capture.guides_per_target)
    own = np.array([first[name] for name in label]) + rng.integers(several)
    counts = sp.csr_matrix(adata.X)
    depth = np.maximum(np.asarray(counts.sum(1)).ravel(), 1.0)
    size = (depth / depth.mean()) ** capture.depth
    strength = capture.own * np.exp(capture.own_sd * rng.standard_normal(len(guides)))
    strength[n_used:] = 0
    mean = strength[own] * size
    drawn = rng.poisson(mean * rng.gamma(capture.dispersion, 1 / capture.dispersion, len(own)))
    of_cells = sp.csr_matrix((drawn, (np.arange(len(own)), own)), shape=(len(own), len(guides)))
    truth = []
    for batch in adata.obs["batch"].astype("category").cat.categories:
        cells = rng.permutation(np.flatnonzero(adata.obs["batch"] == batch))
        n_droplets = max(1, round(len(cells) / (1 + capture.multiplets)))
        droplet = np.arange(len(cells)) % n_droplets  # the last cells join the first droplets
        join = sp.csr_matrix(
            (np.ones(len(cells), np.int64), (droplet, cells)), shape=(n_droplets, len(own))
        )
        pool = np.asarray(of_cells[cells].sum(0)).ravel().astype(float)
        pool += 0.2 * pool.sum() / max(len(pool), 1) * (np.arange(len(pool)) >= n_used)
        ambient = capture.ambient * np.exp(capture.ambient_sd * rng.standard_normal())
        ambient = ambient * pool / max(pool.sum(), 1.0)
        of_droplets = sp.csr_matrix(rng.poisson(ambient, (n_droplets, len(pool)))) + join @ of_cells
        barcodes = _barcodes(rng, n_droplets)
        write = _write_h5 if kind == "h5" else _write_mtx
        features = _features(list(adata.var_names), guides)
        place = Path(folder) / str(batch)
        place.mkdir(parents=True, exist_ok=True)
        write(sp.csr_matrix(sp.hstack([join @ counts, of_droplets])), features, barcodes, place)
        truth.append(_truth(adata, batch, barcodes, droplet, cells, own, guides))
    return pd.concat(truth)


def _barcodes(rng: np.random.Generator, n: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(rng.choice(_BASES, 16)) + "-1"] = None
    return list(found)


def _features(genes: list[str], guides: list[str]) -> pd.DataFrame:
    names = [*genes, *guides]
    kinds = [_GENES] * len(genes) + [_GUIDES] * len(guides)
    return pd.DataFrame({"id": names, "name": names, "feature_type": kinds})


def _truth(
    adata: AnnData,
    batch: str,
    barcodes: list[str],
    droplet: np.ndarray,
    cells: np.ndarray,
    own: np.ndarray,
    guides: list[str],
) -> pd.DataFrame:
    rows = pd.DataFrame({"droplet": droplet, "guide": own[cells], "cell": adata.obs_names[cells]})
    rows["perturbation"] = adata.obs["perturbation"].astype(str).to_numpy()[cells]
    groups = rows.groupby("droplet", sort=True)
    table = pd.DataFrame(
        {
            "batch": str(batch),
            "guides": groups["guide"].agg(lambda g: "+".join(guides[i] for i in sorted(set(g)))),
            "n_cells": groups.size(),
            "cells": groups["cell"].agg("+".join),
            "perturbation": groups["perturbation"].first(),
        }
    )
    table.index = pd.Index([f"{batch}_{name}" for name in barcodes])
    return table


def _write_h5(
    counts: sp.csr_matrix, features: pd.DataFrame, barcodes: list[str], place: Path
) -> None:
    """The layout of Cell Ranger 3 and later: features × cells, compressed by cell."""
    with h5py.File(place / "filtered_feature_bc_matrix.h5", "w") as out:
        group = out.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"] = counts.data.astype(np.int32)
        group["indices"], group["indptr"] = counts.indices, counts.indptr
        group["shape"] = np.array((len(features), len(barcodes)), np.int32)
        columns = group.create_group("features")
        for name in features:
            columns[name] = features[name].to_numpy().astype("S")
        columns["genome"] = np.array(["simulated"] * len(features), dtype="S")


def _write_mtx(
    counts: sp.csr_matrix, features: pd.DataFrame, barcodes: list[str], place: Path
) -> None:
    with gzip.open(place / "matrix.mtx.gz", "wb") as out:
        scipy.io.mmwrite(out, sp.coo_matrix(counts.astype(np.int32).T))
    features.to_csv(place / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(barcodes).to_csv(place / "barcodes.tsv.gz", header=False, index=False)

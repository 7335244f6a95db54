"""Pseudotime of control cells, and of perturbed cells by their nearest controls (App. C.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean
from pyrocell.data.validation import check_counts, count_matrix
from pyrocell.errors import ScreenError, UnknownLabelError, warn
from pyrocell.screen.labels import control_suggestion, encode_labels

__all__ = ["assign_pseudotime", "pseudotime_stages"]

_TIP = 0.95  # which of the root cells, from the rest outwards: the outermost are often doublets
_CONNECTED = 0.9994  # eigenvalues above belong to separate parts of the graph, as scanpy has it


def assign_pseudotime(
    adata: AnnData,
    root: str | tuple[str, Any],
    *,
    control: str = "control",
    perturbation_key: str = "perturbation",
    key_added: str = "pseudotime",
    n_neighbors: int = 15,
    n_pcs: int = 30,
    n_dcs: int = 10,
    layer: str | None = None,
    use_rep: str | None = None,
    inplace: bool = False,
    seed: int = 0,
) -> pd.DataFrame | None:
    """Order cells along the trajectory of the controls (App. C.1; Lara-Astiaso et al. 2023).

    Diffusion pseudotime (Haghverdi et al. 2016, by scanpy) orders the control cells. Every cell
    then gets the mean pseudotime of the controls nearest to it. That includes the controls, which
    take theirs from *other* controls: so they are smoothed as perturbed cells are, and an inert
    perturbation has the distribution that controls have.

    Parameters
    ----------
    adata
        Cells × genes with raw counts.
    root
        Where the trajectory starts: the name of a control cell, or (column, value) of `.obs` that
        marks early cells, as in ``("cell_type", "HSC")``. Of the controls so marked, one of those
        farthest from all others is taken.
    control, perturbation_key
        Label of unperturbed cells, and the column that holds it.
    key_added
        Name of the first column, and beginning of the others'.
    n_neighbors
        Nearest controls, in the graph of the controls and to take pseudotime from.
    n_pcs, n_dcs
        Principal components of the controls, and diffusion components.
    layer
        Layer with the counts, `.X` when None.
    use_rep
        Key of `.obsm` to take instead of principal components of log1p counts at the controls'
        median depth, for example an embedding without batch effects. It must not have the effects
        of perturbations removed, as :meth:`pyrocell.PyroCell.get_latent_representation` has.
    inplace
        Write the columns into `adata.obs` and return None. Nothing else of `adata` is changed.
    seed
        Of the components.

    Returns
    -------
    DataFrame with a row per cell:

    - pseudotime: mean over the nearest controls, from 0 at the root to 1 at the farthest control
    - pseudotime_sd: standard deviation among them: how far apart the stages are that look alike
    - pseudotime_distance: mean distance to them, over what they have to theirs. About 1 on the
      trajectory; well above it, the cell has a state that controls do not have, and its
      pseudotime is that of the least unlike
    - pseudotime_dpt: the diffusion pseudotime itself, of controls; NaN for perturbed cells

    Raises
    ------
    UnknownLabelError
        If a column, layer, key, the control or the root is not there.
    CountError
        If the matrix does not hold raw counts.
    ScreenError
        If there are too few controls, or most of them cannot be reached from the root.

    Warns
    -----
    ScreenWarning
        If some controls cannot be reached from the root: they have no pseudotime and give none.
    """
    is_control = _controls(adata, perturbation_key, control)
    n_controls = int(is_control.sum())
    least = max(n_neighbors, n_dcs) + 2
    if n_neighbors < 2 or n_dcs < 1 or n_controls < least:
        raise ScreenError(
            f"{n_controls} control cells are too few for n_neighbors={n_neighbors} (at least 2) "
            f"and n_dcs={n_dcs} (at least 1), which need {least}"
        )
    start = _root_cells(adata, root, is_control, perturbation_key, control)
    rep = _representation(adata, is_control, layer, use_rep, n_pcs, seed)
    dpt = _diffusion_pseudotime(rep[is_control], start[is_control], n_neighbors, n_dcs)
    table = _transfer(rep, is_control, dpt, n_neighbors)
    table = table.rename(columns=lambda name: key_added + name).set_index(adata.obs_names)
    if not inplace:
        return table
    adata.obs[table.columns] = table
    return None


def pseudotime_stages(
    cells: AnnData | pd.DataFrame,
    n_stages: int = 5,
    *,
    key: str = "pseudotime",
    control: str = "control",
    perturbation_key: str = "perturbation",
) -> pd.Series:
    """Stages with equally many controls, as a column to register as `time_key` (t of App. C.1).

    A model of the stages compares perturbed with control cells *of the same stage*. What a
    perturbation does to the stage itself is taken out by that: read it from `retention`.

    Parameters
    ----------
    cells
        Cells with pseudotime, or their `.obs`.
    n_stages
        Stages, two or more.
    key, control, perturbation_key
        As in `assign_pseudotime`.

    Returns
    -------
    Series with a value per cell: the mean pseudotime of the controls of its stage. NaN without
    pseudotime; leave those cells out.

    Raises
    ------
    UnknownLabelError
        If a column or the control is not there.
    ScreenError
        If `n_stages` is below 2, or the controls have fewer distinct values.
    """
    obs = obs_table(cells) if isinstance(cells, AnnData) else cells
    is_control = _controls(cells, perturbation_key, control)
    value = pseudotime_of(obs, key)
    reference = value[is_control & np.isfinite(value)]
    if n_stages < 2 or len(np.unique(reference)) < n_stages:
        raise ScreenError(
            f"n_stages={n_stages} must be at least 2 and at most the number of different values "
            f"of the controls, {len(np.unique(reference))}"
        )
    edges = np.quantile(reference, np.arange(1, n_stages) / n_stages)
    stage = np.digitize(value, edges)
    means = pd.Series(reference).groupby(np.digitize(reference, edges)).mean()
    found = pd.Series(stage, obs.index).map(means)
    return found.where(np.isfinite(value)).rename(f"{key}_stage")


def pseudotime_of(obs: pd.DataFrame, key: str) -> np.ndarray:
    """The column of pseudotime as floats, or raise."""
    if key not in obs:
        raise UnknownLabelError(
            f'key="{key}" is not in .obs{did_you_mean(key, obs.columns)}; it is written by '
            "pyrocell.pseudotime.assign_pseudotime(adata, root=..., inplace=True)"
        )
    return obs[key].to_numpy(float)


def _controls(cells: AnnData | pd.DataFrame, key: str, control: str) -> np.ndarray:
    """Which cells are controls, or raise."""
    obs = cells.obs if isinstance(cells, AnnData) else cells
    if key not in obs:
        raise UnknownLabelError(
            f'perturbation_key="{key}" is not in .obs{did_you_mean(key, obs.columns)}'
        )
    codes, labels = encode_labels(obs[key], f'perturbation_key="{key}"')
    if control not in labels:
        raise UnknownLabelError(
            f'perturbation_key="{key}" has {len(labels)} labels but none equals '
            f'control="{control}"{control_suggestion(control, labels)}'
        )
    return codes == labels.index(control)


def _root_cells(
    adata: AnnData, root: str | tuple[str, Any], is_control: np.ndarray, key: str, control: str
) -> np.ndarray:
    """Which cells may be the root, all of them controls."""
    if isinstance(root, str):
        if root not in adata.obs_names:
            raise UnknownLabelError(
                f'root="{root}" is no cell of adata.obs_names; give the name of a control cell, or '
                'a column and a value that mark early cells, as in root=("cell_type", "HSC")'
            )
        marked, what = adata.obs_names == root, f'root="{root}"'
    else:
        column, value = root
        if column not in adata.obs:
            raise UnknownLabelError(
                f'root column "{column}" is not in .obs{did_you_mean(column, adata.obs.columns)}'
            )
        labels = adata.obs[column].astype(str)
        marked, what = (labels == str(value)).to_numpy(), f'root=("{column}", "{value}")'
        if not marked.any():
            there = did_you_mean(value, labels.unique())
            raise UnknownLabelError(f'no cell has "{value}" in root column "{column}"{there}')
    found = marked & is_control
    if not found.any():
        raise ScreenError(f'{what} marks no control cell ({key} == "{control}")')
    if found.sum() == is_control.sum():
        raise ScreenError(f"{what} marks every control cell, so nothing lies after it")
    return found


def _representation(
    adata: AnnData,
    is_control: np.ndarray,
    layer: str | None,
    use_rep: str | None,
    n_pcs: int,
    seed: int,
) -> np.ndarray:
    """Coordinates of all cells, (N, c): principal components of the controls, or the user's."""
    if use_rep is not None:
        if use_rep not in adata.obsm:
            there = did_you_mean(use_rep, adata.obsm)
            raise UnknownLabelError(f'use_rep="{use_rep}" is not in adata.obsm{there}')
        return np.asarray(adata.obsm[use_rep], float)
    check_counts(adata, layer, has_size_factor=False, warn_of_genes=False)
    counts = sp.csr_matrix(count_matrix(adata, layer), dtype=np.float64)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sp.diags_array(np.median(depth[is_control]) / depth) @ counts
    values = sp.csr_matrix(scaled)
    values = values.log1p()  # pyright: ignore[reportAttributeAccessIssue] made by scipy as it loads
    most = min(int(is_control.sum()), adata.n_vars) - 1
    pca = PCA(max(1, min(n_pcs, most)), svd_solver="arpack", random_state=seed)
    return pca.fit(values[is_control]).transform(values)


def _diffusion_pseudotime(
    rep: np.ndarray, start: np.ndarray, n_neighbors: int, n_dcs: int
) -> np.ndarray:
    """Pseudotime of the controls, (n,), 1 at its end; NaN where not connected with the root."""
    import scanpy as sc  # seconds to import; only this needs it

    cells = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(rep))]))
    cells.obsm["X_rep"] = rep
    # The kernel of the original method, which needs no compilation.
    sc.pp.neighbors(cells, n_neighbors, use_rep="X_rep", method="gauss")
    sc.tl.diffmap(cells, n_comps=max(3, n_dcs + 1))  # the first is constant; scanpy wants three
    cells.uns["iroot"] = _tip(cells, np.flatnonzero(start))
    sc.tl.dpt(cells, n_dcs=n_dcs + 1)
    found = obs_table(cells)["dpt_pseudotime"].to_numpy(float)
    reached = np.isfinite(found)
    if reached.mean() < 0.5:
        raise ScreenError(
            f"{(~reached).sum()} of {len(found)} control cells cannot be reached from the root: "
            "the graph of nearest neighbours has separate parts; raise n_neighbors="
            f"{n_neighbors}, or leave out cell types that are no part of the trajectory"
        )
    if not reached.all():
        warn(
            f"{(~reached).sum()} of {len(found)} control cells cannot be reached from the root and "
            "have no pseudotime; cells like them get that of other controls, with a large "
            "pseudotime_distance"
        )
    found = np.where(reached, found, np.nan)
    return found / max(np.nanmax(found), 1e-300)


def _tip(cells: AnnData, candidates: np.ndarray) -> int:
    """Among the cells that may be the root, one of the farthest from all others."""
    if len(candidates) == 1:
        return int(candidates[0])
    value = cells.uns["diffmap_evals"]
    inside = (value < _CONNECTED) & (value > 0)
    place = cells.obsm["X_diffmap"][:, inside] * (value[inside] / (1 - value[inside]))
    # On the line from the others to them: what is far away elsewhere is odd, not early.
    others = np.delete(place, candidates, axis=0).mean(axis=0)
    along = (place[candidates] - others) @ (np.median(place[candidates], axis=0) - others)
    return int(candidates[np.argsort(along)[round(_TIP * (len(candidates) - 1))]])


def _transfer(
    rep: np.ndarray, is_control: np.ndarray, dpt: np.ndarray, n_neighbors: int
) -> pd.DataFrame:
    """Mean, spread and relative distance over the nearest controls, of every cell."""
    reached = np.isfinite(dpt)
    giving = np.flatnonzero(is_control)[reached]
    k = min(n_neighbors, len(giving) - 1)
    search = NearestNeighbors(n_neighbors=k).fit(rep[giving])
    far, near = np.empty((len(rep), k)), np.empty((len(rep), k), dtype=int)
    far[giving], near[giving] = search.kneighbors()  # without the cell itself
    taking = np.setdiff1d(np.arange(len(rep)), giving)
    if len(taking):
        far[taking], near[taking] = search.kneighbors(rep[taking])
    value = dpt[reached][near]
    usual = far.mean(axis=1)[giving][near].mean(axis=1)  # how far those are from their own nearest
    own = np.full(len(rep), np.nan)
    own[is_control] = dpt
    table = pd.DataFrame(
        {
            "": value.mean(axis=1),
            "_sd": value.std(axis=1, ddof=1),
            "_distance": far.mean(axis=1) / np.maximum(usual, 1e-300),
            "_dpt": own,
        }
    )
    island = np.flatnonzero(is_control)[~reached]
    table.loc[island, ["", "_sd"]] = np.nan
    return table

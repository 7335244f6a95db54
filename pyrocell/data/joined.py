"""The modalities of a MuData as one AnnData: cells of any, features of all, and who has what.

The AnnData says of itself, in `.uns["pyrocell_views"]` and `.obsm["pyrocell_seen"]`, which
features are of which view and which cells have it, so that it is registered, written and read like
any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem
from mudata import MuData

from pyrocell._compat import obs_table
from pyrocell._core.messages import did_you_mean, join_names
from pyrocell.data.backed import BackedCounts, block_rows, count_blocks, is_stored, read_backed
from pyrocell.data.validation import as_csr, check_counts, count_matrix
from pyrocell.errors import CountError, ScreenError, UnknownLabelError
from pyrocell.screen.feature_views import FeatureViews

__all__ = [
    "SEEN",
    "VIEWS",
    "again",
    "as_mudata",
    "features_of",
    "joined",
    "joint_of",
    "log_depths",
    "plain",
    "remember",
]

VIEWS, SEEN = "pyrocell_views", "pyrocell_seen"
BATCH = "batch of views"


def joined(
    mdata: MuData,
    modalities: Mapping[str, str],
    kinds: Mapping[str, str],
    depths: Mapping[str, str],
    batch_key: str | Mapping[str, str] | None,
    layers: Mapping[str, str | None] | None = None,
    needed: Collection[str] = (),
    controls: Mapping[str, Sequence[str]] | None = None,
    path: str | Path | None = None,
    links: pd.DataFrame | None = None,
) -> tuple[ad.AnnData, str | None]:
    """One AnnData of all modalities asked for, and the column of batches in it.

    Parameters
    ----------
    mdata
        Left as it is.
    modalities
        Name of each view, and of the modality that it is measured in.
    kinds
        Name of each view, and of what its counts are, see `pyrocell.views.VIEWS`.
    depths
        What the depth of a cell in a view is: "total" counts, "open" for the number of features
        with any, "one" where there is none.
    batch_key
        A column, or one for each view; batches of a cell that differ between views are then one
        batch of the two together.
    layers
        Layer of the counts of a view; default: `.X`.
    needed
        Columns that will be asked for.
    controls
        Of views, features that measure nothing of a cell's state.
    links
        Columns first and second, names of features of the first view and of another that are
        expected to respond alike, view, that other, and weight.
    path
        New .h5ad file that the AnnData is written to and whose counts stay there, read and written
        in blocks of cells; default: all in memory.

    Raises
    ------
    ScreenError, UnknownLabelError, CountError
        If a modality is not there, if two features have one name within a view, if cells say two
        things of one column, if a view holds no counts.
    """
    if not isinstance(mdata, MuData):
        raise ScreenError(
            f"mdata is a {type(mdata).__name__}, not a MuData; an AnnData is registered with "
            "PyroCell.setup_anndata"
        )
    if not modalities:
        raise ScreenError('no view was named; name a modality, such as rna="rna"')
    parts = {}
    for view, name in modalities.items():
        if name not in mdata.mod:
            raise UnknownLabelError(
                f'{view}="{name}" is not a modality of mdata{did_you_mean(name, list(mdata.mod))}'
            )
        parts[view] = mdata.mod[name]
    cells = pd.Index(mdata.obs_names)
    seen = np.stack([cells.isin(part.obs_names) for part in parts.values()], 1)
    some = np.flatnonzero(seen.any(1))
    cells, seen = cells[some], seen[some]
    counts, var = [], []
    for view, part in parts.items():
        mine = _Counts.of(part, modalities[view], (layers or {}).get(view), cells)
        counts.append(replace(mine, has_depth=depths[view] != "one"))
        table = part.var.copy()
        table = table[[c for c in table if c != "feature_types"]]
        table["view"], table["feature"] = view, part.var_names.astype(str)
        var.append(table)
    features = pd.concat(var)
    features.index = _unique([(v, f) for v, f in zip(features["view"], features["feature"])])
    obs = _columns(mdata, parts, cells, needed)
    out = ad.AnnData(
        _side_by_side(counts, slice(None)) if path is None else None,
        obs=obs,
        var=features[["view", "feature", *_common(var)]],
    )
    out.obsm[SEEN] = seen
    out.uns[VIEWS] = {
        "names": list(parts),
        "kinds": [kinds[view] for view in parts],
        "depths": [depths[view] for view in parts],
        "modalities": list(modalities.values()),
        # as it was asked for, so that a model read from a file can do it again
        "batch_key": dict(batch_key) if isinstance(batch_key, Mapping) else batch_key or "",
        "layers": {view: layer for view, layer in (layers or {}).items() if layer is not None},
        "needed": sorted({str(name) for name in needed if name}),
        "sizes": [part.n_vars for part in parts.values()],
        "controls": {
            view: [str(name) for name in names] for view, names in (controls or {}).items()
        },
    }
    if links is not None:
        out.uns[VIEWS]["links"] = {c: links[c].to_numpy() for c in links}
    _controls(out)  # all of them are there
    if isinstance(batch_key, Mapping):
        out.obs[BATCH] = _batches(out, parts, batch_key)
    if path is not None:
        out = _written(out, counts, Path(path))
    return out, BATCH if isinstance(batch_key, Mapping) else batch_key


@dataclass(frozen=True)
class _Counts:
    """Counts of a view: a modality's, the row of each cell in it, -1 where a cell lacks it."""

    counts: Any
    row: np.ndarray
    name: str
    cells: pd.Index
    has_depth: bool = True

    @classmethod
    def of(cls, part: ad.AnnData, name: str, layer: str | None, cells: pd.Index) -> _Counts:
        """Raises unless a modality holds counts; those in a file are checked as they are read."""
        try:
            matrix = count_matrix(part, layer, stored=True)
            if is_stored(matrix):
                counts = BackedCounts(matrix, f'the counts of mdata["{name}"]')
            else:
                check_counts(part, layer, has_size_factor=True, warn_of_genes=False)
                counts = as_csr(matrix)
        except CountError as error:
            raise CountError(str(error).replace("adata", f'mdata["{name}"]')) from None
        return cls(counts, part.obs_names.get_indexer(cells), name, cells)

    def block(self, cells: slice) -> sp.csr_matrix:
        """Rows of some cells, empty where one lacks the view."""
        row = self.row[cells]
        has = np.flatnonzero(row >= 0)
        counts = sp.csr_matrix(self.counts[row[has]])
        if self.has_depth:
            total = np.asarray(counts.sum(1)).ravel()
            empty = np.flatnonzero(total <= 0)
            if len(empty):
                first = self.cells[cells][has[empty[0]]]
                raise CountError(
                    f'{len(empty)} of {len(has)} cells have no counts in mdata["{self.name}"] '
                    f"(first: {first}); leave them out of this modality, and they count as not "
                    f'measured there: mdata.mod["{self.name}"] = ...'
                )
        length = np.zeros(len(row), np.int64)
        length[has] = np.diff(counts.indptr)
        start = np.concatenate([[0], np.cumsum(length)])
        shape = (len(row), self.counts.shape[1])
        return sp.csr_matrix((counts.data, counts.indices, start), shape)


def _side_by_side(counts: Sequence[_Counts], cells: slice) -> sp.csr_matrix:
    """Counts of all views of some cells."""
    blocks = [each.block(cells) for each in counts]
    out = sp.csr_matrix(sp.hstack(blocks, format="csr"), dtype=np.float32)
    out.sort_indices()
    return out


def _written(adata: ad.AnnData, counts: Sequence[_Counts], path: Path) -> ad.AnnData:
    """An AnnData without counts with those of all views, in a file."""
    if path.suffix != ".h5ad":
        raise ScreenError(f'path="{path}" must be a new file that ends in .h5ad')
    if path.exists():
        raise ScreenError(f'path="{path}" is there already; remove it, or name another')
    adata.write_h5ad(path)
    step = block_rows(adata.n_vars)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        for start in range(0, adata.n_obs, step):
            block = _side_by_side(counts, slice(start, start + step))
            if start:
                stored: Any = file["X"]
                sparse_dataset(stored).append(block)  # pyright: ignore[reportAttributeAccessIssue]
            else:
                write_elem(file, "X", block)
    whole = {"obs": adata.obs, "var": adata.var, "obsm": dict(adata.obsm), "uns": dict(adata.uns)}
    return ad.AnnData(read_backed(path).X, **whole)


def again(mdata: MuData, kept: Mapping[str, Any]) -> ad.AnnData:
    """The AnnData of a MuData joined as another was, by what that says of itself in `.uns`."""
    names = list(kept["names"])
    batch_key = kept["batch_key"] or None
    return joined(
        mdata,
        dict(zip(names, kept["modalities"], strict=True)),
        dict(zip(names, kept["kinds"], strict=True)),
        dict(zip(names, kept["depths"], strict=True)),
        batch_key if batch_key is None or isinstance(batch_key, str) else dict(batch_key),
        dict(kept["layers"]),
        list(kept["needed"]),
        kept.get("controls"),
        links=pd.DataFrame(kept["links"]) if "links" in kept else None,
    )[0]


def _controls(adata: ad.AnnData) -> tuple[int, ...]:
    """Positions of features that measure nothing of a cell's state."""
    places = []
    for view, names in adata.uns[VIEWS].get("controls", {}).items():
        own = np.flatnonzero(adata.var["view"].astype(str) == view)
        features = pd.Index(adata.var["feature"].astype(str).to_numpy()[own])
        for name in names:
            if name not in features:
                raise UnknownLabelError(
                    f'"{name}" is not a feature of {view}{did_you_mean(name, list(features))}'
                )
            places.append(int(own[features.get_loc(name)]))
    return tuple(sorted(places))


def _links(adata: ad.AnnData) -> sp.csr_array | None:
    """(G, G) weights of features linked to those of the first view, rows of which add to 1."""
    kept = adata.uns[VIEWS].get("links")
    if kept is None:
        return None
    view = adata.var["view"].astype(str)
    place = {key: i for i, key in enumerate(zip(view, adata.var["feature"].astype(str)))}
    first = str(adata.uns[VIEWS]["names"][0])
    pairs = zip(kept["first"], kept["view"], kept["second"], kept["weight"])
    found = [(place.get((v, b)), place.get((first, a)), w) for a, v, b, w in pairs]
    found = [each for each in found if None not in each]
    rows, columns, weight = (np.array(each) for each in zip(*found)) if found else ([], [], [])
    out = sp.csr_array((weight, (rows, columns)), (adata.n_vars, adata.n_vars), dtype=float)
    total = np.asarray(out.sum(1)).ravel()
    return sp.csr_array(sp.diags_array(1 / np.where(total > 0, total, 1.0)) @ out)


def _common(tables: list[pd.DataFrame]) -> list[str]:
    """Columns that some modality's features have beside those set here."""
    names = dict.fromkeys(name for table in tables for name in table)
    return [str(name) for name in names if name not in ("view", "feature")]


def _unique(names: list[tuple[str, str]]) -> pd.Index:
    """Names of features: their own, with the view before it where another view has it too."""
    own = pd.Series([feature for _, feature in names])
    twice = pd.DataFrame(names).duplicated()
    if twice.any():
        view, feature = names[int(np.flatnonzero(twice)[0])]
        raise ScreenError(
            f'the features of {view} have the name "{feature}" more than once; make them unique '
            "with var_names_make_unique()"
        )
    shared = own.duplicated(keep=False)
    first = names[0][0]
    return pd.Index(
        [
            f"{view}:{feature}" if again and view != first else feature
            for (view, feature), again in zip(names, shared, strict=True)
        ]
    )


def _columns(
    mdata: MuData, parts: Mapping[str, ad.AnnData], cells: pd.Index, needed: Collection[str]
) -> pd.DataFrame:
    """Columns of cells: those of `mdata.obs`, and those of its modalities by their own names.

    A column of which views of a cell say different things is of no use for all of them together; it
    is refused where it is `needed`, and left out otherwise.
    """
    pulled = {f"{name}:{column}" for name, part in mdata.mod.items() for column in part.obs}
    own = mdata.obs[[name for name in mdata.obs if name not in pulled]]
    out: dict[str, pd.Series] = {}
    differ: set[str] = set()
    for view, table in {"mdata": own, **{v: part.obs for v, part in parts.items()}}.items():
        for name in table:
            column = table[name].reindex(cells)
            if name not in out:
                out[name] = column
                continue
            before = out[name]
            both = (before.notna() & column.notna()).to_numpy()
            left, right = (x[both].astype(object).to_numpy() for x in (before, column))
            unequal = left != right
            if unequal.any():
                if name in needed:
                    i = int(np.flatnonzero(unequal)[0])
                    cell = cells[both][i]
                    raise ScreenError(
                        f'the column "{name}" of cell {cell} is "{left[i]}" and, in {view}, '
                        f'"{right[i]}"; cells are the same in all views, so make one of them: '
                        f'mdata.obs["{name}"] = ... , and take it out of the modalities'
                        + (", or name the batch of each view" if name == "batch" else "")
                    )
                differ.add(name)
            elif before.isna().any():
                filled = before.astype(object).where(before.notna(), column.astype(object))
                out[name] = filled.infer_objects()
    return pd.DataFrame({k: v for k, v in out.items() if k not in differ}, index=cells)


def _batches(
    joint: ad.AnnData, parts: Mapping[str, ad.AnnData], batch_key: Mapping[str, str]
) -> np.ndarray:
    """Batch of each cell when views have batches of their own: the two names together."""
    unknown = [view for view in batch_key if view not in parts]
    if unknown:
        raise UnknownLabelError(
            f'batch_key names the view "{unknown[0]}"{did_you_mean(unknown[0], list(parts))}; '
            f"there are {join_names(list(parts))}"
        )
    labels = []
    for view, key in batch_key.items():
        if key not in parts[view].obs:
            raise UnknownLabelError(
                f'batch_key of {view}="{key}" is not a column of its .obs'
                f"{did_you_mean(key, parts[view].obs.columns)}"
            )
        column = obs_table(parts[view])[key].reindex(joint.obs_names)
        labels.append(column.astype(object).where(column.notna(), "").astype(str).to_numpy())
    return _paired(np.stack(labels, 1))


def _paired(labels: np.ndarray) -> np.ndarray:
    """Names of batches of cells from those of each view (N, V), "" where a cell lacks a view.

    A cell that lacks a view takes the batch there that most cells with its other batches have: the
    view says nothing of it, and it would else be in a batch of its own in the views that it has.
    """
    table = pd.DataFrame(labels)
    known = table[(table != "").all(axis=1)].value_counts().index.to_frame(index=False)
    names = {}
    for mine in table.drop_duplicates().itertuples(index=False, name=None):
        has = [i for i, label in enumerate(mine) if label]
        alike = known[(known[has] == [mine[i] for i in has]).all(axis=1)]
        whole = tuple(alike.iloc[0]) if len(alike) else mine
        names[mine] = " | ".join(dict.fromkeys(label for label in whole if label))
    return np.array([names[mine] for mine in table.itertuples(index=False, name=None)])


def features_of(adata: ad.AnnData) -> tuple[FeatureViews, list[str]] | None:
    """Views of an AnnData that `joined` made, and what their counts are; None of any other.

    Raises
    ------
    ScreenError
        If features were left out or moved since.
    """
    kept: Any = adata.uns.get(VIEWS)
    if kept is None:
        return None
    names = tuple(str(name) for name in kept["names"])
    features = FeatureViews(
        names, tuple(int(n) for n in kept["sizes"]), _controls(adata), _links(adata)
    )
    found = adata.var["view"].astype(str).to_numpy() if "view" in adata.var else None
    if found is None or not np.array_equal(found, features.labels().astype(str)):
        raise ScreenError(
            "the features of adata are not those of its views any more; choose features in the "
            "modalities, and register the MuData again"
        )
    return features, [str(kind) for kind in kept["kinds"]]


def plain(value: Any) -> Any:
    """What `.uns` says, in lists and numbers that JSON takes, also when read from a file."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def log_depths(adata: ad.AnnData, counts: Any, features: FeatureViews) -> np.ndarray:
    """(N, V) float32 log depth of cells in each view, −inf where it was not measured."""
    seen, kinds = np.asarray(adata.obsm[SEEN], bool), list(adata.uns[VIEWS]["depths"])
    total, number = np.ones(seen.shape), np.ones(seen.shape)
    cells = np.zeros(counts.shape[1])  # in which a feature has any
    for rows, block in count_blocks(counts):
        cells += block.getnnz(axis=0)
        for v, part in enumerate(features.slices):
            own = block[:, part]
            total[rows, v], number[rows, v] = np.asarray(own.sum(1)).ravel(), own.getnnz(axis=1)
    out = np.zeros(seen.shape)
    for v, (part, kind) in enumerate(zip(features.slices, kinds, strict=True)):
        if kind != "one":
            share = cells[part] / max(len(seen), 1)
            depth = total[:, v] if kind == "total" else _open_depths(number[:, v], share)
            out[:, v] = np.log(np.maximum(depth, 1e-3))
    return np.where(seen, out, -np.inf).astype(np.float32)


def _open_depths(number: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(N,) fragments at which as many features are expected to have any as have some, `number`.

    Fragments fall on features in proportion to how often these are open: of n cells, features have
    a rate r with a share 1 − exp(−r) of them open. A depth d in units of the usual then leaves
    Σ 1 − exp(−d r) open, which grows with d.
    """
    rate = -np.log1p(-np.clip(share, 1e-6, 1 - 1e-6))
    grid = np.exp(np.linspace(np.log(1e-3), np.log(1e3), 400))
    expected = -np.expm1(-grid[:, None] * rate).sum(1)
    return np.interp(number, expected, grid) * rate.sum()


def as_mudata(adata: ad.AnnData, features: FeatureViews) -> MuData:
    """An answer over the features of all views as one modality each, by the names of views."""
    parts = {}
    for name, part in zip(features.names, features.slices, strict=True):
        own = adata[:, part].copy()
        if "feature" in own.var:
            own.var_names = own.var["feature"].astype(str).to_list()
        parts[name] = own
    return MuData(parts)


_JOINED: dict[int, ad.AnnData] = {}  # by the identity of the MuData, for as long as it is there


def remember(mdata: MuData, adata: ad.AnnData) -> None:
    """Keep the AnnData that a MuData was made into, until the MuData is gone."""
    key = id(mdata)
    if key not in _JOINED:
        weakref.finalize(mdata, _JOINED.pop, key, None)
    _JOINED[key] = adata


def joint_of(data: Any, kept: Mapping[str, Any] | None = None) -> ad.AnnData:
    """The AnnData of a registered MuData; any other AnnData as it is.

    `kept` says how a model's was made, for one that was not registered.

    Raises
    ------
    ScreenError
        If a MuData was not registered.
    """
    if not isinstance(data, MuData):
        return data
    if id(data) not in _JOINED and kept:
        remember(data, again(data, kept))
    if id(data) not in _JOINED:
        raise ScreenError("mdata is not registered; call PyroCell.setup_mudata(mdata, ...) first")
    return _JOINED[id(data)]

"""What happens to a screen on its way: changes of its form, and damages of its content.

Each mutation takes cells that are clean, the arguments of `setup_anndata`, a random generator and
an empty folder, and returns cells and arguments. The kinds:

`FORMS`
    the same screen in another form; what is read must be the same.
`WARNED`
    cells that can be fitted, where something is probably not as meant; a word must be said.
`REFUSED`
    cells that cannot be read; the error must say what the pattern beside the mutation says.
`LATER`
    changes of registered cells; the model must refuse.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import pyrocell

Cells, Setup, Rng = ad.AnnData, dict[str, Any], np.random.Generator
Mutation = Callable[[Cells, Setup, Rng, Path], tuple[Cells, Setup]]

GENES = ("ARX", "BTK", "CDX2")


def clean_screen(rng: Rng) -> tuple[Cells, Setup]:
    """Three knockouts and a pair, two media, two times, two batches, a donor: 96 cells or more."""
    labels = ["control", *GENES, "ARX+BTK"]
    rows = [
        (p, m, t, b)
        for p in labels
        for m in ("baseline", "IFNG")
        for t in (1.0, 4.0)
        for b in ("b1", "b2")
        for _ in range(int(rng.integers(2, 4)))
    ]
    obs = pd.DataFrame(rows, columns=["perturbation", "media", "hours", "batch"])
    obs = obs.iloc[rng.permutation(len(obs))]
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs["donor"] = rng.choice(["d1", "d2"], len(obs))
    obs["age"] = rng.normal(40.0, 9.0, len(obs))
    obs["depth"] = rng.uniform(500.0, 2000.0, len(obs))
    genes = [*GENES, *(f"g{i}" for i in range(int(rng.integers(5, 12))))]
    mean = np.exp(rng.normal(0.5, 0.8, len(genes))) * rng.gamma(4.0, 0.25, (len(obs), 1))
    counts = rng.poisson(mean + 0.3).astype(np.float32)
    counts[:, 0] += 1  # no cell and no gene is empty
    cells = ad.AnnData(sp.csr_matrix(counts), obs, pd.DataFrame(index=genes))
    return cells, {
        "media_key": "media",
        "time_key": "hours",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
    }


FORMS: dict[str, Mutation] = {}
WARNED: dict[str, tuple[Mutation, str]] = {}
REFUSED: dict[str, tuple[Mutation, str]] = {}
LATER: dict[str, tuple[Mutation, str]] = {}


def _form(change: Mutation) -> Mutation:
    FORMS[change.__name__] = change
    return change


def _counts(kind: str, of: Callable[[sp.csr_matrix, Rng], Any]) -> None:
    def change(cells, setup, rng, folder):
        cells.X = of(sp.csr_matrix(cells.X), rng)
        return cells, setup

    FORMS[f"counts_{kind}"] = change


# ---------------------------------------------------------------- the same screen in another form
def _strided(x: sp.csr_matrix, rng: Rng) -> np.ndarray:
    wide = np.zeros((x.shape[0], 2 * x.shape[1]))
    wide[:, ::2] = x.toarray()
    return wide[:, ::2]


def _unsorted(x: sp.csr_matrix, rng: Rng) -> sp.csr_matrix:
    indices, data = x.indices.copy(), x.data.copy()
    for first, last in zip(x.indptr, x.indptr[1:], strict=False):
        order = first + rng.permutation(last - first)
        indices[first:last], data[first:last] = indices[order], data[order]
    return sp.csr_matrix((data, indices, x.indptr), shape=x.shape)


def _split(x: sp.csr_matrix, rng: Rng) -> sp.csr_matrix:
    """A value in two parts, and zeros that are stored."""
    part = x.copy()
    part.data = np.floor(part.data * rng.uniform(0, 1, len(part.data)))
    rows, columns = np.nonzero(np.ones(x.shape))
    whole = np.asarray(x[rows, columns]).ravel()
    first = np.asarray(part[rows, columns]).ravel()
    data = np.stack([first, whole - first], 1).ravel()
    return sp.csr_matrix(
        (data, np.repeat(columns, 2), np.arange(x.shape[0] + 1) * 2 * x.shape[1]), shape=x.shape
    )


def _frozen(x: sp.csr_matrix, rng: Rng) -> np.ndarray:
    dense = x.toarray()
    dense.flags.writeable = False
    return dense


def _long_indices(x: sp.csr_matrix, rng: Rng) -> sp.csr_matrix:
    x = x.copy()
    x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    return x


for _name, _of in {
    "dense_double": lambda x, rng: x.toarray().astype(np.float64),
    "dense_integer": lambda x, rng: x.toarray().astype(np.int64),
    "dense_byte": lambda x, rng: x.toarray().astype(np.uint8),
    "dense_half": lambda x, rng: x.toarray().astype(np.float16),
    "big_endian": lambda x, rng: x.toarray().astype(">f4"),
    "by_columns": lambda x, rng: np.asfortranarray(x.toarray()),
    "strided": _strided,
    "frozen": _frozen,
    "csc": lambda x, rng: x.tocsc(),
    "csr_array": lambda x, rng: sp.csr_array(x),
    "csc_integer": lambda x, rng: x.tocsc().astype(np.int32),
    "unsigned": lambda x, rng: x.astype(np.uint16),
    "unsorted": _unsorted,
    "split": _split,
    "long_indices": _long_indices,
}.items():
    _counts(_name, _of)


@_form
def counts_in_a_layer(cells, setup, rng, folder):
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X.toarray()) if rng.integers(2) else None
    return cells, setup | {"layer": "counts"}


_LABELS = ("perturbation", "media", "batch", "donor")


def _label(name: str, of: Callable[[pd.Series, Rng], Any]) -> None:
    def change(cells, setup, rng, folder):
        column = rng.choice(_LABELS)
        cells.obs[column] = of(cells.obs[column].astype(str), rng)
        return cells, setup

    FORMS[f"labels_{name}"] = change


def _spaced(labels: pd.Series, rng: Rng) -> pd.Series:
    return labels.map({v: " " * rng.integers(2) + v + " " * rng.integers(3) for v in set(labels)})


def _unused(labels: pd.Series, rng: Rng) -> pd.Categorical:
    return pd.Categorical(labels, ["nobody", *sorted(set(labels))], ordered=True)


for _name, _of in {
    "category": lambda v, rng: v.astype("category"),
    "unused_and_ordered": _unused,
    "object": lambda v, rng: v.astype(object),
    "string": lambda v, rng: v.astype("string"),
    "spaced": _spaced,
    "numpy": lambda v, rng: v.to_numpy(dtype=str),
    "category_of_string": lambda v, rng: v.astype("string").astype("category"),
}.items():
    _label(_name, _of)


@_form
def columns_renamed(cells, setup, rng, folder):
    name = str(rng.choice(["my column", "größe", "x/y", "50%", "_p", "index ", "a\tb"]))
    role = str(rng.choice(["perturbation", "batch", "media"]))
    cells.obs[name] = cells.obs.pop(role)
    return cells, setup | {f"{role}_key": name}


@_form
def columns_beside(cells, setup, rng, folder):
    cells.obs["mixed"] = [("a", 1, None, 2.5)[i % 4] for i in range(cells.n_obs)]
    cells.obs["lists"] = [[i] for i in range(cells.n_obs)]
    cells.obs["empty"] = np.nan
    cells.obs["when"] = pd.Timestamp("2026-01-01")
    cells.uns["function"] = len
    cells.obsm["far"] = rng.normal(size=(cells.n_obs, 3))
    cells.varm["far"] = rng.normal(size=(cells.n_vars, 2))
    cells.var["odd"] = [{"a": 1}] * cells.n_vars
    return cells, setup


@_form
def columns_of_an_earlier_registration(cells, setup, rng, folder):
    earlier = cells.copy()
    pyrocell.PyroCell.setup_anndata(earlier, **setup)
    return (earlier.copy() if rng.integers(2) else earlier), setup


@_form
def times_as(cells, setup, rng, folder):
    kinds = [np.float32, np.int64, "Int64", "Float64", "category"]
    cells.obs["hours"] = cells.obs["hours"].astype(kinds[rng.integers(len(kinds))])
    return cells, setup


@_form
def ages_as(cells, setup, rng, folder):
    cells.obs["age"] = cells.obs["age"].astype("Float64")
    return cells, setup


@_form
def names_of_cells(cells, setup, rng, folder):
    names = [
        np.arange(cells.n_obs).astype(str),
        pd.Index([f"ü-{i}/1" for i in range(cells.n_obs)], name="barcode"),
        pd.Index([f"c{i // 2}" for i in range(cells.n_obs)]),  # not unique
        pd.CategoricalIndex([f"c{i}" for i in range(cells.n_obs)]),
    ]
    cells.obs.index = names[rng.integers(len(names))]
    return cells, setup


@_form
def raw_beside(cells, setup, rng, folder):
    cells.raw = cells.copy()
    return cells, setup


@_form
def view_of_more_cells(cells, setup, rng, folder):
    more = ad.concat([cells, cells], index_unique="-", merge="same")
    return more[: cells.n_obs], setup


@_form
def view_of_more_genes(cells, setup, rng, folder):
    more = ad.concat([cells, cells[:, ::-1].copy()], axis=1, merge="first")
    more.var_names = [*cells.var_names, *(f"{name}-2" for name in cells.var_names[::-1])]
    return more[:, : cells.n_vars], setup


@_form
def joined_again(cells, setup, rng, folder):
    at = int(rng.integers(1, cells.n_obs))
    return ad.concat([cells[:at], cells[at:]], merge="same"), setup


@_form
def copied_by_pickle(cells, setup, rng, folder):
    return pickle.loads(pickle.dumps(cells)), setup


@_form
def through_h5ad(cells, setup, rng, folder):
    kind = [None, "gzip", "lzf"][rng.integers(3)]
    cells.write_h5ad(folder / "cells.h5ad", compression=kind)
    return ad.read_h5ad(folder / "cells.h5ad"), setup


@_form
def through_zarr(cells, setup, rng, folder):
    cells.write_zarr(folder / "cells.zarr")
    return ad.read_zarr(folder / "cells.zarr"), setup


@_form
def backed_by_h5ad(cells, setup, rng, folder):
    if rng.integers(2):
        cells.X = cells.X.toarray()
    cells.write_h5ad(folder / "cells.h5ad")
    return pyrocell.read_backed(folder / "cells.h5ad"), setup


@_form
def backed_by_zarr(cells, setup, rng, folder):
    if rng.integers(2):
        cells.X = cells.X.toarray()
    cells.write_zarr(folder / "cells.zarr")
    return pyrocell.read_backed(folder / "cells.zarr"), setup


@_form
def backed_by_anndata(cells, setup, rng, folder):
    cells.write_h5ad(folder / "cells.h5ad")
    return ad.read_h5ad(folder / "cells.h5ad", backed="r"), setup


@_form
def controls_of_several_names(cells, setup, rng, folder):
    labels = cells.obs["perturbation"].astype(str).to_numpy(dtype=object)
    at = np.flatnonzero(labels == "control")
    labels[at[::2]] = "control_2"
    cells.obs["perturbation"] = labels
    ways = [["control", "control_2"], ("control", "control_*"), np.array(["control", "control_2"])]
    return cells, setup | {"control": ways[rng.integers(3)]}


@_form
def combinations_of_another_sign(cells, setup, rng, folder):
    sign = str(rng.choice(["_", "|", ",", ";", "&", " and "]))
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).str.replace("+", sign)
    return cells, setup | {"combination_separator": sign}


@_form
def genes_of_a_column(cells, setup, rng, folder):
    cells.var["symbol"] = cells.var_names.to_numpy()
    return cells, setup | {"gene_symbol_key": "symbol"}


@_form
def types_said_in_a_column(cells, setup, rng, folder):
    cells.obs["kind"] = str(rng.choice(["knockout", "KO", "crispr-ko"]))
    return cells, setup | {"perturbation_type_key": "kind"}


@_form
def genes_alone_among_features(cells, setup, rng, folder):
    cells.var["feature_types"] = "Gene Expression"
    return cells, setup


@_form
def arguments_as_lists(cells, setup, rng, folder):
    return cells, setup | {
        "categorical_covariate_keys": "donor",
        "continuous_covariate_keys": ("age",),
    }


# ---------------------------------------------------------------- a word must be said
def _warned(says: str) -> Callable[[Mutation], Mutation]:
    def keep(change: Mutation) -> Mutation:
        WARNED[change.__name__] = change, says
        return change

    return keep


def _relabelled(cells: Cells, column: str, at: np.ndarray, label: Any) -> None:
    labels = cells.obs[column].astype(object).to_numpy()
    labels[at] = label
    cells.obs[column] = labels


def _some(cells: Cells, rng: Rng, n: int = 3) -> np.ndarray:
    return rng.choice(cells.n_obs, n, replace=False)


@_warned("leftovers of guide calling")
def leftovers(cells, setup, rng, folder):
    name = rng.choice(["multiplet", "unassigned", "Negative", "doublet", "unknown", "Unassigned"])
    _relabelled(cells, "perturbation", _some(cells, rng, 9), str(name))
    return cells, setup


@_warned("look like controls")
def controls_beside_the_control(cells, setup, rng, folder):
    name = rng.choice(["Control", "non-targeting", "NT_1", "safe-targeting", "AAVS1", "scramble"])
    at = np.flatnonzero(cells.obs["perturbation"] == "control")[::2]
    _relabelled(cells, "perturbation", at, str(name))
    return cells, setup


@_warned("other labels joined by")
def combinations_not_split(cells, setup, rng, folder):
    sign = str(rng.choice(["_", "|", ",", ";", "&"]))
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).str.replace("+", sign)
    return cells, setup


@_warned('split at "\\+"')
def strands(cells, setup, rng, folder):
    form = str(rng.choice(["{}_+_1234.5", "chr1:100-200(+)_{}"]))
    labels = cells.obs["perturbation"].astype(str).str.replace("+", "_")
    cells.obs["perturbation"] = [v if v == "control" else form.format(v) for v in labels]
    return cells, setup


@_warned("gene_symbol_key")
def genes_under_other_names(cells, setup, rng, folder):
    cells.var["symbol"] = cells.var_names.to_numpy()
    cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    if rng.integers(2):
        del cells.var["symbol"]
    return cells, setup


@_warned("guides by their names")
def guides_among_genes(cells, setup, rng, folder):
    names = cells.var_names.to_list()
    names[-2:] = ["sgARX_1", "sgBTK"]
    cells.var_names = names
    return cells, setup


@_warned("no counts in any cell")
def genes_without_counts(cells, setup, rng, folder):
    dense = cells.X.toarray()
    dense[:, int(rng.integers(1, cells.n_vars))] = 0
    cells.X = sp.csr_matrix(dense)
    return cells, setup


@_warned("binary")
def binary(cells, setup, rng, folder):
    # more genes than a clean screen has, so that their loss shows
    counts = np.minimum(np.tile(cells.X.toarray(), (1, 6)), 1)
    names = [f"{name}.{i}" if i else name for i in range(6) for name in cells.var_names]
    return ad.AnnData(counts, cells.obs, pd.DataFrame(index=names)), setup


@_warned("same total")
def rounded_after_normalisation(cells, setup, rng, folder):
    dense = cells.X.toarray()
    rounded = np.rint(dense / dense.sum(1, keepdims=True) * rng.choice([1e4, 1e6]))
    cells.X = sp.csr_matrix(rounded.astype(np.float32))
    return cells, setup


@_warned("donor")
def donor_of_one_perturbation(cells, setup, rng, folder):
    gene = str(rng.choice(GENES[2:]))
    cells.obs["donor"] = np.where(cells.obs["perturbation"] == gene, "d2", "d1")
    return cells, setup


@_warned("batch")
def batch_of_one_medium(cells, setup, rng, folder):
    cells.obs["batch"] = np.where(cells.obs["media"] == "IFNG", "b2", "b1")
    return cells, setup


@_warned("batch")
def one_batch(cells, setup, rng, folder):
    cells.obs["batch"] = "b1"
    return cells, setup | {"batch_key": [None, "batch"][rng.integers(2)]}


# ---------------------------------------------------------------- what cannot be read
def _refused(says: str) -> Callable[[Mutation], Mutation]:
    def keep(change: Mutation) -> Mutation:
        REFUSED[change.__name__] = change, says
        return change

    return keep


def _bad_value(name: str, value: float, says: str) -> None:
    def change(cells, setup, rng, folder):
        dense = cells.X.toarray().astype(np.float64)
        dense[_some(cells, rng, 1), rng.integers(cells.n_vars)] = value
        cells.X = sp.csr_matrix(dense) if rng.integers(2) else dense
        return cells, setup

    REFUSED[f"value_{name}"] = change, says


for _name, _value, _says in (
    ("nan", np.nan, "NaN or infinite"),
    ("infinite", np.inf, "NaN or infinite"),
    ("negative", -1.0, "negative"),
    ("fraction", 0.5, "not whole numbers"),
    ("beyond_single_precision", 2.0**24 + 1, "single precision"),
    ("huge", 1e12, "single precision"),
):
    _bad_value(_name, _value, f"adata.X has.*{_says}")


@_refused("raw counts, not normalised or log-transformed")
def logarithms(cells, setup, rng, folder):
    cells.X = cells.X.log1p() if rng.integers(2) else np.log1p(cells.X.toarray())
    return cells, setup


@_refused("raw counts, not normalised or log-transformed")
def scaled(cells, setup, rng, folder):
    dense = cells.X.toarray()
    cells.X = (dense - dense.mean(0)) / (dense.std(0) + 0.1)
    return cells, setup


@_refused("raw counts are numbers")
def counts_as_text(cells, setup, rng, folder):
    cells.X = cells.X.toarray().astype(str).astype(object)
    return cells, setup


@_refused("raw counts are numbers")
def counts_complex(cells, setup, rng, folder):
    cells.X = cells.X.toarray().astype(complex)
    return cells, setup


@_refused("masked array")
def counts_masked(cells, setup, rng, folder):
    dense = cells.X.toarray()
    cells.layers["counts"] = cells.X
    cells.layers._data["counts"] = np.ma.masked_array(dense, dense == 0)
    return cells, setup | {"layer": "counts"}


@_refused("adata.X is empty")
def no_counts(cells, setup, rng, folder):
    del cells.X
    return cells, setup


@_refused("have no counts.*filter_cells")
def cells_without_counts(cells, setup, rng, folder):
    dense = cells.X.toarray()
    dense[_some(cells, rng)] = 0
    cells.X = sp.csr_matrix(dense)
    return cells, setup


@_refused('layer="raw" is not in adata.layers')
def no_such_layer(cells, setup, rng, folder):
    cells.layers["counts"] = cells.X.copy()
    return cells, setup | {"layer": "raw"}


def _misspelt(role: str) -> None:
    def change(cells, setup, rng, folder):
        key = f"{role}_key"
        return cells, setup | {key: f"{role}s"}

    REFUSED[f"no_column_of_{role}"] = change, f'{role}_key="{role}s" is not a column of adata.obs'


for _role in ("perturbation", "batch", "media", "time", "guide", "laboratory", "size_factor"):
    _misspelt(_role)


def _unlabelled(name: str, value: Any) -> None:
    def change(cells, setup, rng, folder):
        column = str(rng.choice(["perturbation", "media", "batch"]))
        _relabelled(cells, column, _some(cells, rng), value)
        return cells, setup

    says = r'_key="(perturbation|media|batch)" has 3 of \d+ cells (without a label|with the text)'
    REFUSED[f"label_{name}"] = change, says


for _name, _value in {
    "nan": np.nan,
    "none": None,
    "na": pd.NA,
    "nat": pd.NaT,
    "empty": "",
    "spaces": "  ",
    "text_nan": "nan",
    "text_none": "None",
}.items():
    _unlabelled(_name, _value)


def _odd_label(name: str, value: Any, says: str) -> None:
    def change(cells, setup, rng, folder):
        column = str(rng.choice(["perturbation", "batch", "donor"]))
        at, labels = _some(cells, rng), cells.obs[column].astype(object).to_numpy()
        for i in at:
            labels[i] = value
        cells.obs[column] = labels
        return cells, setup

    REFUSED[f"label_{name}"] = change, says


for _name, _value in {"number": 3, "float": 2.5, "bool": True}.items():
    _odd_label(_name, _value, "holds text .* make all of them text")
for _name, _value in {
    "bytes": b"x",
    "list": ["a"],
    "dict": {"a": 1},
    "set": {1},
    "array": np.zeros(2),
}.items():
    _odd_label(_name, _value, "values that are .* objects.*labels are text or numbers")
_odd_label("nul", "A\0B", "NUL")
_odd_label("surrogate", "A\ud800", "Unicode")


@_refused('control="nothing"')
def no_control(cells, setup, rng, folder):
    return cells, setup | {
        "control": ["nothing", ["nothing"], ["control", "nothing"]][rng.integers(3)]
    }


@_refused('every cell is control="control"')
def controls_alone(cells, setup, rng, folder):
    cells.obs["perturbation"] = "control"
    return cells, setup


@_refused('baseline_media="baseline"')
def no_baseline_medium(cells, setup, rng, folder):
    others = {"baseline": "RPMI", "IFNG": ["IFNG", "RPMI"][rng.integers(2)]}
    cells.obs["media"] = cells.obs["media"].astype(str).map(others)
    return cells, setup


@_refused("holds a NUL|half of a Unicode pair")
def genes_that_files_cannot_hold(cells, setup, rng, folder):
    names = cells.var_names.to_list()
    names[-1] = ["g\0", "g\ud800"][rng.integers(2)]
    cells.var_names = names
    return cells, setup


@_refused("empty part")
def combination_with_an_empty_part(cells, setup, rng, folder):
    _relabelled(cells, "perturbation", _some(cells, rng), str(rng.choice(["A+", "+A", "A++B"])))
    return cells, setup


@_refused("2 columns of adata.obs")
def column_twice(cells, setup, rng, folder):
    obs = pd.concat([cells.obs, cells.obs[["batch"]]], axis=1)
    cells._obs = obs
    return cells, setup


@_refused('batch_key="batch" has another value in every cell')
def batch_of_every_cell(cells, setup, rng, folder):
    cells.obs["batch"] = cells.obs_names.to_numpy()
    return cells, setup


def _bad_time(name: str, of: Callable[[pd.Series], Any], says: str) -> None:
    def change(cells, setup, rng, folder):
        cells.obs["hours"] = of(cells.obs["hours"])
        return cells, setup

    REFUSED[f"time_{name}"] = change, f'time_key="hours".*({says})'


for _name, _of, _says in (
    ("negative", lambda t: t - 2.0, "negative|below 0|≥ 0|before"),
    ("nan", lambda t: t.where(t < 4.0), "NaN|without"),
    ("infinite", lambda t: t.replace(4.0, np.inf), "infinite"),
    ("text", lambda t: t.astype(str) + "h", "numbers"),
    ("duration", lambda t: pd.to_timedelta(t, "h"), "total_seconds"),
    ("date", lambda t: pd.Timestamp("2026-01-01") + pd.to_timedelta(t, "h"), "total_seconds"),
    ("complex", lambda t: t.astype(complex), "numbers"),
    ("bool", lambda t: t > 2.0, "numbers"),
):
    _bad_time(_name, _of, _says)


def _bad_depth(name: str, of: Callable[[pd.Series], Any], says: str) -> None:
    def change(cells, setup, rng, folder):
        cells.obs["depth"] = of(cells.obs["depth"])
        return cells, setup | {"size_factor_key": "depth"}

    REFUSED[f"depth_{name}"] = change, f'size_factor_key="depth".*({says})'


for _name, _of, _says in (
    ("zero", lambda d: d.where(d < 1800.0, 0.0), "≤ 0"),
    ("negative", lambda d: -d, "≤ 0"),
    ("nan", lambda d: d.where(d < 1800.0), "NaN"),
    ("infinite", lambda d: d.where(d < 1800.0, np.inf), "infinite"),
    ("text", lambda d: d.astype(str), "numbers are needed"),
):
    _bad_depth(_name, _of, _says)


@_refused('"age" is 40 in all cells')
def age_of_all(cells, setup, rng, folder):
    cells.obs["age"] = 40.0
    return cells, setup


@_refused('"age" has 3 of')
def age_missing(cells, setup, rng, folder):
    cells.obs.loc[cells.obs_names[_some(cells, rng)], "age"] = np.nan
    return cells, setup


@_refused('"donor" has (one value in all cells|another value in every cell)')
def donor_says_nothing(cells, setup, rng, folder):
    cells.obs["donor"] = "d1" if rng.integers(2) else cells.obs_names.to_numpy()
    return cells, setup


@_refused("donor")
def donor_twice(cells, setup, rng, folder):
    cells.obs["sex"] = cells.obs["donor"].astype(str).map({"d1": "f", "d2": "m"})
    return cells, setup | {"categorical_covariate_keys": ["donor", "sex"]}


@_refused("gene names more than once")
def genes_twice(cells, setup, rng, folder):
    names = cells.var_names.to_list()
    names[-1] = names[0]
    cells.var_names = names
    return cells, setup


@_refused("rows that are no genes")
def antibodies_among_genes(cells, setup, rng, folder):
    kinds = ["Gene Expression"] * (cells.n_vars - 2)
    cells.var["feature_types"] = (
        kinds + [str(rng.choice(["Antibody Capture", "CRISPR Guide Capture"]))] * 2
    )
    return cells, setup


@_refused("nothing to fit")
def nothing(cells, setup, rng, folder):
    return (cells[:0].copy() if rng.integers(2) else cells[:, :0].copy()), setup


@_refused("one gene.*size_factor_key")
def one_gene(cells, setup, rng, folder):
    return cells[:, :1].copy(), setup


@_refused("type of perturbation")
def unknown_type(cells, setup, rng, folder):
    cells.obs["kind"] = "RNAi"
    by_column = bool(rng.integers(2))
    return cells, setup | (
        {"perturbation_type_key": "kind"} if by_column else {"perturbation_type": "RNAi"}
    )


@_refused("not an AnnData")
def no_anndata(cells, setup, rng, folder):
    kinds = [cells.X, cells.to_df(), None, str(folder)]
    return kinds[rng.integers(len(kinds))], setup


@_refused('_key is given a \\w+; give the name of a column|_key="3" is not a column')
def column_named_by_something_else(cells, setup, rng, folder):
    key = str(rng.choice(["perturbation_key", "batch_key", "media_key", "time_key"]))
    value = [["perturbation"], 3, cells.obs["batch"], ("batch",), {"batch"}][rng.integers(5)]
    return cells, setup | {key: value}


@_refused('control=.* names no label|equals control="(None|5)"')
def control_that_is_none(cells, setup, rng, folder):
    return cells, setup | {"control": [None, "", [], 5][rng.integers(4)]}


@_refused("damaged matrix.*read it again")
def counts_out_of_their_matrix(cells, setup, rng, folder):
    counts = cells.X.copy()
    if rng.integers(2):
        counts.indices[rng.integers(counts.nnz)] = [cells.n_vars + 5, -3, 2**31 - 1][
            rng.integers(3)
        ]
    else:
        counts.indptr[rng.integers(1, cells.n_obs)] = [counts.nnz + 9, -1, 2**31 - 1][
            rng.integers(3)
        ]
    cells.X = counts
    return cells, setup


# ---------------------------------------------------------------- changes after registration
def _later(says: str) -> Callable[[Mutation], Mutation]:
    def keep(change: Mutation) -> Mutation:
        LATER[change.__name__] = change, says + ".*run setup_anndata again"
        return change

    return keep


@_later("other counts")
def normalised(cells, setup, rng, folder):
    cells.X = cells.X * rng.choice([0.5, 2.0])
    return cells, setup


@_later("other counts")
def logged(cells, setup, rng, folder):
    cells.X.data = np.log1p(cells.X.data)
    return cells, setup


@_later("other counts")
def permuted(cells, setup, rng, folder):
    cells.X = cells.X[np.roll(np.arange(cells.n_obs), int(rng.integers(1, 5)))]
    return cells, setup


@_later("other counts")
def one_count_more(cells, setup, rng, folder):
    cells.X.data[rng.integers(cells.X.nnz)] += 1
    return cells, setup


@_later("other counts")
def two_counts_exchanged(cells, setup, rng, folder):
    dense = cells.X.toarray()
    a, b, g, h = 0, 1, 0, 1
    # sums of rows and columns stay
    dense[a, g] += 1
    dense[a, h] = max(dense[a, h] - 1, 0)
    dense[b, g] -= 1
    dense[b, h] += 1
    cells.X = sp.csr_matrix(dense)
    return cells, setup


@_later("had .* cells")
def filtered(cells, setup, rng, folder):
    if rng.integers(2):
        cells._inplace_subset_obs(np.arange(cells.n_obs - 3))
    else:
        cells._inplace_subset_var(np.arange(cells.n_vars - 1))
    return cells, setup


@_later("other names of genes")
def genes_renamed(cells, setup, rng, folder):
    cells.var_names = list(cells.var_names[::-1])
    return cells, setup


@_later("column")
def relabelled(cells, setup, rng, folder):
    column = str(rng.choice(["perturbation", "media", "batch", "hours", "donor", "age"]))
    cells.obs[column] = cells.obs[column].to_numpy()[::-1]
    return cells, setup


@_later("column")
def column_removed(cells, setup, rng, folder):
    del cells.obs[str(rng.choice(["perturbation", "media", "batch", "hours", "donor", "age"]))]
    return cells, setup

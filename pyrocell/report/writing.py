"""Write the directory of a fitted model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from pyrocell._compat import obs_table, var_table
from pyrocell._core.files import together
from pyrocell.errors import ModelFileError, PyrocellError
from pyrocell.report.content import content
from pyrocell.report.figures import FIGURES, write_figures
from pyrocell.report.gene_sets import enrichment, read_sets
from pyrocell.report.html import render
from pyrocell.report.perturbations import last_places, part_of
from pyrocell.report.summary import summary_text
from pyrocell.report.tables import FORMATS, TABLES, check_format, collect, write_tables
from pyrocell.report.verdicts import overall

if TYPE_CHECKING:
    from pyrocell.model import PyroCell

__all__ = ["Report", "annotated", "check_target", "write"]

MODEL, CELLS, SUMMARY, PAGE = "model", "annotated.h5ad", "summary.md", "report.html"
_TABLES, _FIGURES = "tables", "figures"
_NAMES = 4000  # of columns, that fit into an attribute of HDF5
_ALIGNED = ("obsm", "varm", "layers", "obsp", "varp")


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes
    ----------
    directory
        Where.
    tables
        Every table by name, as in `<directory>/tables`.
    quality
        Whether the fit can be believed: check, value, level, verdict, reason, remedy.
    text
        The summary, as in `<directory>/summary.md`.
    files
        Everything that was written.
    """

    directory: Path
    tables: dict[str, pd.DataFrame]
    quality: pd.DataFrame
    text: str
    files: list[Path]


def check_target(
    directory: str | Path,
    overwrite: bool = False,
    tables: str = "csv",
    gene_sets: Sequence[str | Path] = (),
) -> None:
    """Say whether a report can be written there; call it before long work.

    Raises
    ------
    ModelFileError
        If the directory is not empty and `overwrite` is false, is a file, or cannot be written to.
    PyrocellError
        If tables cannot be written in that format, or a file of sets of genes cannot be used.
    """
    check_format(tables)
    read_sets(gene_sets)
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise ModelFileError(f"{path} is a file; name a directory")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ModelFileError(
            f"{path} is not empty; name another, or overwrite it (overwrite=True; --force)"
        )
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        raise ModelFileError(f"{nearest} cannot be written to; name another directory")


def write(
    model: PyroCell,
    directory: str | Path,
    *,
    overwrite: bool = False,
    tables: str = "csv",
    n_samples: int = 200,
    color: str | None = None,
    gene_sets: Sequence[str | Path] = (),
    umap: bool = False,
    title: str | None = None,
    command: str = "",
    steps: pd.DataFrame | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Report:
    """Write a fitted model's answers: page, model, tables, annotated cells, figures, summary.

    Parameters
    ----------
    model
        A trained model.
    directory
        Gets `report.html`, `model/`, `tables/`, `figures/`, `annotated.h5ad` and `summary.md`.
    overwrite
        Replace what an earlier run left in the directory; other files in it stay.
    tables
        "csv", or "parquet" where pyarrow is installed.
    n_samples
        Posterior draws behind each table.
    color
        Column of `.obs` that colours the latent map; default: the batch.
    gene_sets
        Files (.gmt) of sets of genes that effects are tested for; needs gseapy.
    umap
        Also put a UMAP of the resting state into the annotated cells (half a minute for 15,000).
    title, command
        Heading of the page (default: the directory's name), and what was typed, to be shown there.
    steps
        What was done to the counts before: name, rule, before, after.
    say
        Called with a line about each step.

    Returns
    -------
    Report.

    Raises
    ------
    ModelFileError
        If the directory is not empty and `overwrite` is false.
    PyrocellError
        If a file of sets of genes cannot be used.
    """
    check_target(directory, overwrite, tables)
    path, sets = Path(directory), read_sets(gene_sets)
    say("model")
    model.save(path / MODEL, overwrite=True)
    found = collect(model, n_samples, say)
    if sets and "perturbation_effects" in found:
        say("sets of genes")
        place = last_places(found["perturbation_effects"])[-1]
        try:
            found["gene_sets"] = enrichment(part_of(found["perturbation_effects"], place), sets)
        except PyrocellError as error:  # of names; the fit is worth its report all the same
            say(f"sets of genes are left out: {error}")
    with together(path, _names()) as new:
        text = _write_answers(model, found, new, tables, color, umap, say)
        say("page")
        page = content(
            model,
            found,
            found["verdicts"],
            overall(found["verdicts"]),
            title=title or path.absolute().name,
            command=command,
            steps=steps,
        )
        (new / PAGE).write_text(render(page), encoding="utf-8")
    files = sorted(file for file in (path / MODEL).iterdir() if file.is_file())
    files += [path / name for name in _names() if (path / name).exists()]
    return Report(path, found, found["verdicts"], text, files)


def _write_answers(
    model: PyroCell,
    found: dict[str, pd.DataFrame],
    path: Path,
    tables: str,
    color: str | None,
    umap: bool,
    say: Callable[[str], None],
) -> str:
    """Write everything but the model; return the summary."""
    write_tables(found, path / _TABLES, tables)
    say("annotated cells")
    said: list[str] = []

    def note(message: str) -> None:
        said.append(message)
        say(message)

    cells = writable(annotated(model, found), note)
    if umap:
        say("UMAP")
        cells.obsm["X_pyrocell_umap"] = umap_of(np.asarray(cells.obsm["X_pyrocell"]))
    cells.write_h5ad(path / CELLS, compression="gzip")
    say("figures")
    write_figures(model, found, path / _FIGURES, color, note)
    text = summary_text(model, found)
    if said:
        text += "\n## Left out\n\n" + "\n".join(f"- {line}" for line in said) + "\n"
    (path / SUMMARY).write_text(text, encoding="utf-8")
    return text


def umap_of(states: np.ndarray) -> np.ndarray:
    """Two dimensions of resting states, (cells, 2), by UMAP with its own defaults and a fixed seed.

    Distances between far groups mean little there; `pl.latent` says how much of the variance of the
    states lies between groups.
    """
    from umap import UMAP  # loads numba's compiler

    neighbours = min(15, len(states) - 1)
    found = UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1).fit_transform(states)
    return np.asarray(found, np.float32)


def writable(adata: AnnData, say: Callable[[str], None]) -> AnnData:
    """An AnnData without what an h5ad file cannot hold, and a word about each.

    Columns of numbers and text become text.
    """
    for frame, name in ((obs_table(adata), "obs"), (var_table(adata), "var")):
        for column in list(frame):
            if frame[column].dtype == object:
                text = frame[column].map(lambda value: isinstance(value, str) or pd.isna(value))
                if not text.all():
                    frame[column] = frame[column].astype(str)
                    say(f'{name}["{column}"] holds more than text and is written as text')
            if not isinstance(column, str):
                del frame[column]
                say(f"{name} has a column {column!r} whose name is no text; it is left out")
        frame.index = frame.index.astype(object)
    for key in list(adata.uns):
        if not isinstance(key, str) or not _can_be_written(adata.uns[key]):
            del adata.uns[key]
            say(f"uns[{key!r}] cannot be written to a file and is left out")
    return adata


def _can_be_written(value: Any) -> bool:
    with h5py.File.in_memory() as file:
        try:
            write_elem(file, "x", value)
        except Exception:  # whatever anndata raises for what it does not know
            return False
    return True


def _names() -> list[str]:
    """Every file that a report may have beside the model; those of an earlier one go."""
    names = [f"{_TABLES}/{name}.{kind}" for name in TABLES for kind in FORMATS]
    names += [f"{_FIGURES}/{name}.png" for name in FIGURES]
    return [*names, CELLS, SUMMARY, PAGE]


def annotated(model: PyroCell, tables: dict[str, pd.DataFrame]) -> AnnData:
    """The cells with answers where scanpy users look; the model's AnnData stays as it is.

    Adds `.obsm["X_pyrocell"]` (resting state z), `.varm["pyrocell_effects"]` and
    `.varm["pyrocell_prob_direction"]` (genes × perturbations, baseline medium, last time),
    `.varm["pyrocell_media_effects"]` (genes × media, control cells),
    `.varm["pyrocell_batch_effects"]` (genes × batches) and `.uns["pyrocell"]` (version, summary of
    the model). Leaves out the columns and keys that scvi-tools' registration adds (`_scvi_*`).
    """
    adata = model.adata
    obs = obs_table(adata)
    aligned: dict[str, Any] = {name: _public(getattr(adata, name)) for name in _ALIGNED}
    out = AnnData(
        X=adata.X,
        obs=obs[[name for name in obs if not str(name).startswith("_scvi")]],
        var=var_table(adata),
        uns=_public(adata.uns),
        **aligned,
    )
    if adata.raw is not None:
        out.raw = adata.raw.to_adata()
    out.obsm["X_pyrocell"] = model.get_latent_representation()
    if "perturbation_effects" in tables:
        effects = tables["perturbation_effects"]
        effects = effects[effects["media"] == model.screen.baseline_media]
        for key, column in (("effects", "mean"), ("prob_direction", "prob_direction")):
            out.varm[f"pyrocell_{key}"] = _by_gene(effects, "perturbation", column, out)
    if "media_effects" in tables:
        found = _by_gene(tables["media_effects"], "media", "mean", out)
        out.varm["pyrocell_media_effects"] = found
    if "batch_effects" in tables:
        out.varm["pyrocell_batch_effects"] = _by_gene(tables["batch_effects"], "batch", "mean", out)
    _name_columns(out)
    out.uns["pyrocell"] = {"version": version("pyrocell"), "model": str(model.module.config)}
    return out


def _public(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Without what scvi-tools' registration adds, and without X, which anndata may list by None."""
    return {k: v for k, v in entries.items() if k is not None and not str(k).startswith("_scvi")}


def _by_gene(table: pd.DataFrame, columns: str, values: str, adata: AnnData) -> pd.DataFrame:
    names = table[columns].unique()
    wide = table.pivot(index="gene", columns=columns, values=values)
    wide = wide.set_axis(wide.index.astype(str))
    found = pd.DataFrame(wide.loc[adata.var_names.astype(str), names])
    return found.set_axis(adata.var_names)


def _name_columns(adata: AnnData) -> None:
    """Give tables of genes the form that HDF5 takes, in place.

    A slash is a path there, and names of columns have to fit into 64 kB: otherwise the table is an
    array, and `.uns` has the names of its columns.
    """
    for key in [key for key in adata.varm if key.startswith("pyrocell_")]:
        table = pd.DataFrame(adata.varm[key])
        names = [str(name).replace("/", "_") for name in table]
        if len(set(names)) == len(names) <= _NAMES:
            adata.varm[key] = table.set_axis(names, axis=1)
        else:
            adata.uns[f"{key}_columns"] = np.array([str(name) for name in table], dtype=object)
            adata.varm[key] = table.to_numpy()

"""`pyrocell check`, and the files that the shell reads."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData
from crowds import crowd

from pyrocell import read_backed
from pyrocell.cli import main
from pyrocell.cli.reading import read_cells
from pyrocell.data import hdf5_probe
from pyrocell.errors import PyrocellError


@pytest.fixture
def cells(make_screen) -> AnnData:
    adata = make_screen(media=1, times=(1.0, 2.0))
    del adata.uns["truth"]
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    return adata


def write_10x(adata: AnnData, file: Path) -> None:
    """A file of Cell Ranger 3, with two rows of guides after the genes."""
    counts = sp.csc_matrix(sp.hstack([adata.X, sp.csr_matrix((adata.n_obs, 2))]).T.astype(np.int32))
    names = np.array([*adata.var_names, "sgA", "sgB"], dtype="S")
    kinds = np.array(["Gene Expression"] * adata.n_vars + ["CRISPR Guide Capture"] * 2, dtype="S")
    with h5py.File(file, "w") as out:
        group = out.create_group("matrix")
        group["barcodes"] = adata.obs_names.to_numpy().astype("S")
        for name, part in (("data", counts.data), ("indices", counts.indices)):
            group[name] = part
        group["indptr"], group["shape"] = counts.indptr, np.array(counts.shape, np.int32)
        features = group.create_group("features")
        features["id"], features["name"], features["feature_type"] = names, names, kinds
        features["genome"] = np.array(["GRCh38"] * len(names), dtype="S")


def write_mtx(adata: AnnData, folder: Path) -> None:
    folder.mkdir()
    kinds = ["Gene Expression"] * adata.n_vars
    rows = pd.DataFrame({"id": adata.var_names, "name": adata.var_names, "kind": kinds})
    with gzip.open(folder / "matrix.mtx.gz", "wb") as out:
        scipy.io.mmwrite(out, sp.csc_matrix(adata.X.T).astype(np.int32))
    rows.to_csv(folder / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(adata.obs_names).to_csv(folder / "barcodes.tsv.gz", header=False, index=False)


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "h5mu", "h5", "mtx"])
def test_the_same_cells_are_read_from_every_kind_of_file(cells, tmp_path, kind):
    file, labels = tmp_path / f"cells.{kind}", None
    if kind == "h5ad":
        cells.write_h5ad(file)
    elif kind == "zarr":
        cells.write_zarr(file)
    elif kind == "h5mu":
        other = AnnData(np.ones((cells.n_obs, 2), np.float32), obs=cells.obs[[]].copy())
        mudata.MuData({"rna": cells, "protein": other}).write(file)
    else:
        (write_10x if kind == "h5" else write_mtx)(cells, file)
        labels = tmp_path / "labels.csv"
        cells.obs.iloc[::-1].to_csv(labels)  # in another order
    found = read_cells(file, labels)
    assert list(found.var_names) == list(cells.var_names)
    assert list(found.obs_names) == list(cells.obs_names)
    np.testing.assert_array_equal(sp.csr_matrix(found.X).toarray(), cells.X.toarray())
    for column in ("perturbation", "media", "batch"):
        assert list(found.obs[column].astype(str)) == list(cells.obs[column].astype(str))


def test_what_cannot_be_read_is_said_with_what_can(cells, tmp_path):
    (tmp_path / "cells.rds").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cells.h5").write_text("x")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells.obs.iloc[5:].to_csv(tmp_path / "few.csv")
    for name, said in (
        ("cells.rds", "readable are .h5ad, .zarr, .h5mu"),
        ("folder", "without matrix.mtx"),
        ("cells.h5", "cannot be read as .h5"),
        ("nothing.h5ad", "is not a file"),
    ):
        with pytest.raises(PyrocellError, match=said):
            read_cells(tmp_path / name)
    with pytest.raises(PyrocellError, match="lacks 5 of"):
        read_cells(tmp_path / "cells.h5ad", tmp_path / "few.csv")


def test_check_says_what_the_layout_can_tell_and_writes_nothing(cells, tmp_path, capsys):
    file = tmp_path / "cells.h5ad"
    cells.obs["donor"] = "d1"
    cells.write_h5ad(file)
    before = set(tmp_path.iterdir())
    columns = ["--media-key", "media", "--time-key", "time"]
    assert main(["check", str(file), *columns]) == 0
    said = capsys.readouterr()
    assert "3 perturbations, 2 media, 2 times, 2 batches" in said.out
    for part in ("cannot tell apart", "assumptions it can test", "steady: "):
        assert part in said.out
    assert re.search(r"\d+ (seconds|minutes) on two cores .* [\d.]+ GiB", said.out)
    assert "column not used: donor" in said.err and set(tmp_path.iterdir()) == before


def test_check_says_what_shuffled_labels_find(cells, tmp_path, capsys):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert main(["check", str(tmp_path / "cells.h5ad"), "--media-key", "media", "--shuffle"]) == 0
    said = capsys.readouterr().out
    assert "labels shuffled" in said and re.search(r"baseline: (good|poor); [\d.]+% of 90%", said)
    assert len(list(tmp_path.iterdir())) == 1


def test_check_refuses_as_fit_does(cells, tmp_path, capsys):
    cells.X = cells.X.multiply(0.37).tocsr()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert main(["check", str(tmp_path / "cells.h5ad")]) == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize("read", [read_cells, read_backed])
def test_a_file_in_which_hdf5_goes_round_in_circles_is_refused(
    tiny_adata, tmp_path, monkeypatch, read
):
    """A heap of texts whose free space has no size: the library steps by nothing, for ever."""
    path = tmp_path / "cells.h5ad"
    tiny_adata.write_h5ad(path)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 2000] = bytes(1984)
    path.write_bytes(content)
    monkeypatch.setattr(hdf5_probe, "_SECONDS", 3)
    with pytest.raises(PyrocellError, match="is damaged: its structure could not be read within 3"):
        read(path)


def test_guides_of_cells_are_read_from_a_matrix_and_a_table(tmp_path, capsys):
    adata = crowd(n_cells=700)
    table = adata.uns["guides"].rename_axis("guide").reset_index()
    table.rename(columns={"target": "gene"}).to_csv(tmp_path / "guides.csv", index=False)
    adata.uns["guides"] = list(adata.uns["guides"].index)
    del adata.uns["effect"]
    adata.write_h5ad(tmp_path / "crowd.h5ad")
    typed = ["check", str(tmp_path / "crowd.h5ad"), "--guide-matrix-key", "guides"]
    assert main([*typed, "--guide-targets", str(tmp_path / "guides.csv")]) == 0
    out, said = capsys.readouterr()
    assert "26 perturbations" in out
    assert "columns used: batch (batch_key), guides (guide_matrix_key)" in said
    assert main(typed) == 2
    assert "--guide-targets is needed" in capsys.readouterr().err
    adata.obsm["guides"] = 3 * adata.obsm["guides"]
    adata.write_h5ad(tmp_path / "crowd.h5ad")
    typed += ["--guide-targets", str(tmp_path / "guides.csv")]
    assert main(typed) == 2
    assert main([*typed, "--guide-threshold", "2"]) == 0

"""Short calls that pages show without their beginning run on a small screen."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import anndata
import numpy
import pandas as pd
import pytest
import zarr
from crowds import crowd

import pyrocell
from pyrocell import preprocess

DOCS = Path(__file__).parents[2] / "docs"
# Needs a GPU, a cluster, or many fits; what they call is tested in tests/training and tests/core.
ELSEWHERE = ("cuda", 'backend="ray"', "compile=True", "devices=2", "poisson", "similar_pert")


def blocks(page: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "page", ["effects", "knowledge", "laboratories", "dynamics", "performance"]
)
def test_the_calls_on_a_page_run(page, make_screen, tmp_path, monkeypatch):
    adata = make_screen(n_perturbations=3, n_batches=4, times=(1.0, 2.0))
    adata.obs["laboratory"] = adata.obs["batch"].astype(str).map(lambda b: f"lab {b[-1] in '01'}")
    adata.obs["fate"] = numpy.where(numpy.arange(adata.n_obs) % 2, "A", "B")
    del adata.uns["truth"]
    monkeypatch.chdir(tmp_path)
    train = pyrocell.PyroCell.train

    def short(self, max_epochs=2, **options):
        train(self, max_epochs=2, **(options | {"progress_bar": False}))

    monkeypatch.setattr(pyrocell.PyroCell, "train", short)
    adata.write_zarr("screen.zarr")
    pyrocell.PyroCell.setup_anndata(adata, laboratory_key="laboratory", time_key="time")
    dynamics = "flow" if page == "dynamics" else "relaxation"
    model = pyrocell.PyroCell(adata, n_latent=2, n_response=2, dynamics=dynamics)
    model.train()
    name = model.screen.perturbations[0]
    names = {"pyrocell": pyrocell, "adata": adata, "model": model, "zarr": zarr}
    names |= {"numpy": numpy, "anndata": anndata, "pd": pd}
    names["edges"] = pd.DataFrame({"a": [name, "KLF4"], "b": ["KLF4", "ESRRB"]})
    Path("go.gmt").write_text(f"set\t\t{name}\tKLF4\tESRRB\tTFCP2L1\n")
    names["conditions"] = pd.DataFrame({"perturbation": ["control", name], "time": 2.0})
    ran = 0
    for block in blocks(page):
        if any(word in block for word in ELSEWHERE):
            continue
        block = block.replace('"SOX2"', repr(name)).replace("+SOX2", f"+{name}")
        exec(block.replace("go.gmt.gz", "go.gmt"), names)
        ran += 1
    assert ran


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
def test_the_calls_for_many_guides_run(monkeypatch):
    adata = crowd(n_cells=500, n_genes=20)
    names = list(adata.uns["guides"].index)
    counts = pd.DataFrame(30 * adata.obsm["guides"].toarray(), columns=names)
    calls = preprocess.assign_guides(counts, "threshold", cells=adata.obs_names)
    train = pyrocell.PyroCell.train

    def short(self):
        train(self, max_epochs=1, progress_bar=False)

    monkeypatch.setattr(pyrocell.PyroCell, "train", short)
    known = {"pyrocell": pyrocell, "preprocess": preprocess, "adata": adata, "calls": calls}
    known["targets"] = adata.uns["guides"]["target"]
    (block,) = blocks("screens")
    exec(block, known)
    assert known["model"].screen.many_sets


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
def test_the_calls_for_several_views_run(monkeypatch):
    train, draw = pyrocell.PyroCell.train, pyrocell.simulate.views

    def short(self):
        train(self, max_epochs=1, progress_bar=False)

    monkeypatch.setattr(pyrocell.PyroCell, "train", short)
    monkeypatch.setattr(pyrocell.simulate, "views", lambda **k: draw(**(k | {"n_cells": 500})))
    known = {"pyrocell": pyrocell}
    for block in blocks("views"):
        exec(block, known)
    assert known["answer"].n_vars == 60 + 12 + 40


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning", "ignore::UserWarning")
def test_the_calls_for_embeddings_signatures_and_sparse_effects_run(
    make_screen, tmp_path, monkeypatch
):
    train, chosen = pyrocell.PyroCell.train, pyrocell.PyroCell.signature

    def short(self, max_epochs=1):
        train(self, max_epochs=1, progress_bar=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyrocell.PyroCell, "train", short)
    adata = make_screen(n_perturbations=3, n_genes=24, n_cells_per_condition=20)
    pyrocell.PyroCell.setup_anndata(adata)
    model = pyrocell.PyroCell(adata, n_latent=2, n_response=2)
    model.train()
    Path("hallmark.gmt.gz").write_bytes(
        gzip.compress(("set\t\t" + "\t".join(adata.var_names[:10])).encode())
    )
    names = {"pyrocell": pyrocell, "adata": adata, "model": model, "held_out": adata}
    first = model.screen.perturbations[0]
    for page in ("mechanism_embeddings", "mechanism_sparse"):
        for block in blocks(page):
            exec(block.replace("KLF1+MAP2K6", first), names)
    assert len(names["mask"]) == 3 * names["model"].module.model.n_axes
    monkeypatch.setattr(
        pyrocell.PyroCell, "signature", lambda self, p, n_genes: chosen(self, p, 3, n_shuffles=1)
    )
    for block in blocks("mechanism_signature"):
        exec(block, names)
    assert list(names["table"]["rank"]) == [1, 2, 3]

"""`pyrocell run`, from lanes of Cell Ranger to the report, on a few hundred cells."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import anndata
import numpy as np
import pandas as pd
import pytest

from pyrocell import preprocess, simulate
from pyrocell.cli.main import main

FIT = ["--n-latent", "2", "--n-response", "2", "--max-epochs", "1"]
STEPS = ["read", "assign guides", "combine guides", "filter cells", "filter genes", "choose genes"]


@pytest.fixture(scope="module")
def pool():
    small = {"n_perturbations": 4, "n_genes": 40, "n_cells_per_condition": 25, "n_controls": 80}
    return simulate.screen(seed=5, n_batches=2, on_target=-1.0, mean_library=300.0, **small)


@pytest.fixture(scope="module")
def lanes(pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lanes")
    return folder, simulate.write_10x(pool, folder, seed=5)


@pytest.fixture(scope="module")
def finished(lanes, tmp_path_factory):
    """A directory that `pyrocell run` has written, and what it printed."""
    directory = tmp_path_factory.mktemp("run") / "out"
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        typed = ["run", str(lanes[0]), "-o", str(directory), "--n-genes", "30", *FIT]
        assert main(typed) == 0
    return directory, out.getvalue()


def prepared(tmp_path, *typed) -> anndata.AnnData:
    assert main(["run", *map(str, typed), "-o", str(tmp_path / "out"), "--no-fit"]) == 0
    return anndata.read_h5ad(tmp_path / "out" / "prepared.h5ad")


def test_one_command_leaves_the_report_and_every_step(finished):
    directory, printed = finished
    table = pd.read_csv(directory / "steps.csv")
    assert list(table["name"]) == STEPS
    assert (table["after"] <= table["before"]).all()
    assert all(f"{name}: " in printed and rule in printed
               for name, rule in zip(table["name"], table["rule"]))  # fmt: skip
    assert (directory / "report.html").is_file() and "steps.csv" in printed
    assert (directory / "tables" / "perturbation_effects.csv").is_file()


def test_every_cell_that_was_read_has_its_call_and_those_that_were_kept_their_label(
    finished, lanes
):
    directory, truth = finished[0], lanes[1]
    calls = pd.read_csv(directory / "guide_calls.csv", index_col="cell", keep_default_na=False)
    assert list(calls.index) == list(truth.index)
    assert (calls["guides"] == truth["guides"]).mean() > 0.93
    kept = anndata.read_h5ad(directory / "annotated.h5ad")
    assert list(kept.obs_names) == list(calls.index[calls["kept"]])
    single = truth.loc[kept.obs_names, "n_cells"] == 1
    label = kept.obs["perturbation"].astype(str)
    assert (label == truth.loc[kept.obs_names, "perturbation"])[single].mean() > 0.97
    guides = pd.read_csv(directory / "guides.csv")
    assert set(guides["gene"]) == set(label) and set(guides["batch"]) == {"batch0", "batch1"}


def test_steps_can_be_switched_off(lanes, tmp_path):
    off = ["--no-filter-cells", "--no-filter-genes", "--no-choose-genes"]
    adata = prepared(tmp_path, lanes[0], *off)
    assert list(preprocess.steps(adata)["name"]) == STEPS[:3]
    assert adata.n_vars == 40


def test_labels_that_are_there_are_taken(pool, tmp_path):
    adata = pool.copy()
    del adata.uns["truth"]
    adata.obs["gene"] = adata.obs.pop("perturbation").astype(str).replace("control", "NT")
    adata.obs.iloc[:3, adata.obs.columns.get_loc("gene")] = np.nan
    adata.write_h5ad(tmp_path / "cells.h5ad")
    typed = [tmp_path / "cells.h5ad", "--assigned", "gene", "--control", "NT"]
    found = prepared(tmp_path, *typed)
    table = preprocess.steps(found).set_index("name")
    assert table.loc["labels", "after"] == adata.n_obs - 3
    assert "not measured" not in table.loc["choose genes", "rule"]
    again = ["run", *map(str, typed), "-o", str(tmp_path / "fit"), *FIT]
    assert main(again) == 0
    assert set(pd.read_csv(tmp_path / "fit" / "tables" / "perturbation_effects.csv").perturbation)


def test_guides_of_an_h5ad_give_the_same_labels(lanes, tmp_path):
    expected = prepared(tmp_path, lanes[0], "--force")
    adata = preprocess.read_10x(lanes[0])
    counts = adata.obsm["guides"].toarray()
    names = list(adata.uns.pop("guides").index)
    adata.obsm["guides"] = pd.DataFrame(counts, adata.obs_names, names)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    found = prepared(tmp_path, tmp_path / "cells.h5ad", "--force")
    assert list(found.obs["perturbation"]) == list(expected.obs["perturbation"])


def test_tables_of_guides_and_of_lanes_are_used(lanes, tmp_path):
    names = preprocess.read_10x(lanes[0]).uns["guides"].index
    table = pd.DataFrame({"guide": names, "gene": [n.split("_")[0] for n in names]})
    table.loc[table["gene"] == table["gene"][0], "gene"] = "renamed"
    table.to_csv(tmp_path / "guides.csv", index=False)
    media = pd.DataFrame({"media": ["baseline", "IFNG"]}, ["batch0", "batch1"])
    media.to_csv(tmp_path / "lanes.csv")
    adata = prepared(
        tmp_path, lanes[0], "--guides", tmp_path / "guides.csv", "--lanes", tmp_path / "lanes.csv"
    )
    assert "renamed" in set(adata.obs["perturbation"])
    assert set(zip(adata.obs["batch"], adata.obs["media"])) == {
        ("batch0", "baseline"), ("batch1", "IFNG"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--control", "NT"], "--control-guides"),
        (["--control-guides", "AAVS1*"], 'control guides "AAVS1*" fit no guide'),
        (["--min-counts", "99999"], "no cell is left"),
        (["--guides", "absent.csv"], "absent.csv cannot be read"),
        (["--assigned", "gene"], '--assigned "gene" is no column'),
        (["--call-counts", "99999"], "no cell is left"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(lanes, tmp_path, capsys, options, says):
    assert main(["run", str(lanes[0]), "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pyrocell: error: ") and says in error
    assert not (tmp_path / "out").exists()


def test_cells_without_guides_or_with_labels_say_which_option_helps(pool, tmp_path, capsys):
    adata = pool.copy()
    del adata.uns["truth"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert main(["run", str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / "out")]) == 2
    assert "--assigned perturbation" in capsys.readouterr().err
    del adata.obs["perturbation"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert main(["run", str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / "out")]) == 2
    assert "--guide-counts" in capsys.readouterr().err

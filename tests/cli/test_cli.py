"""The command line and the directory it leaves, on screens of a few hundred cells."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points

import anndata
import numpy as np
import pandas as pd
import pytest

import pyrocell
from pyrocell import simulate
from pyrocell.cli.main import main
from pyrocell.cli.options import _say_columns
from pyrocell.errors import PyrocellError
from pyrocell.report import convergence, write
from pyrocell.report.quality import strongest
from pyrocell.report.summary import summary_text
from pyrocell.report.tables import collect

FIT = ["--media-key", "media", "--n-latent", "2", "--n-response", "2", "--max-epochs", "2"]
FIT += ["--shuffle-check"]


@pytest.fixture(scope="module")
def screen_file(make_screen, tmp_path_factory):
    adata = make_screen(media=1)
    del adata.uns["truth"]
    file = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    adata.write_h5ad(file)
    return file


@pytest.fixture(scope="module")
def run(screen_file, tmp_path_factory):
    """A directory that `pyrocell fit` has written, and what it printed: output, errors."""
    directory = tmp_path_factory.mktemp("run") / "out"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["fit", str(screen_file), "-o", str(directory), *FIT]) == 0
    return directory, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(run):
    return run[0]


@pytest.fixture(scope="module")
def model(make_screen, build):
    model = build(make_screen(media=1))
    model.train(max_epochs=2, progress_bar=False)
    return model


def test_fit_leaves_model_tables_cells_figures_and_summary(finished, screen_file):
    tables = {file.stem for file in (finished / "tables").iterdir()}
    others = {"combination_effects", "effects_over_time", "gene_sets"}  # this screen has none
    assert tables == set(pyrocell.report.tables.TABLES) - others
    assert (finished / "report.html").is_file()
    figures = {file.stem for file in (finished / "figures").iterdir()}
    assert figures == set(pyrocell.report.figures.FIGURES)
    assert all(file.stat().st_size > 5000 for file in (finished / "figures").iterdir())
    assert not [file for file in finished.rglob("*") if file.suffix in (".pkl", ".pt")]
    adata = anndata.read_h5ad(screen_file)
    model = pyrocell.PyroCell.load(finished / "model", adata)
    effects = pd.read_csv(finished / "tables" / "perturbation_effects.csv")
    again = model.perturbation_effects()
    first = effects[effects["media"] == "baseline"]["mean"]
    np.testing.assert_allclose(first, again["mean"], rtol=1e-4, atol=1e-5)


def test_the_annotated_cells_are_the_input_and_the_answers(finished, screen_file):
    before, after = anndata.read_h5ad(screen_file), anndata.read_h5ad(finished / "annotated.h5ad")
    assert (before.X != after.X).nnz == 0
    pd.testing.assert_frame_equal(before.obs, after.obs)
    assert set(after.obsm) == {"X_pyrocell"} and after.obsm["X_pyrocell"].shape == (len(after), 2)
    assert set(after.varm) == {
        "pyrocell_media_effects",
        "pyrocell_effects",
        "pyrocell_prob_direction",
        "pyrocell_batch_effects",
    }
    assert not [key for key in after.uns if key.startswith("_")]
    model = pyrocell.PyroCell.load(finished / "model", before)
    np.testing.assert_allclose(
        after.obsm["X_pyrocell"], model.get_latent_representation(), atol=1e-5
    )


def test_output_is_plain_text_without_a_terminal(run):
    directory, out, err = run
    assert "\r" not in out + err and "\x1b" not in out + err
    assert "held-out ELBO" in err and "held-out ELBO" not in out
    for heading in ("Summary", "Strongest effects", "Lowest gains", "Batch effects"):
        assert heading in out
    assert (directory / "summary.md").read_text() in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-key", "lane"], '--batch-key "lane" is not a column'),
        (["--batch-key", "lane"], "--batch-key '' if there is none"),
        (["--control", "NT"], 'equals --control "NT"'),
        (["--baseline-media", "none"], "compare with: --baseline-media"),
        (["--layer", "raw"], "--layer '' takes adata.X"),
        (["--continuous-covariate-key", "age"], '--continuous-covariate-key "age" is not'),
    ],
)
def test_errors_are_one_plain_line_that_names_options(
    screen_file, tmp_path, capsys, options, words
):
    assert main(["fit", str(screen_file), "-o", str(tmp_path / "out"), *FIT, *options]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("pyrocell: error: ") and words in err[-1]
    assert not [line for line in err if "Traceback" in line]
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_said_plainly(tmp_path, capsys):
    text = tmp_path / "notes.h5ad"
    text.write_text("not a screen")
    for file, words in ((tmp_path / "none.h5ad", "is not a file"), (text, "cannot be read")):
        assert main(["fit", str(file), "-o", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err


def test_nothing_is_overwritten_before_the_file_is_even_read(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert main(["fit", "absent.h5ad", "-o", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["fit", "absent.h5ad", "-o", str(tmp_path / "precious.txt")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["fit", "absent.h5ad", "-o", str(tmp_path), "--force"]) == 2
    assert "absent.h5ad is not a file" in capsys.readouterr().err


def test_overwriting_replaces_a_run_and_touches_nothing_else(finished, model):
    before = model.adata.copy()
    mine = finished / "notes.txt"
    mine.write_text("mine")
    (finished / "tables" / "history.parquet").write_text("of an earlier run")
    with pytest.raises(pyrocell.errors.ModelFileError, match="not empty"):
        write(model, finished)
    report = write(model, finished, overwrite=True, n_samples=10)
    assert mine.read_text() == "mine"
    assert not (finished / "tables" / "history.parquet").exists()
    written = {file for file in finished.rglob("*") if file.is_file()} - {mine}
    assert written == set(report.files)
    after = model.adata
    assert set(after.obs) == set(before.obs) and set(after.uns) == set(before.uns)
    assert set(after.obsm) == set(before.obsm) and set(after.varm) == set(before.varm)


def test_parquet_needs_pyarrow_and_says_so_before_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["fit", "absent.h5ad", "-o", str(tmp_path / "out"), "--tables", "parquet"]) == 2
    assert "pyrocell[parquet]" in capsys.readouterr().err


def test_parquet_tables_hold_the_same(model, tmp_path):
    pytest.importorskip("pyarrow")
    report = write(model, tmp_path / "out", tables="parquet", n_samples=10)
    for name, table in report.tables.items():
        again = pd.read_parquet(tmp_path / "out" / "tables" / f"{name}.parquet")
        pd.testing.assert_frame_equal(again, table.reset_index(drop=True), check_dtype=False)


def test_a_screen_of_one_batch_and_one_medium_is_reported(make_screen, build, tmp_path):
    adata = make_screen(n_batches=1)
    with pytest.warns(pyrocell.errors.ScreenWarning, match="one batch"):
        model = build(adata)
    model.train(max_epochs=2, progress_bar=False)
    report = write(model, tmp_path / "out", n_samples=10)
    assert not {"batch_effects", "media_gains"} & set(report.tables)
    assert "Batch effects" not in report.text


def test_the_installed_command_knows_its_version(capsys):
    (command,) = entry_points(group="console_scripts", name="pyrocell")
    with pytest.raises(SystemExit) as stop:
        command.load()(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"pyrocell {pyrocell.__version__}"


def test_warnings_name_options_too(make_screen, tmp_path, capsys):
    adata = make_screen(n_batches=1)
    del adata.uns["truth"]
    adata.write_h5ad(tmp_path / "screen.h5ad")
    options = ["--batch-key", "", "--layer", "", "--max-epochs", "1", "--n-latent", "2"]
    assert main(["fit", str(tmp_path / "screen.h5ad"), "-o", str(tmp_path / "o"), *options]) == 0
    assert "give --batch-key if cells" in capsys.readouterr().err


def test_bad_options_are_refused_by_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "a.h5ad", "--max-epochs", "0"])
    assert stop.value.code == 2
    assert "--max-epochs" in capsys.readouterr().err


def test_sets_of_genes_are_read_before_the_fit(screen_file, tmp_path, capsys):
    pytest.importorskip("gseapy")
    sets = tmp_path / "sets.gmt"
    options = ["-o", str(tmp_path / "out"), *FIT, "--gene-sets", str(sets)]
    assert main(["fit", str(screen_file), *options]) == 2
    said = capsys.readouterr().err
    assert "sets.gmt cannot be read as sets of genes" in said and "fitting" not in said
    sets.write_text("other\t\t" + "\t".join(f"nobody{i}" for i in range(9)))
    assert main(["fit", str(screen_file), *options]) == 0
    assert "sets of genes are left out" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_demo_runs_twice_in_the_same_place(tmp_path, capsys, monkeypatch):
    adata = pyrocell.datasets.hipsc_timecourse()[::8]
    monkeypatch.setattr(pyrocell.datasets, "hipsc_timecourse", adata.copy)
    output = ["-o", str(tmp_path / "demo"), "--quick"]
    assert main(["demo", *output]) == 0
    out = capsys.readouterr().out
    assert "time 5 was measured only in batch sample_4" in out.replace("\n  ", " ")
    assert "Ishikawa" in out and "Strongest effects at time 5" in out

    def stop(*_, **__):
        raise PyrocellError("would train again")

    monkeypatch.setattr(pyrocell.PyroCell, "train", stop)
    assert main(["demo", *output]) == 2
    assert "would train again" in capsys.readouterr().err


def test_a_blocked_gain_is_zero_without_a_sign(model):
    tables = collect(model, n_samples=10)
    tables["media_gains"] = tables["media_gains"].assign(mean=-0.001, lower=-0.07, upper=0.004)
    assert "| 0.00 | -0.07 to 0.00 |" in " ".join(summary_text(model, tables).split())


def curve(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"train_loss": -values, "validation_elbo": values}).rename_axis("epoch")


def test_convergence_is_the_slope_of_the_last_quarter():
    epoch = np.arange(80)
    noise = 0.01 * np.random.default_rng(0).standard_normal(80)
    level = convergence(curve(-100 - 5 * np.exp(-epoch / 8) + noise))
    assert level.verdict == "converged" and level.good and level.held_out
    rising = convergence(curve(-100 + 0.05 * epoch + noise))
    assert rising.verdict == "still rising"
    assert rising.rise == pytest.approx(0.05 * 19, rel=0.1)
    assert convergence(curve(-np.abs(epoch - 30.0) + noise)).verdict == "falling"
    assert convergence(curve(-100.0 + epoch[:3])).verdict == "too short to tell"
    assert convergence(pd.DataFrame()).verdict == "too short to tell"


def test_convergence_does_not_count_repeated_values_twice():
    checked = -100 + np.repeat(0.1 * np.arange(20), 4) + np.repeat(0.01 * (np.arange(20) % 2), 4)
    once = convergence(curve(checked).iloc[::4])
    assert convergence(curve(checked)).error == pytest.approx(once.error, rel=1e-6)


def test_convergence_falls_back_on_the_training_cells():
    history = curve(-100 - 5 * np.exp(-np.arange(80) / 8)).drop(columns="validation_elbo")
    assert not convergence(history).held_out


def test_strongest_effects_are_those_farthest_from_zero_with_certainty():
    table = pd.DataFrame(
        {"gene": ["wide", "down", "weak"], "lower": [-1.0, -2.0, 0.1], "upper": [9.0, -1.0, 0.3]}
    )
    assert strongest(table, 2)["gene"].tolist() == ["down", "weak"]


def test_columns_that_are_used_and_those_that_look_like_it_are_said(tiny_adata, capsys):
    setup = {"batch_key": "batch", "perturbation_key": "perturbation", "media_key": None}
    _say_columns(tiny_adata, setup | {"categorical_covariate_keys": None})
    said = capsys.readouterr().err
    assert "columns used: batch (batch_key), perturbation (perturbation_key)" in said
    assert "column not used: media; if it belongs to the screen, --media-key" in said
    assert "guide; if it belongs to the screen, --guide-key" in said


def test_modalities_of_a_file_are_fitted_as_views_of_one_state(tmp_path, capsys):
    file = tmp_path / "cells.h5mu"
    mdata = simulate.views(n_cells=300, n_perturbations=4, n_genes=20, n_proteins=6)
    for part in mdata.mod.values():
        part.uns.clear()
    mdata.write_h5mu(file)
    views = ["--view", "rna", "--view", "protein=prot"]
    out = tmp_path / "out"
    assert main(["fit", str(file), *views, *FIT[2:8], "-o", str(out)]) == 0
    table = pd.read_csv(out / "tables" / "perturbation_effects.csv")
    assert set(table["view"]) == {"rna", "protein"}
    assert "| view |" not in capsys.readouterr().err
    assert main(["check", str(file), "--view", "protein=atac"]) != 0
    assert 'protein="atac" is not a modality' in capsys.readouterr().err

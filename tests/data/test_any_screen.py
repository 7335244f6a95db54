"""Screens as laboratories bring them: read rightly, or refused with a remedy that works."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyrocell import PyroCell, Screen
from pyrocell.errors import CountError, ScreenError, ScreenWarning, UnknownLabelError
from pyrocell.report.writing import _name_columns, annotated, writable

GENES = ("ARX", "BTK", "CDX2")
SMALL = {"n_latent": 2, "n_response": 2, "n_hidden": 8}


@pytest.fixture
def cells() -> ad.AnnData:
    """300 cells × 12 genes: three knockouts, whose genes are measured, and controls."""
    rng = np.random.default_rng(3)
    label = np.array(["control", *GENES])[rng.choice(4, 300)]
    counts = rng.poisson(rng.gamma(2.0, 2.0, (300, 1)) + np.linspace(0.5, 4.0, 12))
    counts[counts.sum(1) == 0, 0] = 1
    obs = pd.DataFrame({"perturbation": label, "batch": rng.choice(["b1", "b2"], 300)})
    names = [*GENES, *(f"g{i}" for i in range(9))]
    obs.index = obs.index.astype(str)
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=names))


def warned(adata: ad.AnnData, **setup: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PyroCell.setup_anndata(adata, **setup)
    return [str(w.message) for w in caught if issubclass(w.category, ScreenWarning)]


def screen_of(adata: ad.AnnData, **setup: object) -> Screen:
    warned(adata, **setup)
    return PyroCell(adata, **SMALL).screen


# ---------------------------------------------------------------- own genes, rows that are none
def test_own_genes_are_found_in_a_column_of_var_and_that_is_said(cells):
    cells.var["symbol"] = cells.var_names
    cells.var_names = [f"ENSG{i:05d}" for i in range(cells.n_vars)]
    (said,) = warned(cells)
    assert 'gene_symbol_key="symbol"' in said and "3 of 3" in said
    assert PyroCell(cells, **SMALL).screen.target.tolist() == [0, 1, 2]
    assert not warned(cells, gene_symbol_key="symbol")
    with pytest.raises(UnknownLabelError, match='"symbl" is not a column of adata.var.*"symbol"'):
        PyroCell.setup_anndata(cells, gene_symbol_key="symbl")


def test_own_genes_are_found_in_another_case(cells):
    cells.var_names = [name.capitalize() for name in cells.var_names]
    assert screen_of(cells).target.tolist() == [0, 1, 2]


def test_own_genes_that_are_not_measured_are_counted_in_a_warning(cells):
    (said,) = warned(cells[:, 3:].copy())
    assert "3 of 3 perturbed genes are not in adata.var_names" in said and "gene_symbol_key" in said


def test_own_genes_survive_a_file(cells, tmp_path):
    cells.var["symbol"] = cells.var_names
    cells.var_names = [f"ENSG{i:05d}" for i in range(cells.n_vars)]
    screen = screen_of(cells, gene_symbol_key="symbol")
    assert Screen.from_dict(screen.to_dict()).target.tolist() == [0, 1, 2]


def test_rows_that_are_no_genes_are_refused(cells):
    cells.var["feature_types"] = ["Gene Expression"] * 10 + ["CRISPR Guide Capture"] * 2
    with pytest.raises(ScreenError, match="2 rows that are no genes") as refused:
        PyroCell.setup_anndata(cells)
    adata = cells  # the remedy, as it is printed
    remedy = re.search(r"adata = (adata\[.*\]\.copy\(\))", str(refused.value))[1]
    assert not warned(eval(remedy, {"adata": adata}))


def test_guides_among_genes_are_warned_of(cells):
    cells.var_names = [*cells.var_names[:10], "sgARX", "sgBTK_2"]
    assert any("2 rows are guides" in said for said in warned(cells))


# ---------------------------------------------------------------- changes after registration
def normalised(adata: ad.AnnData) -> None:
    adata.X = adata.X / 2


def permuted(adata: ad.AnnData) -> None:
    adata.X = adata.X[np.random.default_rng(0).permutation(adata.n_obs)]


def relabelled(adata: ad.AnnData) -> None:
    adata.obs["perturbation"] = adata.obs["perturbation"].to_numpy()[::-1]


def with_fewer_genes(adata: ad.AnnData) -> None:
    adata._inplace_subset_var(np.arange(10))


def with_fewer_cells(adata: ad.AnnData) -> None:
    adata._inplace_subset_obs(np.arange(200))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (normalised, "other counts"),
        (permuted, "other counts"),
        (relabelled, 'column "perturbation"'),
        (with_fewer_genes, "300 × 10"),
        (with_fewer_cells, "200 × 12"),
    ],
)
def test_what_changed_after_registration_is_noticed(cells, change, what):
    PyroCell.setup_anndata(cells)
    change(cells)
    with pytest.raises(ScreenError, match=f"{what}.*run setup_anndata again"):
        PyroCell(cells, **SMALL)


# ---------------------------------------------------------------- labels
def test_controls_may_have_several_names_or_a_pattern(cells):
    label = cells.obs["perturbation"].to_numpy()
    rows = np.flatnonzero(label == "control")
    named = label.astype(object)
    named[rows] = [("NT_1", "NT_2", "AAVS1")[i % 3] for i in range(len(rows))]
    cells.obs["perturbation"] = named
    for control, one in ((["NT_*", "AAVS1"], "AAVS1"), (["NT_1", "NT_2", "AAVS1"], "NT_1")):
        screen = screen_of(cells, control=control)
        assert screen.perturbations == GENES and screen.control == one
        assert screen.conditions["n_cells"][0] == len(rows)
    with pytest.raises(UnknownLabelError, match='control="NTC"'):
        PyroCell.setup_anndata(cells, control=["NT_1", "NTC"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an error alone, not with a guess about other labels
        with pytest.raises(UnknownLabelError, match=r'control="NT_?\*"'):
            PyroCell.setup_anndata(cells, control="NT")
    assert any("look like controls" in said for said in warned(cells, control="AAVS1"))


def test_a_bracket_in_the_name_of_controls_is_a_bracket(cells):
    cells.obs["perturbation"] = cells.obs["perturbation"].replace("control", "NT[1]")
    assert screen_of(cells, control="NT[1]").control == "NT[1]"
    assert screen_of(cells, control=["NT[1]"]).control == "NT[1]"


def test_more_cells_need_not_have_every_name_of_controls(cells):
    rows = cells.obs["perturbation"] == "control"
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(object)
    cells.obs.loc[rows, "perturbation"] = [f"NT{i % 2}" for i in range(rows.sum())]
    PyroCell.setup_anndata(cells, control=["NT0", "NT1"])
    model = PyroCell(cells, **SMALL)
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    some = cells[cells.obs["perturbation"] != "NT1"].copy()
    assert len(model.get_latent_representation(some)) == some.n_obs


def test_combinations_of_genes_with_types_are_not_warned_of(cells):
    label = cells.obs["perturbation"].to_numpy(dtype=object)
    label[:20] = "NEW1 (CRISPRi)+NEW2 (CRISPRa)"
    label[20:40] = "ARX+NEW1 (CRISPRi)"
    cells.obs["perturbation"] = label
    assert not any("split at" in said for said in warned(cells))


def test_shuffled_labels_find_own_genes_where_the_screen_does(cells):
    cells.var["symbol"] = cells.var_names
    cells.var_names = [f"ENSG{i:05d}" for i in range(cells.n_vars)]
    PyroCell.setup_anndata(cells, gene_symbol_key="symbol")
    model = PyroCell(cells, **SMALL)
    assert (model.shuffle_check(max_epochs=1, progress_bar=False)["listed"] == 0).all()


def test_a_model_with_several_controls_is_saved_and_loaded(cells, tmp_path):
    cells.obs["perturbation"] = [
        f"NT{i % 2}" if p == "control" else p for i, p in enumerate(cells.obs["perturbation"])
    ]
    PyroCell.setup_anndata(cells, control="NT*")
    model = PyroCell(cells, **SMALL)
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    model.save(tmp_path / "m")
    assert PyroCell.load(tmp_path / "m", cells).screen.perturbations == GENES


@pytest.mark.parametrize("sign", "_|,;&")
def test_combinations_with_another_sign_are_warned_of_and_read(cells, sign):
    label = cells.obs["perturbation"].to_numpy(dtype=object)
    label[:20] = f"ARX{sign}BTK"
    cells.obs["perturbation"] = label
    (said,) = warned(cells)
    assert f'combination_separator="{sign}"' in said and "20 cells" in said
    screen = screen_of(cells, combination_separator=sign)
    assert screen.perturbations == GENES
    assert "ARX+BTK" in set(screen.conditions["perturbation"])


@pytest.mark.parametrize("form", ["{}_+_26022.23-P1P2", "chr{}:100-200(+)"])
def test_a_plus_that_joins_nothing_is_warned_of_and_left_alone(cells, form):
    cells.obs["perturbation"] = [
        p if p == "control" else form.format(GENES.index(p)) for p in cells.obs["perturbation"]
    ]
    assert any("combination_separator=None" in said for said in warned(cells))
    assert len(screen_of(cells, combination_separator=None).perturbations) == 3


@pytest.mark.parametrize("label", ["multiplet", "unassigned", "Negative"])
def test_leftovers_of_guide_calling_are_warned_of(cells, label):
    labels = cells.obs["perturbation"].to_numpy(dtype=object)
    labels[:9] = label
    cells.obs["perturbation"] = labels
    assert any(f'"{label}" (9 cells)' in said for said in warned(cells))


def test_text_and_numbers_in_a_column_are_refused_and_nothing_is_written(cells):
    cells.obs["batch"] = np.array([1 if b == "b1" else b for b in cells.obs["batch"]], object)
    before = list(cells.obs), dict(cells.uns)
    with pytest.raises(ScreenError, match=r'"batch" holds text .* and numbers'):
        PyroCell.setup_anndata(cells)
    assert (list(cells.obs), dict(cells.uns)) == before


def test_cells_whose_batches_are_text_where_the_fit_had_numbers_are_refused(cells):
    cells.obs["batch"] = [int(b[1]) for b in cells.obs["batch"]]
    PyroCell.setup_anndata(cells)
    model = PyroCell(cells, **SMALL)
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    other = cells[:50].copy()
    other.obs["batch"] = other.obs["batch"].astype(str)
    with pytest.raises(ScreenError, match="held numbers when the model was fitted"):
        model.get_latent_representation(other)


def test_the_text_none_is_said_to_be_no_label_with_a_remedy_that_works(cells):
    cells.obs["stim"] = ["None" if i % 2 else "IFNG" for i in range(cells.n_obs)]
    with pytest.raises(ScreenError, match='text "None"') as refused:
        PyroCell.setup_anndata(cells, media_key="stim", baseline_media="None")
    remedy = re.search(r"(adata\.obs\[.*?\] = .*?); if not", str(refused.value))[1]
    exec(remedy, {"adata": cells})
    assert not warned(cells, media_key="stim", baseline_media="unlabelled")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pd.to_timedelta([6, 24], unit="h"), (6.0, 24.0)),
        (pd.to_datetime(["2024-03-01", "2024-03-04"]), (0.0, 3.0)),
    ],
)
def test_durations_and_dates_come_with_a_remedy_that_gives_their_times(cells, times, expected):
    cells.obs["time"] = times[np.arange(cells.n_obs) % 2]
    with pytest.raises(ScreenError, match="total_seconds") as refused:
        PyroCell.setup_anndata(cells, time_key="time")
    exec(re.search(r'(adata\.obs\["time"\] = .*)', str(refused.value))[1], {"adata": cells})
    assert screen_of(cells, time_key="time").times == expected


def test_a_control_taken_from_a_column_of_numbers_can_be_saved(cells, tmp_path):
    codes = {"control": 0, "ARX": 1, "BTK": 2, "CDX2": 3}
    cells.obs["perturbation"] = cells.obs["perturbation"].map(codes).astype(int)
    warned(cells, control=cells.obs["perturbation"].min())
    model = PyroCell(cells, **SMALL)
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    model.save(tmp_path / "m")


# ---------------------------------------------------------------- layouts and covariates
def test_one_row_per_condition_and_batch_is_fitted():
    obs = pd.DataFrame(
        [(p, b) for p in ("control", "A", "B") for b in ("r1", "r2", "r3", "r4")],
        columns=["perturbation", "batch"],
    )
    obs.index = obs.index.astype(str)
    counts = np.random.default_rng(0).poisson(50, (len(obs), 30)).astype(np.float32)
    adata = ad.AnnData(sp.csr_matrix(counts), obs)
    warned(adata)
    model = PyroCell(adata, **SMALL)
    model.train(max_epochs=2, progress_bar=False)
    effects = model.perturbation_effects(n_samples=20)
    assert np.isfinite(effects["mean"]).all() and not (effects["fdr"] <= 0.1).any()


def test_a_batch_for_every_cell_is_refused(cells):
    cells.obs["batch"] = cells.obs_names.to_numpy()
    with pytest.raises(ScreenError, match='batch_key="batch" has another value in every cell'):
        PyroCell.setup_anndata(cells)


@pytest.mark.parametrize(("value", "what"), [("one", "one value"), ("each", "another value")])
def test_a_covariate_that_says_nothing_is_refused(cells, value, what):
    cells.obs["donor"] = "d" if value == "one" else cells.obs_names.to_numpy()
    with pytest.raises(ScreenError, match=f'"donor" has {what}'):
        PyroCell.setup_anndata(cells, categorical_covariate_keys=["donor"])


def test_a_constant_number_is_refused(cells):
    cells.obs["age"] = 3.0
    with pytest.raises(ScreenError, match='"age" is 3 in all cells'):
        PyroCell.setup_anndata(cells, continuous_covariate_keys=["age"])


def test_a_stimulus_at_all_times_but_the_first_is_told_from_batches():
    rows = [("control", "none", 0.0, b) for b in ("d1", "d2")]
    rows += [
        (p, "stim", t, b) for p in ("control", "KO") for t in (6.0, 24.0) for b in ("d1", "d2")
    ]
    cells = pd.DataFrame(rows, columns=["perturbation", "media", "time", "batch"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        screen = Screen.from_labels(
            ["g"], cells["perturbation"], media=cells["media"], time=cells["time"],
            batch=cells["batch"], baseline_media="none",
        )  # fmt: skip
    reason = screen.aliased.set_index(["contrast", "name"])["reason"]
    assert "time 6, time 24" in reason[("media", "stim")]
    assert "in none at those times too" in reason[("media", "stim")]
    assert not reason.str.contains("in one batch").any()


# ---------------------------------------------------------------- counts
def test_one_gene_without_depth_is_refused(cells):
    one = cells[np.asarray(cells.X[:, 0].todense()).ravel() > 0, :1].copy()
    with pytest.raises(ScreenError, match="one gene.*size_factor_key"):
        PyroCell.setup_anndata(one)


def test_a_masked_array_is_refused(cells):
    masked = ad.AnnData(np.ma.masked_greater(cells.X.toarray(), 9), cells.obs, cells.var)
    with pytest.raises(CountError, match="masked array"):
        PyroCell.setup_anndata(masked)


def test_numbers_that_single_precision_does_not_hold_are_refused(cells):
    cells.X = cells.X.astype(np.float64)
    cells.X[0, 0] = 2.0**24 + 1
    with pytest.raises(CountError, match="not exact in single precision"):
        PyroCell.setup_anndata(cells)


def test_counts_rounded_after_normalisation_are_warned_of(cells):
    dense = cells.X.toarray()
    cells.X = sp.csr_matrix(np.rint(1e4 * dense / dense.sum(1, keepdims=True)))
    assert any("about the same total" in said for said in warned(cells))


def test_binary_counts_are_warned_of(cells):
    cells.X = sp.csr_matrix((cells.X.toarray() > 0).astype(np.float32))
    assert any("made binary" in said for said in warned(cells))


def test_the_default_precision_of_the_user_changes_nothing(cells):
    answers = []
    for dtype in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            PyroCell.setup_anndata(cells)
            model = PyroCell(cells, **SMALL)
            model.train(max_epochs=1, progress_bar=False)
            answers.append(model.perturbation_effects(n_samples=10))
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(before)
    pd.testing.assert_frame_equal(*answers)


# ---------------------------------------------------------------- what is written
@pytest.fixture
def model(cells) -> PyroCell:
    PyroCell.setup_anndata(cells)
    model = PyroCell(cells, **SMALL)
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    return model


def test_cells_saved_beside_a_model_are_loaded_with_it(model, tmp_path):
    model.save(tmp_path / "m", save_anndata=True)
    again = PyroCell.load(tmp_path / "m")
    assert again.adata.shape == model.adata.shape
    model.save(tmp_path / "n")
    with pytest.raises(Exception, match="holds no cells"):
        PyroCell.load(tmp_path / "n")


def test_what_a_file_cannot_hold_is_left_out_with_a_word(model, tmp_path):
    adata = model.adata
    adata.obs["note"] = np.array([1 if i % 2 else "x" for i in range(adata.n_obs)], object)
    adata.uns |= {"f": {"fn": print}, "fine": [1, 2]}
    adata.uns[1] = "x"
    said: list[str] = []
    tables = {"perturbation_effects": model.perturbation_effects(n_samples=3)}
    out = writable(annotated(model, tables), said.append)
    out.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert set(again.uns) == {"fine", "pyrocell"} and set(again.obs["note"]) == {"1", "x"}
    assert len(said) == 3 and 1 in adata.uns  # nothing of the user's is changed


def test_perturbations_that_a_slash_tells_apart_keep_their_names(cells, tmp_path):
    names = {"ARX": "A/B", "BTK": "A_B"}
    cells.obs["perturbation"] = [names.get(p, p) for p in cells.obs["perturbation"]]
    warned(cells)
    model = PyroCell(cells, **SMALL)
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    tables = {"perturbation_effects": model.perturbation_effects(n_samples=3)}
    annotated(model, tables).write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert list(again.uns["pyrocell_effects_columns"]) == ["A/B", "A_B", "CDX2"]
    assert again.varm["pyrocell_effects"].shape == (cells.n_vars, 3)


def test_a_table_of_more_columns_than_hdf5_names_keeps_them(cells, tmp_path):
    names = [f"P{i}" for i in range(5000)]
    cells.varm["pyrocell_effects"] = pd.DataFrame(
        np.arange(12 * 5000.0).reshape(12, 5000), index=cells.var_names, columns=names
    )
    _name_columns(cells)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert found.uns["pyrocell_effects_columns"].tolist() == names
    assert found.varm["pyrocell_effects"][0, 4999] == 4999.0


def test_a_covariate_that_coincides_with_a_perturbation_is_warned_of(cells):
    cells.obs["donor"] = np.where(cells.obs["perturbation"] == "ARX", "D2", "D1")
    (said,) = warned(cells, categorical_covariate_keys=["donor"])
    assert "ARX cannot be told from the covariate donor[D2]" in said
    aliased = PyroCell(cells, **SMALL).screen.aliased_contrasts
    assert aliased["name"].tolist() == ["ARX"] and aliased["aliased_with"][0] == "donor[D2]"


def test_a_covariate_that_only_goes_with_a_perturbation_is_none_of_that(cells):
    rng = np.random.default_rng(1)
    cells.obs["donor"] = np.where(rng.random(cells.n_obs) < 0.5, "D2", "D1")
    cells.obs["age"] = rng.normal(size=cells.n_obs)
    keys = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    assert not warned(cells, **keys)


@pytest.mark.parametrize("same", ["batch", "other"])
def test_covariates_that_say_the_same_are_refused(cells, same):
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 2, "D2", "D1")
    cells.obs["other"] = np.where(np.arange(cells.n_obs) % 2, "x", "y")
    keys = ["donor", "other"] if same == "other" else ["batch"]
    with pytest.raises(ScreenError, match="says what .* says already"):
        PyroCell.setup_anndata(cells, categorical_covariate_keys=keys)

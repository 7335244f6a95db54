"""Bad input gets an error or a warning that names column, value and remedy; nothing is changed."""

from __future__ import annotations

import copy
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrocell import PyroCell
from pyrocell.data.registration import register
from pyrocell.errors import (
    ConflictingTypesError,
    CountError,
    PyrocellError,
    ScreenError,
    ScreenWarning,
    UnknownLabelError,
)


def snapshot(adata) -> dict:
    counts = adata.X if adata.X is None else sp.csr_matrix(adata.X).toarray()
    return {
        "obs": adata.obs.copy(),
        "var": adata.var.copy(),
        "uns": copy.deepcopy(dict(adata.uns)),
        "keys": [set(m) for m in (adata.obsm, adata.varm, adata.layers, adata.obsp)],
        "X": counts,
        "type": (type(adata.X), adata.is_view),
    }


def assert_untouched(adata, before: dict) -> None:
    after = snapshot(adata)
    pd.testing.assert_frame_equal(after.pop("obs"), before["obs"])
    pd.testing.assert_frame_equal(after.pop("var"), before["var"])
    np.testing.assert_array_equal(after.pop("X"), before["X"])
    assert after == {key: before[key] for key in after}


def refuse(adata, error: type[Exception], message: str, **setup) -> None:
    """Registration raises `error` with all of the message, and leaves the AnnData as it was."""
    before = snapshot(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        with pytest.raises(error, match=message) as caught:
            register(None, adata, **setup)
    assert isinstance(caught.value, PyrocellError) and isinstance(caught.value, ValueError)
    assert_untouched(adata, before)


def warned(adata, **setup) -> list[str]:
    """Registration works; its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        register(None, adata, **setup)
    return [str(w.message) for w in caught if issubclass(w.category, ScreenWarning)]


def labelled(adata, column: str, values) -> None:
    adata.obs[column] = np.asarray(adata.obs[column], dtype=object)
    adata.obs.loc[adata.obs_names[: len(values)], column] = values


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "1 values that are not whole numbers, the first 0.5"),
        (-2.0, "1 values that are negative, the first -2"),
        (np.nan, "1 values that are NaN or infinite, the first nan"),
        (np.inf, "NaN or infinite, the first inf"),
    ],
)
def test_what_is_not_a_count_is_located(tiny_adata, value, message, dense):
    counts = tiny_adata.X.toarray().astype(np.float64)
    counts[5, 7] = value
    tiny_adata.X = counts if dense else sp.csr_matrix(counts)
    refuse(tiny_adata, CountError, f'{message} in cell "cell5", gene "gene4"; .*raw counts')
    tiny_adata.X = counts if dense else sp.csc_matrix(counts)
    refuse(tiny_adata, CountError, 'in cell "cell5", gene "gene4"')


def test_negative_integers_are_refused(tiny_adata):
    tiny_adata.X[3, 2] = -1
    refuse(tiny_adata, CountError, "negative, the first -1")


def test_normalised_values_point_at_the_layer_with_counts(tiny_adata):
    tiny_adata.layers["raw_counts"] = tiny_adata.X.copy()
    tiny_adata.X = tiny_adata.X.astype(np.float32).log1p()
    refuse(tiny_adata, CountError, "not whole numbers.*layer= \\(there are: raw_counts\\)")
    refuse(
        tiny_adata,
        UnknownLabelError,
        'layer="rawcounts" is not in adata.layers; did you mean "raw_counts"',
        layer="rawcounts",
    )


def test_empty_x_and_missing_layers_are_refused(tiny_adata):
    refuse(tiny_adata, UnknownLabelError, "adata.layers is empty", layer="counts")
    empty = anndata.AnnData(None, tiny_adata.obs, tiny_adata.var)
    refuse(empty, CountError, "adata.X is empty")


def test_cells_without_counts_are_refused_with_the_filter_that_removes_them(tiny_adata):
    counts = tiny_adata.X.toarray()
    counts[[3, 8]] = 0
    tiny_adata.X = sp.csr_matrix(counts)
    refuse(
        tiny_adata, CountError, "2 of 120 cells have no counts.*cell3, cell8.*sc.pp.filter_cells"
    )
    assert "2 of 120 cells" in warned(tiny_adata, size_factor_key="depth")[0]


def test_genes_without_counts_are_named_in_a_warning(tiny_adata):
    counts = tiny_adata.X.toarray()
    counts[:, [3, 4]] = 0
    tiny_adata.X = sp.csr_matrix(counts)
    (message,) = warned(tiny_adata)
    assert "2 of 12 genes have no counts in any cell (gene0, gene1)" in message
    assert "sc.pp.filter_genes" in message


def test_a_gene_absent_from_a_batch_is_a_warning_with_its_consequence(tiny_adata):
    counts = tiny_adata.X.toarray()
    counts[np.ix_((tiny_adata.obs["batch"] == "lane2").to_numpy(), [4, 6])] = 0
    for form in (counts, sp.csr_matrix(counts)):
        adata = anndata.AnnData(form, tiny_adata.obs.copy(), tiny_adata.var.copy())
        (message,) = warned(adata)
        assert "2 genes have no counts in one batch or more: 2 in lane2 (gene1, gene3)" in message
        assert "mostly the prior's" in message


# ---------------------------------------------------------------- the object


def test_what_is_not_an_anndata_is_refused():
    with pytest.raises(ScreenError, match="adata is a DataFrame, not an AnnData"):
        register(None, pd.DataFrame())


def test_views_of_backed_files_are_asked_into_memory(tiny_adata, tmp_path):
    tiny_adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    with pytest.raises(ScreenError, match="view of the file.*adata = adata.to_memory()"):
        register(None, backed[:50])
    backed.file.close()
    assert register(None, anndata.read_h5ad(tmp_path / "screen.h5ad")).screen.n_cells == 120


def test_a_view_that_is_refused_stays_a_view(tiny_adata):
    refuse(tiny_adata[:60], UnknownLabelError, "batch_key", batch_key="lane")


def test_duplicate_gene_names_are_refused(tiny_adata):
    tiny_adata.var_names = ["STAT1", "STAT1", *tiny_adata.var_names[2:]]
    refuse(tiny_adata, ScreenError, "more than once \\(STAT1\\).*var_names_make_unique")


def test_nothing_to_fit_is_refused(tiny_adata):
    refuse(tiny_adata[:0].copy(), ScreenError, "0 cells and 12 genes")


# ---------------------------------------------------------------- columns and labels


@pytest.mark.parametrize(
    "argument",
    [
        "batch_key",
        "perturbation_key",
        "perturbation_type_key",
        "media_key",
        "time_key",
        "guide_key",
        "size_factor_key",
        "categorical_covariate_keys",
        "continuous_covariate_keys",
    ],
)
def test_a_misspelt_column_is_named_with_its_neighbour(tiny_adata, argument):
    several = argument.endswith("keys")  # covariates: nobody names them without having them
    value = ["dept"] if several else "dept"
    message = f'{argument}="dept" is not a column of adata.obs; did you mean "depth"\\?'
    message += "$" if several else f"; {argument}=None if there is none$"
    refuse(tiny_adata, UnknownLabelError, message, **{argument: value})


@pytest.mark.parametrize("column", ["perturbation", "media", "batch"])
@pytest.mark.parametrize("missing", [np.nan, "", "nan", None])
def test_cells_without_a_label_are_counted(tiny_adata, column, missing):
    labelled(tiny_adata, column, [missing, missing])
    said = 'with the text "nan".*astype' if missing == "nan" else "without a label.*notna"
    message = f'{column}_key="{column}" has 2 of 120 cells {said}'
    refuse(tiny_adata, ScreenError, message, media_key="media")


@pytest.mark.parametrize(
    ("label", "asked"),
    [("non-targeting", "NT"), ("Control", "control"), ("NTC", "control"), ("ctrl_A", "ctrl_a")],
)
def test_no_control_suggests_the_label_that_probably_is(tiny_adata, label, asked):
    names = tiny_adata.obs["perturbation"].astype(str).replace("control", label)
    tiny_adata.obs["gene"] = names.astype("category")
    refuse(
        tiny_adata,
        UnknownLabelError,
        f'perturbation_key="gene" has 4 labels but none equals control="{asked}"; did you mean '
        f'"{label}"',
        perturbation_key="gene",
        control=asked,
    )


def test_controls_only_is_refused(tiny_adata):
    tiny_adata.obs["perturbation"] = "control"
    refuse(tiny_adata, ScreenError, 'every cell is control="control".*at least one perturbation')


def test_a_batch_without_control_is_a_warning_with_its_consequence(tiny_adata):
    obs = tiny_adata.obs
    kept = ~((obs["batch"] == "lane2") & (obs["perturbation"] == "control"))
    (message,) = warned(tiny_adata[kept.to_numpy()].copy())
    assert "batch lane2 has no control cells: effects there lean on controls of other" in message


@pytest.mark.parametrize("key", [None, "batch"])
def test_one_batch_is_a_warning_with_its_consequence(tiny_adata, key):
    tiny_adata.obs["batch"] = "all"
    (message,) = warned(tiny_adata, batch_key=key)
    assert 'one batch ("all"): batch noise cannot be separated' in message


def test_aliased_contrasts_are_said_by_name(tiny_adata):
    tiny_adata.obs["day"] = np.where(tiny_adata.obs["batch"] == "lane1", 2.0, 3.0)
    (message,) = warned(tiny_adata, time_key="day")
    assert "1 of 4 contrasts" in message and "time 3 was measured only in batch lane2" in message


def test_a_perturbation_with_one_cell_is_a_warning(tiny_adata):
    labelled(tiny_adata, "perturbation", ["IRF7"])
    (message,) = warned(tiny_adata)
    assert "1 perturbation has a single cell (IRF7)" in message and "the prior" in message


def test_warnings_point_at_the_line_that_called(tiny_adata):
    """Not at a line of the package, which the reader did not write."""
    tiny_adata.obs["batch"] = "all"
    tiny_adata.X = tiny_adata.X.multiply(np.arange(12) != 3).tocsr()
    with pytest.warns(ScreenWarning) as caught:
        PyroCell.setup_anndata(tiny_adata)
    assert len(caught) == 2 and {w.filename for w in caught} == {__file__}


def test_no_baseline_medium_suggests_one(tiny_adata):
    names = tiny_adata.obs["media"].astype(str).replace("baseline", "Baseline")
    tiny_adata.obs["media"] = names
    message = (
        'media_key="media" has 2 media but none equals baseline_media="baseline"; did you mean'
    )
    refuse(tiny_adata, UnknownLabelError, message, media_key="media")


# ---------------------------------------------------------------- types and combinations


def test_two_types_on_one_gene_are_refused(tiny_adata):
    tiny_adata.obs["kind"] = "CRISPRi"
    labelled(tiny_adata, "perturbation", ["STAT1+STAT1"])
    labelled(tiny_adata, "kind", ["CRISPRi+CRISPRa"])
    message = '"STAT1\\+STAT1" gives gene "STAT1" two types, CRISPRi and CRISPRa'
    refuse(tiny_adata, ConflictingTypesError, message, perturbation_type_key="kind")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("CRISPRx", '"CRISPRx", which is not a type of perturbation; did you mean'),
        (np.nan, 'value for cells with perturbation "STAT1"'),
        ("CRISPRi+CRISPRa", "2 types for 1 genes"),
    ],
)
def test_types_that_do_not_fit_are_refused(tiny_adata, kind, message):
    tiny_adata.obs["kind"] = "CRISPRi"
    labelled(tiny_adata, "perturbation", ["STAT1"])
    labelled(tiny_adata, "kind", [kind])
    expected = f'perturbation_type_key="kind" has .*{message}'
    refuse(tiny_adata, ScreenError, expected, perturbation_type_key="kind")


def test_an_unknown_type_for_all_is_refused(tiny_adata):
    message = 'perturbation_type has the value "knockdown", which is not a type.*"CRISPRi"'
    refuse(tiny_adata, ScreenError, message, perturbation_type="knockdown")


def test_a_combination_with_an_empty_part_is_refused(tiny_adata):
    labelled(tiny_adata, "perturbation", ["STAT1+"])
    refuse(tiny_adata, UnknownLabelError, '"STAT1\\+" has an empty part')


def test_a_combination_with_an_unknown_gene_is_refused_when_asked_for(tiny_adata):
    screen = register(None, tiny_adata).screen
    with pytest.raises(UnknownLabelError, match='"STAT2" in "JAK2\\+STAT2".*did you mean "STAT1"'):
        screen.encode(pd.DataFrame({"perturbation": ["JAK2+STAT2"]}))


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(120, -1.0), "120 negative times, the lowest -1; count time from the moment"),
        (np.r_[np.nan, np.ones(119)], "1 of 120 times that are NaN or infinite"),
        (np.array(["day 2"] * 120), 'for example "day 2".*adata.obs\\["day"\\].astype\\(str\\)'),
        (pd.Categorical(["2.0"] * 120), "holds text or dates"),
        (pd.to_datetime(["2024-01-01"] * 120), "holds dates.*total_seconds"),
        (np.ones(120, dtype=bool), "True and False"),
    ],
)
def test_times_must_be_numbers_from_zero(tiny_adata, values, message):
    tiny_adata.obs["day"] = values
    refuse(tiny_adata, ScreenError, f'time_key="day" .*{message}', time_key="day")


def test_times_may_be_categories_of_numbers(tiny_adata):
    tiny_adata.obs["day"] = pd.Categorical([2, 3] * 60, categories=[1, 2, 3])
    assert register(None, tiny_adata, time_key="day").screen.times == (2.0, 3.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(120), "120 cells with values ≤ 0"),
        (np.r_[np.nan, np.ones(119)], "1 of 120 cells with NaN"),
        (np.array(["a"] * 120), "numbers are needed"),
    ],
)
def test_size_factors_must_be_above_zero(tiny_adata, values, message):
    tiny_adata.obs["depth"] = values
    expected = f'size_factor_key="depth" .*{message}'
    refuse(tiny_adata, ScreenError, expected, size_factor_key="depth")


def test_continuous_covariates_must_be_finite_numbers(tiny_adata):
    tiny_adata.obs["age"] = np.r_[np.inf, np.ones(119)]
    refuse(tiny_adata, ScreenError, '"age" has 1 of 120', continuous_covariate_keys=["age"])
    refuse(tiny_adata, ScreenError, "numbers are needed", continuous_covariate_keys=["guide"])


def test_unused_categories_and_many_labels_are_no_problem(tiny_adata):
    names = [f"G{i}" for i in range(200)]
    labels = pd.Categorical(
        [*names[:100], *["control"] * 20], categories=["absent", *names, "control"]
    )
    tiny_adata.obs["perturbation"] = labels
    tiny_adata.obs["batch"] = tiny_adata.obs["batch"].cat.add_categories("never")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        screen = register(None, tiny_adata).screen
    assert len(screen.perturbations) == 100 and screen.batches == ("lane1", "lane2")

"""Guides of cells as a matrix: the forms it may have, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from crowds import crowd, labels_of

from pyrocell import PyroCell
from pyrocell.data.registration import register
from pyrocell.errors import ScreenError, UnknownLabelError

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")


def screen_of(adata, **arguments):
    return register(PyroCell, adata, guide_matrix_key="guides", **arguments).screen


@pytest.fixture
def cells():
    return crowd(n_cells=300, n_guides=12, per_cell=4.0, n_genes=8)


def test_every_form_of_the_matrix_is_the_same_screen(cells):
    table = cells.uns["guides"]
    expected = screen_of(cells)
    by_label = cells.copy()
    by_label.obs["perturbation"] = labels_of(cells)
    forms = [register(PyroCell, by_label).screen]
    dense = cells.obsm["guides"].toarray()
    for matrix in (sp.csc_matrix(dense), dense, dense.astype(bool)):
        other = cells.copy()
        other.obsm["guides"] = matrix
        forms.append(screen_of(other))
    other = cells.copy()
    other.obsm["guides"] = pd.DataFrame(dense, cells.obs_names, table.index)
    del other.uns["guides"]
    forms.append(screen_of(other, guide_targets=table["target"].to_dict()))
    forms.append(screen_of(other, guide_targets=table["target"]))
    forms.append(screen_of(other, guide_targets=table.rename_axis("guide").reset_index()))
    other.uns["aims"] = table.rename(columns={"target": "gene"})
    forms.append(screen_of(other, guide_targets="aims"))
    for screen in forms:
        assert screen.conditions.equals(expected.conditions)
        np.testing.assert_array_equal(screen.cell_condition, expected.cell_condition)


def test_counts_need_a_threshold_and_are_read_with_it(cells):
    counted = cells.copy()
    rng = np.random.default_rng(0)
    ambient = rng.integers(0, 3, cells.obsm["guides"].shape)
    counted.obsm["guides"] = sp.csr_matrix(9 * cells.obsm["guides"].toarray() + ambient)
    with pytest.raises(ScreenError, match="guide_threshold=5"):
        screen_of(counted)
    found = screen_of(counted, guide_threshold=5)
    assert found.conditions.equals(screen_of(cells).conditions)


def test_cells_without_a_guide_are_refused_and_the_remedy_works(cells):
    matrix = cells.obsm["guides"].tolil()
    matrix[[3, 7]] = 0
    cells.obsm["guides"] = sp.csr_matrix(matrix)
    with pytest.raises(ScreenError, match="2 of 300 cells have no guide, the first at") as e:
        screen_of(cells)
    names = {"adata": cells, "np": np}
    exec(str(e.value).split("leave them out: ")[1], names)
    assert names["adata"].n_obs == 298
    screen_of(names["adata"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guide_targets": {"sg00": "control"}}, "lacks the target of 11 of 12 guides"),
        ({"guide_targets": "aim"}, "not an entry of adata.uns"),
        ({"guide_targets": 3}, "is a int"),
        ({"guide_targets": pd.DataFrame({"x": [1]})}, "without a column target or gene"),
        ({"control": "none"}, "did you mean .control."),
        ({"guide_threshold": 0.0}, "must be above 0"),
        ({"perturbation_type_key": "batch"}, "perturbation_type="),
        ({"guide_key": "batch"}, "leave it out"),
    ],
)
def test_what_is_missing_is_named(cells, arguments, message):
    with pytest.raises((ScreenError, UnknownLabelError), match=message):
        screen_of(cells, **arguments)


def test_a_wrong_entry_is_named_with_what_is_near(cells):
    with pytest.raises(UnknownLabelError, match='did you mean "guides"'):
        register(PyroCell, cells, guide_matrix_key="guide")
    cells.uns["guides"] = ["a", "b"]
    with pytest.raises(UnknownLabelError, match="12 columns and 2 of their names"):
        screen_of(cells, guide_targets={"a": "control"})


def test_nothing_of_the_users_is_changed_and_changes_are_noticed(cells):
    before = cells.copy()
    manager = register(PyroCell, cells, guide_matrix_key="guides")
    assert (cells.obsm["guides"] != before.obsm["guides"]).nnz == 0
    assert cells.uns["guides"].equals(before.uns["guides"])
    cells.obsm["guides"] = cells.obsm["guides"][::-1]
    with pytest.raises(ScreenError, match=r'other guides in .obsm\["guides"\]'):
        manager.check_unchanged()

"""From guides to perturbations."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from pyrocell import PyroCell
from pyrocell.errors import PyrocellError
from pyrocell.preprocess import assign_guides, guide_matrix, guide_targets, label_cells, steps


@pytest.mark.parametrize(
    ("guide", "gene"),
    [
        ("STAT1_1", "STAT1"),
        ("STAT1-2", "STAT1"),
        ("STAT1.3", "STAT1"),
        ("STAT1-g2", "STAT1"),
        ("STAT1g2", "STAT1"),
        ("sgSTAT1_2", "STAT1"),
        ("sgStat1_sg2", "Stat1"),
        ("HLA-A_1", "HLA-A"),
        ("AARS_+_58128442.23-P1P2", "AARS"),
        ("STAT1", "STAT1"),
        ("NT5E_1", "NT5E"),
        ("SCRIB_2", "SCRIB"),
        ("NKX2-5", "NKX2-5"),
        ("NKX2-5_3", "NKX2-5"),
        ("STAT2_g1_2", "STAT2"),
    ],
)
def test_the_target_is_read_from_the_name(guide, gene):
    assert guide_targets([guide], genes=["NKX2-5", "STAT2"])[guide] == gene


@pytest.mark.parametrize(
    "guide",
    ["NT", "NT_1", "NT-2", "NTg4", "NTC12", "sgNTC_1", "non-targeting_0123", "Non-Targeting",
     "nontargeting1", "non_targeting", "Safe_3", "safe-targeting_1", "ctrl3", "CONTROL_2",
     "scramble", "negative_control_7", "non-targeting_1|non-targeting_2"],
)  # fmt: skip
def test_names_of_controls_are_controls(guide):
    assert guide_targets([guide])[guide] == "control"


def test_tables_patterns_and_the_feature_reference_decide_before_names():
    table = pd.DataFrame({"guide": ["a_1", "b_1"], "gene": ["STAT1", "NT"]})
    assert list(guide_targets(["b_1", "a_1"], table)) == ["control", "STAT1"]
    assert list(guide_targets(["AAVS1_1", "NT_1"], controls=["AAVS1*"])) == ["control", "NT"]
    reference = pd.DataFrame({"target_gene_name": ["JAK2", ""]}, index=["x", "IRF1_2"])
    assert list(guide_targets(reference)) == ["JAK2", "IRF1"]


def test_tables_and_patterns_that_do_not_fit_are_refused():
    names = ["a_1", "b_1"]
    with pytest.raises(PyrocellError, match='lacks the column "gene"'):
        guide_targets(names, pd.DataFrame({"guide": names}))
    with pytest.raises(PyrocellError, match="lacks 1 that were counted: b_1"):
        guide_targets(names, pd.DataFrame({"guide": ["a_1"], "gene": ["a"]}))
    with pytest.raises(PyrocellError, match="names a_1 more than once"):
        guide_targets(names, pd.DataFrame({"guide": ["a_1", "a_1"], "gene": ["a", "b"]}))
    with pytest.raises(PyrocellError, match='"AAVS\\*" fit no guide'):
        guide_targets(names, controls=["AAVS*"])


@pytest.fixture
def called():
    """Cells with: none, A, two guides of A, A and B, A and control, control, two controls."""
    counts = np.zeros((7, 5), int)
    for cell, guides in enumerate([(), (0,), (0, 1), (0, 2), (0, 3), (3,), (3, 4)]):
        counts[cell, list(guides)] = 20
    names = ["A_1", "A_2", "B_1", "NT_1", "NT_2"]
    adata = AnnData(np.ones((7, 2)), pd.DataFrame(index=[f"c{i}" for i in range(7)]))
    calls = assign_guides(counts, "threshold", names=names, cells=adata.obs_names)
    return adata, calls, guide_targets(names)


def test_cells_of_several_targets_are_dropped_or_combined(called):
    kept = label_cells(*called)
    assert dict(kept.obs["perturbation"].astype(str)) == {
        "c1": "A", "c2": "A", "c5": "control", "c6": "control",
    }  # fmt: skip
    assert kept.obs["guide"]["c2"] == "A_1+A_2"
    combined = label_cells(*called, multiplets="combine").obs["perturbation"].astype(str)
    assert (combined["c3"], combined["c4"]) == ("A+B", "A") and "c0" not in combined
    assert called[0].obs.shape == (7, 0) and not called[0].uns
    assert "1 without a guide, 2 with several" in steps(kept)["rule"].iloc[0]


def test_no_control_and_no_cell_are_refused(called):
    adata, calls, targets = called
    with pytest.raises(PyrocellError, match="no cell with a control guide alone"):
        label_cells(adata, calls, targets.replace("control", "C"))
    empty = assign_guides(np.zeros((7, 5)), names=targets.index, cells=adata.obs_names)
    with pytest.raises(PyrocellError, match="no cell is left: 7 without a guide"):
        label_cells(adata, empty, targets)
    with pytest.raises(PyrocellError, match="called for other cells"):
        label_cells(adata[:3].copy(), calls, targets)


def test_all_guides_of_a_cell_are_kept_as_a_matrix_that_can_be_registered():
    rng = np.random.default_rng(0)
    carried = rng.random((400, 12)) < 0.4
    carried[:5] = False
    counts = rng.poisson(np.where(carried, 30.0, 0.1))
    names = [f"NT_{k}" if k < 2 else f"G{k}_1" for k in range(12)]
    calls = assign_guides(pd.DataFrame(counts, columns=names), cells=[f"c{i}" for i in range(400)])
    cells = AnnData(
        rng.poisson(3.0, (400, 6)).astype(np.float32),
        obs=pd.DataFrame({"batch": "1"}, index=[f"c{i}" for i in range(400)]),
    )
    targets = guide_targets(names)
    found = guide_matrix(cells, calls, targets)
    assert "guides" not in cells.obsm
    assert (np.asarray(found.obsm["guides"].sum(1)).ravel() > 0).all()
    assert list(found.uns["guides"]["target"][:3]) == ["control", "control", "G2"]
    right = found.obsm["guides"].toarray() == carried[np.flatnonzero(calls.cells["n_guides"] > 0)]
    assert right.mean() > 0.99
    assert "on average" in steps(found)["rule"].iloc[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PyroCell.setup_anndata(found, guide_matrix_key="guides")
    with pytest.raises(PyrocellError, match="other cells"):
        guide_matrix(cells[:3].copy(), calls, targets)
    with pytest.raises(PyrocellError, match="lack 11 guides"):
        guide_matrix(cells, calls, targets[:1])

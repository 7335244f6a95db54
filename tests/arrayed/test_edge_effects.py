"""Arrayed screens: wells have names, positions, and effects that are found only where they are."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

import pyrocell
from pyrocell.arrayed.edge_effects import WellLevels, edge_effects, fitted_levels, well_levels
from pyrocell.arrayed.plates import PLATES, parse_wells, position_features, well_names
from pyrocell.arrayed.regression import Regression
from pyrocell.errors import ScreenError

FEATURES = {size: position_features(parse_wells(well_names(size), size)) for size in PLATES}
GENES = 40


def levels(size: int, feature: str | None, rms: float, seed: int, shared: float = 0.3) -> tuple:
    """A plate of levels, wells with noise of sd .15, a share of its variance in one direction."""
    rng = np.random.default_rng(seed)
    n = PLATES[size][0] * PLATES[size][1]
    direction = rng.normal(size=GENES)
    direction *= rms / np.sqrt((direction**2).mean())
    common = rng.normal(size=(n, 1)) * rng.normal(size=GENES)
    noise = np.sqrt(1 - shared) * rng.normal(size=(n, GENES)) + np.sqrt(shared) * common
    value = 0.15 * noise + rng.normal(size=GENES)
    if feature:
        value += FEATURES[size][feature].to_numpy()[:, None] * direction
    condition = rng.permutation(np.arange(n) // 4).astype(str)
    active = 0.2 * rng.normal(size=(n // 4 + 1, GENES)) * (np.arange(n // 4 + 1)[:, None] % 2)
    table = pd.DataFrame(value + active[condition.astype(int)], well_names(size))
    return table, condition, direction


@given(st.sampled_from(sorted(PLATES)), st.data())
def test_every_spelling_of_a_well_is_the_same_well(size, data):
    rows, columns = PLATES[size]
    r, c = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    letter = chr(ord("A") + r)
    spelled = [f"{letter}{c + 1}", f"{letter}{c + 1:02d}", f" {letter.lower()}{c + 1:03d} "]
    table = parse_wells(spelled, size)
    assert set(table["well"]) == {f"{letter}{c + 1:02d}"}
    assert table["row"].eq(r).all() and table["column"].eq(c).all()
    assert table["ring"].eq(0).all() == (r in (0, rows - 1) or c in (0, columns - 1))


@pytest.mark.parametrize(
    ("wells", "size", "message"),
    [
        (["A01", "B"], None, 'well "B" is not a row and a column'),
        (["A01", "07B"], None, 'well "07B"'),
        (["A00"], None, 'well "A00"'),
        (["Q01"], None, 'well "Q01" is not on a plate of 384 wells: rows A to P, columns 1 to 24'),
        (["A25"], 384, 'well "A25"'),
        (["I01"], 96, 'well "I01".*is it a plate of 384'),
        (["A01"], 100, "plate_size=100 must be 96 or 384"),
    ],
)
def test_a_bad_well_is_named(wells, size, message):
    with pytest.raises(ScreenError, match=message):
        parse_wells(wells, size)


def test_the_size_of_a_plate_is_read_off_its_wells():
    assert parse_wells(["A01", "H12"]).attrs["plate_size"] == 96
    assert parse_wells(["A01", "H13"]).attrs["plate_size"] == 384


@pytest.mark.parametrize("size", PLATES)
def test_coefficients_of_position_are_differences_between_rim_and_inside(size):
    features = FEATURES[size]
    rim = features["ring"] == 1
    rows, columns = PLATES[size]
    assert rim.sum() == 2 * (rows + columns) - 4
    for name in ("ring", "smooth"):
        assert features[name][rim].mean() - features[name][~rim].mean() == pytest.approx(1)
    for name in ("row", "column"):
        assert features[name].max() - features[name].min() == pytest.approx(1)


@pytest.mark.parametrize(("size", "feature"), [(96, "ring"), (384, "ring"), (384, "smooth")])
def test_an_edge_effect_is_found_with_its_shape_and_size(size, feature):
    table, condition, direction = levels(size, feature, 0.2, seed=1)
    found = edge_effects(table, conditions=condition).set_index("effect")
    assert found.loc["edge", "posterior"] > 0.95
    assert found.loc["edge", "size"] == pytest.approx(0.2, rel=0.2)
    if size == 384:
        assert found["posterior"].loc[["ring", "smooth"]].idxmax() == feature
    both = found.loc[["ring", "smooth"], "posterior"].sum()
    assert both == pytest.approx(found.loc["edge", "posterior"])
    genes = edge_effects(table, conditions=condition, by_gene=True)
    genes = genes[genes["effect"] == feature]
    assert np.corrcoef(genes["mean"], direction)[0, 1] > 0.9


def test_a_null_plate_shows_no_edge_effect_though_genes_vary_together_or_along_columns():
    for seed in range(3):
        table, condition, _ = levels(96, None, 0.0, seed)
        assert (edge_effects(table, conditions=condition)["posterior"] < 0.5).all()
    table, condition, _ = levels(384, "column", 0.2, seed=4)
    found = edge_effects(table, conditions=condition).set_index("effect")["posterior"]
    assert found["column"] > 0.95 and found["edge"] < 0.5 and found["row"] < 0.5


def test_the_error_of_a_contrast_is_what_repetition_shows():
    """Mean of z² over 40 plates and 40 genes; its sampling sd is below .06."""
    squares = []
    for seed in range(40):
        table, condition, _ = levels(96, None, 0.0, seed, shared=0.0)
        features = FEATURES[96]
        rim = features["ring"].to_numpy() == 1
        design = features[["row", "column", "ring"]].to_numpy()
        ones = np.ones((96, 1))
        fit = Regression.of(table.to_numpy(), None, condition, ones, design, rim)
        contrast = fit.contrast(design[:, 2], [design[:, 0], design[:, 1]])
        squares.append((contrast.value**2 / contrast.variance).mean())
    assert np.mean(squares) == pytest.approx(1, abs=0.2)


def test_plates_are_judged_one_by_one_and_together():
    parts = [levels(96, "ring" if i else None, 0.2, seed=i) for i in range(2)]
    table = pd.concat([p[0].add_prefix("g") for p in parts])
    table.index = [f"plate{i // 96}_{well}" for i, well in enumerate(table.index)]
    found = edge_effects(table).set_index(["plate", "effect"])["posterior"]
    assert found["plate0", "edge"] < 0.5 and found["plate1", "edge"] > 0.95
    assert ("all", "edge") in found.index
    renamed = table.set_axis(range(len(table)))
    wells = [name.split("_")[1] for name in table.index]
    plates = dict(zip(renamed.index, (name.split("_")[0] for name in table.index), strict=True))
    again = edge_effects(renamed, wells, plates).set_index(["plate", "effect"])["posterior"]
    pd.testing.assert_series_equal(found, again)


def test_what_cannot_be_judged_is_refused_by_name():
    table = levels(96, None, 0.0, seed=0)[0]
    inner = table.loc[[well for well in table.index if well[0] in "CDEF" and well[1:] != "01"]]
    with pytest.raises(ScreenError, match="wells at the rim"):
        edge_effects(inner.loc[[w for w in inner.index if w[1:] != "12"]], plate_size=96)
    holes = table.copy()
    holes.iloc[3, 2] = -np.inf
    with pytest.raises(ScreenError, match='gene "2" in well "A04"'):
        edge_effects(holes)
    with pytest.raises(ScreenError, match="region=2"):
        edge_effects(table, region=2)
    with pytest.raises(ScreenError, match="prior=1"):
        edge_effects(table, prior=1)
    with pytest.raises(ScreenError, match="wells= does not name A01"):
        edge_effects(table, wells={"A02": "A02"})
    with pytest.raises(ScreenError, match="3 conditions for 96 wells"):
        edge_effects(table, conditions=["a", "b", "c"])
    with pytest.raises(ScreenError, match='well "A01" has cells of several conditions'):
        well_levels(np.ones((4, 3)), ["A01"] * 2 + ["A02"] * 2, ["a", "b", "a", "a"])


@pytest.fixture(scope="module")
def plate() -> AnnData:
    """A plate of 96 wells × 6 cells × 15 genes with a ring effect of .4."""
    rng = np.random.default_rng(3)
    effect = 0.4 * rng.permutation(np.tile([-1.0, 1.0, 0.5], 5))
    rim = FEATURES[96]["ring"].to_numpy()
    level = np.log(20.0) + 0.05 * rng.normal(size=(96, 15)) + rim[:, None] * effect
    well = np.repeat(np.arange(96), 6)
    counts = rng.poisson(np.exp(level[well])).astype(np.int32)
    label = np.array(["control", "A", "B"])[rng.permutation(96) % 3][well]
    obs = pd.DataFrame({"well": np.array(well_names(96))[well], "perturbation": label})
    genes = pd.DataFrame(index=[f"gene{g}" for g in range(15)])
    return AnnData(sp.csr_matrix(counts), obs.set_index(obs.index.astype(str)), genes)


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_counts_and_the_posterior_of_eta_tell_the_same_edge_effect(plate):
    adata = plate.copy()
    pyrocell.PyroCell.setup_anndata(adata, batch_key="well")
    model = pyrocell.PyroCell(adata, n_latent=2, n_response=2, n_hidden=16)
    model.train(max_epochs=20, progress_bar=False)
    of_counts = well_levels(plate.X, plate.obs["well"], plate.obs["perturbation"])
    tables = [edge_effects(x).set_index("effect") for x in (of_counts, fitted_levels(model, 50))]
    for found in tables:
        assert found.loc["edge", "posterior"] > 0.95
    assert tables[1].loc["edge", "size"] == pytest.approx(tables[0].loc["edge", "size"], rel=0.2)
    ax = pyrocell.pl.plate_map(model)
    ax.figure.draw_without_rendering()
    assert [t.get_text() for t in ax.get_yticklabels()] == list("ABCDEFGH")
    plt.close("all")


def test_a_model_without_wells_is_refused(fitted):
    with pytest.raises(ScreenError, match="2 batches, too few to be wells"):
        fitted_levels(fitted)


def test_a_plate_map_shows_values_where_the_wells_are():
    value = pd.Series(np.arange(3.0), ["p_A01", "p_B02", "p_H12"])
    ax = pyrocell.pl.plate_map(value, edges=None)
    shown = ax.images[0].get_array()
    assert shown.shape == (8, 12)
    assert (shown[0, 0], shown[1, 1], shown[7, 11]) == (0.0, 1.0, 2.0)
    assert shown.mask.sum() == 96 - 3
    effects = edge_effects(levels(96, "ring", 0.3, 0)[0])
    forest = pyrocell.pl.edge_effects(effects)
    assert next(iter(forest.get_yticklabels())).get_text().startswith("edge")
    with pytest.raises(ScreenError, match="several plates"):
        pyrocell.pl.plate_map(pd.Series([1.0, 2.0], ["p_A01", "q_A01"]))
    assert WellLevels(levels(96, None, 0, 0)[0]).variance is None
    plt.close("all")


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_the_code_on_the_page_runs_as_it_stands(plate, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "arrayed.md").read_text(encoding="utf-8")
    train = pyrocell.PyroCell.train
    monkeypatch.setattr(
        pyrocell.PyroCell, "train", lambda self: train(self, max_epochs=2, progress_bar=False)
    )
    names = {"adata": plate.copy()}
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert {"ring", "smooth"} <= set(names["effects"]["effect"])
    plt.close("all")


@pytest.mark.parametrize("ring", [0.0, 0.2])
def test_controls_in_the_outer_columns_pass_for_no_edge_effect(ring):
    """All perturbed cells share a shift of RMS .2, and controls are in columns 1 and 24 alone."""
    rng, position = np.random.default_rng(5), parse_wells(well_names(384))
    outer = position["column"].isin([0, 23]).to_numpy()
    condition = np.full(384, "control", dtype=object)
    condition[~outer] = [f"p{i // 5}" for i in rng.permutation((~outer).sum())]
    shift = {c: 0.2 * np.resize([-1, 1], GENES) + 0.2 * rng.normal(size=GENES) for c in condition}
    shift["control"] = np.zeros(GENES)
    value = np.array([shift[c] for c in condition]) + 0.15 * rng.normal(size=(384, GENES))
    value += ring * FEATURES[384][["ring"]].to_numpy() * np.resize([1, 1, -1, -1], GENES)
    found = edge_effects(pd.DataFrame(value, well_names(384)), conditions=condition)
    edge = found.set_index("effect").loc["edge"]
    assert edge["posterior"] > 0.95 if ring else edge["posterior"] < 0.5
    assert not ring or edge["size"] == pytest.approx(ring, rel=0.2)

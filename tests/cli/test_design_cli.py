"""`pyrocell design`, the figures of layouts, and the page about them."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import pyrocell
from pyrocell import design
from pyrocell.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "design.md"
PLAN = ["design", "--perturbations", "20", "--media", "baseline", "IFNG", "--lanes", "4"]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def plan() -> design.Plan:
    return design.Plan(20, ["baseline", "IFNG"], lanes=4, hashing=False)


@pytest.fixture(scope="module")
def layout(plan) -> design.Layout:
    return design.recommend(plan, compared=False).layout


def test_design_leaves_a_lane_map_tables_figures_and_a_summary(tmp_path, capsys):
    out = tmp_path / "plan"
    assert main([*PLAN, "--no-hashing", "--min-controls", "50", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert (out / "summary.md").read_text() in printed.out
    assert "mixed with batch noise" in printed.out and "searching" in printed.err
    table = pd.read_csv(out / "lane_map.csv")
    assert table["lane"].nunique() == 4 and (table.groupby("lane")["media"].nunique() == 1).all()
    assert (table.loc[table["sample"] == "control", "cells"] >= 50).all()
    contrasts = pd.read_csv(out / "contrasts.csv")
    assert len(contrasts) == 20 * 3 + 1 and (~contrasts["estimable"]).sum() == 1
    comparison = pd.read_csv(out / "comparison.csv", index_col="layout")
    assert comparison.index[0] == "recommended" and comparison["ratio"].min() == 1
    curve = pd.read_csv(out / "cost_curve.csv")
    assert set(curve["varied"]) == {"lanes", "control_share"}
    figures = {file.stem for file in (out / "figures").iterdir()}
    assert figures == {"lane_map", "layout_graph", "cost_curve"}


def test_what_is_announced_is_written_and_numbers_have_no_noise(tmp_path, capsys):
    out = tmp_path / "plan"
    (out / "figures").mkdir(parents=True)
    for stale in ("cost_curve.csv", "figures/cost_curve.png", "notes.txt"):
        (out / stale).write_text("of an earlier run")
    assert main([*PLAN, "--no-hashing", "--no-curve", "--force", "-o", str(out)]) == 0
    told = capsys.readouterr().out.split("Written to")[1].splitlines()[1:]
    announced = {line.split()[0] for line in told}
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert announced == written - {"notes.txt"} and "cost_curve.csv" not in announced
    for file in out.glob("*.csv"):
        numbers = re.findall(r"(?<![\w.])\d+\.\d+", file.read_text())
        assert not [n for n in numbers if len(n.replace(".", "").lstrip("0")) > 8], file


def test_what_cannot_be_tested_is_printed_with_what_to_add(tmp_path, capsys):
    times = ["--times", "2", "4", "--no-curve"]
    assert main([*PLAN, *times, "--no-hashing", "-o", str(tmp_path / "apart")]) == 0
    apart = capsys.readouterr().out.split("## Assumptions that it can test")[1]
    assert "no_response: 0 of 20" in apart
    assert "for 20 of the others: put cells with and without IFNG in one batch" in apart
    assert "this plan rules it out" in apart and "perturbation01" not in apart
    assert main([*PLAN, *times, "-o", str(tmp_path / "hashed")]) == 0
    hashed = capsys.readouterr().out.split("## Assumptions that it can test")[1]
    assert "no_response: 20 of 20" in hashed and "rules it out" not in hashed


def test_a_lane_map_of_the_lab_is_scored_beside(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*PLAN, "--no-curve", "-o", str(first)]) == 0
    habit = pd.read_csv(first / "lane_map.csv")
    habit.loc[habit["sample"] == "control", "cells"] //= 20
    habit.to_csv(tmp_path / "habit.csv", index=False)
    given = ["--lane-map", str(tmp_path / "habit.csv"), "--min-controls", "300"]
    assert main([*PLAN, "--no-curve", *given, "-o", str(second)]) == 0
    printed = capsys.readouterr()
    assert "habit does not meet the plan: --min-controls 300" in printed.err
    table = pd.read_csv(second / "comparison.csv", index_col="layout")
    assert table.loc["habit", "error"] > table.loc["recommended", "error"]
    assert not (second / "cost_curve.csv").exists()


def test_noise_is_read_off_a_saved_model(tmp_path, make_screen, build, capsys):
    adata = make_screen(media=1)
    model = build(adata)
    model.train(max_epochs=1, progress_bar=False)
    model.save(tmp_path / "model")
    del adata.uns["truth"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ["--model", str(tmp_path / "model"), "--cells", str(tmp_path / "cells.h5ad")]
    assert main([*PLAN, "--no-curve", *read, "-o", str(tmp_path / "out")]) == 0
    assert main([*PLAN, *read[:2], "-o", str(tmp_path / "other")]) == 2
    assert "--model and --cells go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lanes", "1", "--no-hashing"], "--lanes 2 (now 1)"),
        (["--min-cells", "5000"], "--min-cells 952 (now 5000)"),
        (["--apart", "IFNG", "TNF"], '"TNF" is neither a medium nor a time'),
        (["--perturbations", "genes.txt"], '--perturbations "genes.txt" is neither'),
        (["--batch-sd", "-1"], "--batch-sd"),
    ],
)
def test_what_cannot_be_planned_is_one_plain_line(tmp_path, capsys, options, words):
    assert main([*PLAN, *options, "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("pyrocell: error: ") and words in err[-1]
    assert not (tmp_path / "out").exists()


def test_perturbations_can_be_a_file_of_names(tmp_path):
    (tmp_path / "genes.txt").write_text("STAT1\nJAK2\n\nIRF1\n")
    options = ["design", "--perturbations", str(tmp_path / "genes.txt"), "--no-curve"]
    assert main([*options, "-o", str(tmp_path / "out")]) == 0
    contrasts = pd.read_csv(tmp_path / "out" / "contrasts.csv")
    assert list(contrasts["perturbation"]) == ["STAT1", "JAK2", "IRF1"]


# -------------------------------------------------------------------- figures
def test_the_lane_map_shows_every_cell(layout):
    _, given = plt.subplots()
    ax = pyrocell.pl.lane_map(layout, ax=given)
    assert ax is given
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(
        design.lane_map(layout)["cells"].sum()
    )
    hatched = sum(bar.get_height() for bar in ax.patches if bar.get_hatch())
    assert hatched == pytest.approx(layout.cells[0].sum(), rel=1e-2)
    ax.figure.draw_without_rendering()


def test_the_layout_graph_has_a_line_per_link_and_a_colour_per_component(
    layout, make_screen, build
):
    ax = pyrocell.pl.layout_graph(layout)
    assert "2 connected components" in ax.get_title()
    assert len(ax.lines) == 2 * layout.cells.shape[-1]  # controls and perturbations of each lane
    assert len({tuple(line.get_color()) for line in ax.lines}) == 2
    screen = build(make_screen()).screen
    assert "1 connected component" in pyrocell.pl.layout_graph(screen).get_title()
    ax.figure.draw_without_rendering()


def test_the_cost_curve_is_drawn_as_tabulated(plan):
    table = design.cost_curve(plan, lanes=[1, 2, 4], control_shares=[0.1, 0.3])
    axes = pyrocell.pl.cost_curve(table)
    for ax, varied in zip(axes, ("lanes", "control_share"), strict=True):
        part = table[(table["varied"] == varied) & table["error"].notna()]
        drawn = next(line for line in ax.lines if line.get_label() == "all")
        np.testing.assert_allclose(drawn.get_ydata(), part["error"])
    axes[0].figure.draw_without_rendering()


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_the_code_on_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    blocks = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert len(blocks) > 5
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        if "model" not in block:  # those need a fitted one
            exec(block, names)
    assert (tmp_path / "lane_map.csv").exists()

"""Figures of assumptions: what is drawn is what the table says, and what cannot be tested shows."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import pyrocell
from pyrocell.errors import ScreenError, UnknownLabelError

KINDS = ("steady", "steady_vs_control", "silent_at_baseline", "no_response")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def table() -> pd.DataFrame:
    """Three knockouts in two media; steady cannot be tested, and B nowhere."""
    rows = []
    for kind in KINDS:
        media = {"silent_at_baseline": ["baseline"], "no_response": ["IFNG"]}
        for medium in media.get(kind, ["baseline", "IFNG"]):
            for i, name in enumerate("ABC"):
                testable = kind != "steady" and name != "B"
                prior = 0.2 if kind == "no_response" else 0.5
                posterior = (0.03, None, 0.96)[i] if testable else prior
                size = 0.1 * (i + 1) if testable else np.nan
                rows.append((kind, name, medium, testable, "why", prior, posterior, size))
    columns = "assumption perturbation media testable reason prior posterior size".split()
    out = pd.DataFrame(rows, columns=columns)
    return out.assign(lower=out["size"] / 2, upper=out["size"] * 2)


def names(ax, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


def drawn(axes) -> None:
    np.atleast_1d(axes)[0].figure.draw_without_rendering()


def hatched(ax) -> int:
    return sum(len(c.get_paths()) for c in ax.collections if c.get_hatch())


def test_every_function_draws_into_the_axes_it_is_given(table, fitted):
    _, ax = plt.subplots()
    assert pyrocell.pl.assumption_map(table, ax=ax) is ax
    drawn(ax)
    _, axes = plt.subplots(1, 2)
    assert list(pyrocell.pl.prior_posterior(table, "no_response", axes=axes)) == list(axes)
    drawn(axes)
    genes = list(fitted.screen.genes[:2])
    answer, name = fitted.assumptions(n_samples=2), fitted.screen.perturbations[0]
    _, axes = plt.subplots(1, 2)
    curves = pyrocell.pl.response_curves(
        fitted, name, genes=genes, table=answer, n_samples=5, axes=axes
    )
    assert list(curves) == list(axes)
    drawn(axes)
    with pytest.raises(ScreenError, match="2 genes need as many axes, not 1"):
        pyrocell.pl.response_curves(
            fitted, name, genes=genes, table=answer, n_samples=5, axes=[plt.gca()]
        )


def test_a_fitted_model_s_table_draws(fitted):
    answer = fitted.assumptions(n_samples=2)
    ax = pyrocell.pl.assumption_map(answer)
    drawn(ax)
    shown = answer[answer["assumption"] != "memory"]
    assert hatched(ax) == (~shown["testable"]).sum()
    for kind in answer.loc[answer["testable"], "assumption"].unique():
        drawn(pyrocell.pl.prior_posterior(answer, kind))


def test_the_map_hatches_what_cannot_be_tested_and_numbers_the_rest(table):
    ax = pyrocell.pl.assumption_map(table)
    assert hatched(ax) == (~table["testable"]).sum()
    assert len(ax.texts) == table["testable"].sum()
    assert {text.get_text() for text in ax.texts} == {"0.03", "0.96"}
    assert names(ax, "y") == ["A", "B", "C"]
    assert names(ax, "x")[:2] == ["steady: baseline", "steady: IFNG"]


def test_the_colour_s_middle_is_the_prior_of_the_row(table):
    for prior in (0.1, 0.5, 0.8):
        rows = table[table["assumption"] == "silent_at_baseline"].assign(prior=prior)
        at = [prior, 0.5, prior / 2]  # B is not testable
        ax = pyrocell.pl.assumption_map(rows.assign(posterior=at))
        np.testing.assert_allclose(ax.collections[0].get_array(), [0.5, 0.25])
        bar = ax.figure.axes[-1]
        assert [label.get_text() for label in bar.get_yticklabels()] == [
            "0",
            f"prior, {prior}",
            "1",
        ]
    ax = pyrocell.pl.assumption_map(rows.assign(posterior=[0.9, 0.5, 1.0]))
    np.testing.assert_allclose(ax.collections[0].get_array(), [0.75, 1.0])


def test_without_media_the_map_has_one_column_and_the_order_of_rows_is_the_table_s(table):
    rows = table[table["media"] == "baseline"].iloc[::-1]
    ax = pyrocell.pl.assumption_map(rows, "steady_vs_control")
    assert names(ax, "x") == ["steady vs control"]
    assert names(ax, "y") == ["C", "B", "A"]
    both = pyrocell.pl.assumption_map(rows, ["steady_vs_control", "silent_at_baseline"])
    assert len(names(both, "x")) == 2


def test_media_of_an_assumption_stand_together_whatever_the_order_of_rows(table):
    shuffled = table.sample(frac=1, random_state=3)
    columns = names(pyrocell.pl.assumption_map(shuffled), "x")
    kinds = [column.split(":")[0] for column in columns]
    assert len(columns) == 6 and sum(a != b for a, b in itertools.pairwise(kinds)) == 3


def test_prior_and_posterior_are_the_table_s_least_steady_on_top(table):
    left, right = pyrocell.pl.prior_posterior(table, "steady_vs_control", "IFNG")
    assert names(left, "y") == ["A", "C", "B"]  # B cannot be tested
    prior, posterior = left.collections[1], left.collections[2]
    np.testing.assert_allclose(prior.get_offsets()[:, 0], 0.5)
    np.testing.assert_allclose(posterior.get_offsets()[:, 0], [0.03, 0.96])
    ends = [s[:, 0] for s in right.collections[0].get_segments() if len(s)]
    np.testing.assert_allclose(ends, [[0.05, 0.2], [0.15, 0.6]])
    assert right.lines[0].get_xdata()[0] == 0.05
    _, right = pyrocell.pl.prior_posterior(table, "steady_vs_control", region=0.1)
    assert right.lines[0].get_xdata()[0] == 0.1


def test_a_slope_is_held_against_one_half_blocked_on_top(table):
    left, right = pyrocell.pl.prior_posterior(table, "no_response")
    assert names(left, "y") == ["C", "A", "B"]  # B cannot be tested
    assert right.lines[0].get_xdata()[0] == 0.5


def test_conditions_of_several_media_are_told_apart(table):
    left, _ = pyrocell.pl.prior_posterior(table, "steady_vs_control")
    assert sorted(names(left, "y"))[:2] == ["A | IFNG", "A | baseline"]


def test_curves_are_the_effects_and_the_band_lies_around_the_last_value(fitted):
    name, gene = fitted.screen.perturbations[0], fitted.screen.genes[3]
    answer = fitted.assumptions(n_samples=2)
    (ax,) = pyrocell.pl.response_curves(
        fitted, name, genes=gene, table=answer, region=0.07, n_samples=10
    )
    means = [
        fitted.perturbation_effects([name], time=t, n_samples=10).set_index("gene").at[gene, "mean"]
        for t in fitted.screen.times
    ]
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), means)
    edges = sorted(line.get_ydata()[0] for line in ax.lines[:2])
    np.testing.assert_allclose(edges, [means[-1] - 0.07, means[-1] + 0.07], rtol=1e-6)
    assert "P(steady vs control)" in ax.figure.get_suptitle()
    axes = pyrocell.pl.response_curves(
        fitted, name, fitted.screen.media[0], table=answer, n_genes=4, n_samples=5
    )
    assert len(axes) == 4 and fitted.screen.media[0] in axes[0].figure.get_suptitle()


def test_a_band_of_what_cannot_be_tested_is_hatched(fitted):
    name = fitted.screen.perturbations[0]
    answer = fitted.assumptions(n_samples=2).assign(testable=False)
    (ax,) = pyrocell.pl.response_curves(
        fitted, name, genes=fitted.screen.genes[0], table=answer, n_samples=5
    )
    assert [patch.get_hatch() for patch in ax.patches] == ["////"]
    assert "not testable" in ax.figure.get_suptitle()


def test_what_cannot_be_drawn_is_said_with_the_remedy(table, fitted, make_screen, build):
    with pytest.raises(UnknownLabelError, match='"stedy" is not.*did you mean "steady"'):
        pyrocell.pl.assumption_map(table, "stedy")
    with pytest.raises(UnknownLabelError, match='media "TCR" is not in the table; there are'):
        pyrocell.pl.prior_posterior(table, "no_response", "TCR")
    with pytest.raises(ScreenError, match="can test steady for none of 6 conditions.*A: why"):
        pyrocell.pl.prior_posterior(table, "steady")
    with pytest.raises(ScreenError, match=r"no column prior; pass .* model\.assumptions\(\)"):
        pyrocell.pl.assumption_map(fitted.testability())
    name, answer = fitted.screen.perturbations[0], fitted.assumptions(n_samples=2)
    for genes, tried, match in (
        ("Gene00", answer, 'gene "Gene00" is not in the table.*did you mean'),
        (None, table, f'perturbation "{name}" is not in the table; there are: A, B, C'),
    ):
        with pytest.raises(UnknownLabelError, match=match):
            pyrocell.pl.response_curves(fitted, name, genes=genes, table=tried, n_samples=5)
    with pytest.raises(ScreenError, match="no times.*register a time_key"):
        pyrocell.pl.response_curves(build(make_screen()), "gene0")

"""Which assumptions a layout can test: against brute force, its laws, and the words for it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import screen_of
from scipy.linalg import null_space

import pyrocell
from pyrocell.assumptions.testability import comparisons
from pyrocell.assumptions.testability import (
    testability as table_of,  # pytest collects names in test…
)
from pyrocell.screen.screen import Screen

DATA = Path(__file__).parents[3] / "shared" / "data"
KEYS = ["assumption", "perturbation", "media"]
LABELS = ["perturbation", "media", "time", "batch"]


def cells(*rows: str) -> pd.DataFrame:
    """Cells written as "control A | baseline M | 1 2 | x", every combination of the levels."""
    levels = [[part.split() for part in row.split("|")] for row in rows]
    table = pd.DataFrame([c for row in levels for c in itertools.product(*row)], columns=LABELS)
    return table.astype({"time": float})


def rows_of(screen: Screen) -> pd.DataFrame:
    return table_of(screen).set_index(KEYS).sort_index()


def row(screen: Screen, assumption: str, perturbation: str, media: str = "baseline") -> pd.Series:
    return rows_of(screen).loc[(assumption, perturbation, media)]


# ---------------------------------------------------------------- laws

CONDITIONS = list(
    itertools.product(["control", "A", "B", "A+B"], ["baseline", "M"], [1.0, 2.0, 3.0])
)
PAIRS = [(*condition, batch) for condition in CONDITIONS for batch in "xyz"]
# Without control cells or with controls only there is no screen; the baseline is kept so that media
# keep their meaning when cells are added.
KEPT = [("control", "baseline", 1.0, "x"), ("A", "M", 2.0, "y")]


@st.composite
def layouts(draw) -> pd.DataFrame:
    """One cell in each of some pairs of condition and batch; few conditions are in two batches."""
    places = ["", "x", "y", "z", *draw(st.sampled_from([[], ["xy"], ["xy", "yz"]]))]
    n = len(CONDITIONS)
    batches = draw(st.lists(st.sampled_from(places), min_size=n, max_size=n))
    chosen = [
        (*condition, b) for condition, held in zip(CONDITIONS, batches, strict=True) for b in held
    ]
    return pd.DataFrame(list(dict.fromkeys([*KEPT, *chosen])), columns=LABELS)


def contrasts(conditions: pd.DataFrame, key: tuple[str, str, str]) -> list[list[tuple[int, int]]]:
    """Every contrast that would test an assumption, as (condition, sign)s; not via the package."""
    assumption, p, m = key
    index = {(r.perturbation, r.media, r.time): c for c, r in enumerate(conditions.itertuples())}
    pairs = list(itertools.permutations([1.0, 2.0, 3.0], 2))
    wanted = {
        "necessary": [[(p, m, t, 1), (p, m, s, -1)] for s, t in pairs],
        "steady": [[(p, m, t, 1), (p, m, s, -1)] for s, t in pairs],
        "steady_vs_control": [
            [(p, m, t, 1), (p, m, s, -1), ("control", m, t, -1), ("control", m, s, 1)]
            for s, t in pairs
        ],
        "silent_at_baseline": [[(p, m, t, 1), ("control", m, t, -1)] for t in (1.0, 2.0, 3.0)],
        "no_response": [
            [
                (p, m, t, 1),
                (p, "baseline", t, -1),
                ("control", m, t, -1),
                ("control", "baseline", t, 1),
            ]
            for t in (1.0, 2.0, 3.0)
        ],
        "memory": [],
    }[assumption]
    there = [c for c in wanted if all(term[:3] in index for term in c)]
    return [[(index[term[:3]], term[3]) for term in c] for c in there]


def null_vectors(screen: Screen) -> np.ndarray:
    """Condition means of settings that predict zero everywhere, coded against a first condition."""
    condition, batch = np.nonzero(screen.layout.to_numpy())
    n, b = screen.layout.shape
    treatment = np.hstack([np.ones((n, 1)), np.eye(n)[:, 1:]])  # intercept and differences from it
    to_zero = np.vstack([np.eye(b - 1), -np.ones(b - 1)])  # effects that sum to zero over batches
    null = null_space(np.hstack([treatment[condition], to_zero[batch]]))
    return treatment @ null[:n]


@given(layouts())
def test_testable_means_that_no_two_settings_agree_on_all_cells_and_not_on_the_contrast(table):
    screen = screen_of(table)
    null = null_vectors(screen)
    for key, found in rows_of(screen).iterrows():
        possible = [
            # a share of the response asks for the response itself: each half of its contrast
            all(
                np.allclose(sum(sign * null[c] for c, sign in part), 0, atol=1e-9)
                for part in (
                    [contrast[:2], contrast[2:]] if key[0] == "no_response" else [contrast]
                )
            )
            for contrast in contrasts(screen.conditions, key)
        ]
        assert found["testable"] == any(possible), key


@given(layouts())
def test_the_contrast_given_for_a_testable_row_is_one_that_tests_it(table):
    screen = screen_of(table)
    null = null_vectors(screen)
    for comparison in comparisons(screen):
        weights = comparison.weights
        key = (comparison.assumption, comparison.perturbation, comparison.media)
        assert comparison.testable == bool(weights) and sum(weights.values()) == 0
        if weights:
            np.testing.assert_allclose(sum(w * null[c] for c, w in weights.items()), 0, atol=1e-9)
            possible = map(sorted, contrasts(screen.conditions, key))
            assert sorted(weights.items()) in possible


@given(layouts(), st.permutations("xyz"), st.permutations([1.0, 2.0, 3.0]), st.randoms())
def test_names_and_order_do_not_matter(table, batches, times, random):
    names = {"A": "ZAP70", "B": "LAT", "A+B": "LAT+ZAP70", "control": "control", "all": "all"}
    media = {"baseline": "rest", "M": "TCR"}
    renamed = table.assign(
        perturbation=table["perturbation"].map(names),
        media=table["media"].map(media),
        batch=table["batch"].map(dict(zip("xyz", batches, strict=True))),
        time=table["time"].map(dict(zip([1.0, 2.0, 3.0], times, strict=True))),
    )
    order = [i for i in range(len(table)) for _ in range(random.randint(1, 3))]
    random.shuffle(order)
    there = rows_of(screen_of(renamed.iloc[order], baseline_media="rest"))["testable"]
    here = table_of(screen_of(table))
    here["perturbation"] = here["perturbation"].map(names)
    here["media"] = here["media"].map(media)
    pd.testing.assert_series_equal(here.set_index(KEYS).sort_index()["testable"], there)


@given(layouts(), st.lists(st.sampled_from(PAIRS), max_size=15))
def test_more_cells_never_make_an_assumption_untestable(table, more):
    before = rows_of(screen_of(table))["testable"]
    more = pd.DataFrame(more, columns=LABELS)
    together = pd.concat([table, more], ignore_index=True).astype({"time": float})
    after = rows_of(screen_of(together))["testable"]
    assert (before <= after.reindex(before.index)).all()


@given(layouts())
def test_every_row_has_a_reason_and_every_untestable_row_a_remedy(table):
    found = table_of(screen_of(table))
    assert not found.duplicated(KEYS).any()
    assert found["reason"].str.len().min() > 20
    assert (
        found.loc[~found["testable"], "reason"].str.contains(". Next screen: ", regex=False).all()
    )


# ---------------------------------------------------------------- causes, by name


def test_crossed_with_batches_everything_but_memory_is_testable():
    screen = screen_of(cells("control A B A+B | baseline M | 1 2 | x y"))
    found = table_of(screen)
    assert (found["testable"] == (found["assumption"] != "memory")).all()
    assert found["assumption"].value_counts().to_dict() == {
        "necessary": 1,
        "steady": 7,
        "steady_vs_control": 6,
        "silent_at_baseline": 3,
        "no_response": 3,
        "memory": 1,
    }
    back = Screen.from_dict(json.loads(json.dumps(screen.to_dict())))
    pd.testing.assert_frame_equal(table_of(back), found)


def test_time_that_is_batch_is_said_to_be_so():
    screen = screen_of(cells("control A | baseline | 2 | d2", "control A | baseline | 3 | d3"))
    for assumption, who in (("necessary", "control"), ("steady", "A")):
        found = row(screen, assumption, who)
        assert not found["testable"]
        assert (
            "batches that hold no other time (time 2 in batch d2; time 3 in batch d3)"
            in (found["reason"])
        )
        assert "cells of two times in one batch" in found["reason"]
    found = row(screen, "steady_vs_control", "A")
    assert found["testable"]
    assert "share batch d2 at time 2 and share batch d3 at time 3" in found["reason"]


def test_a_split_time_links_the_batches_of_two_times():
    days = cells("control A | baseline | 2 | d2", "control A | baseline | 3 | d3")
    linked = screen_of(pd.concat([days, cells("A | baseline | 2 | d3")]))
    found = row(linked, "necessary", "control")
    assert found["testable"] and "batches d2, d3, which other conditions link" in found["reason"]


def test_a_change_before_the_last_time_says_what_it_leaves_out():
    screen = screen_of(cells("control A | baseline | 1 2 | x", "control A | baseline | 3 | y"))
    found = row(screen, "necessary", "control")
    assert found["testable"] and "what changes until time 3 cannot" in found["reason"]
    assert "cells of times 1, 2 share batch x" in found["reason"]


def test_one_time_point_tests_no_steady_state():
    screen = screen_of(cells("control A | baseline M | 6 | x y"))
    for assumption in ("steady", "steady_vs_control"):
        found = row(screen, assumption, "A", "M")
        assert not found["testable"]
        assert "A in medium M was measured at time 6 only, in batches x, y" in found["reason"]
    untimed = screen_of(cells("control A | baseline M | 6 | x y").drop(columns="time"))
    assert "without time_key=" in row(untimed, "necessary", "control")["reason"]
    assert row(untimed, "silent_at_baseline", "A")["testable"]


def test_no_control_in_a_medium_leaves_its_arms_without_comparison():
    screen = screen_of(cells("control A | baseline | 1 2 | x", "A | M | 1 2 | x"))
    found = row(screen, "steady_vs_control", "A", "M")
    assert not found["testable"] and "control in that medium was never measured" in found["reason"]
    assert "Next screen: add control cells in medium M to the batches of A" in found["reason"]
    found = row(screen, "no_response", "A", "M")
    assert not found["testable"]
    assert "control was never measured in medium M, only in baseline" in found["reason"]
    assert row(screen, "steady", "A", "M")["testable"]


def test_control_at_another_time_is_no_comparison():
    screen = screen_of(cells("control | baseline | 1 | x", "A | baseline M | 2 3 | x"))
    found = row(screen, "silent_at_baseline", "A")
    assert not found["testable"] and "control at time 1, never at the same time" in found["reason"]
    found = row(screen, "steady_vs_control", "A")
    assert (
        not found["testable"]
        and "control in that medium was measured at time 1" in (found["reason"])
    )


def test_control_in_no_shared_batch_is_said_with_the_batches():
    screen = screen_of(cells("control B | baseline | 1 2 | x", "A | baseline | 1 2 | y"))
    for assumption in ("silent_at_baseline", "steady_vs_control"):
        found = row(screen, assumption, "A")
        testable = assumption == "steady_vs_control"  # both changes lie within a batch
        assert found["testable"] == testable
    found = row(screen, "silent_at_baseline", "A")
    assert "A was in batch y and control in batch x at time 2" in found["reason"]
    assert (
        "Next screen: add control cells in medium baseline to the batches of A" in (found["reason"])
    )
    days = [f"{who} | baseline | {t} | {who}{t}" for who in ("control", "A") for t in (1, 2)]
    found = row(screen_of(cells(*days)), "steady_vs_control", "A")
    assert not found["testable"]
    assert "A was in batch A1 and control in batch control1 at time 1" in found["reason"]


def test_where_a_medium_is_a_lane_no_share_of_the_response_is_testable():
    lanes = cells("control A | baseline | 1 | x", "control A | M | 1 | y")
    found = row(screen_of(lanes), "no_response", "A", "M")
    assert not found["testable"]
    assert "that A changes the response can be seen, not which share" in found["reason"]
    both = screen_of(pd.concat([lanes, cells("control A | M | 1 | x")]))
    assert "both responses can be told" in row(both, "no_response", "A", "M")["reason"]
    apart = cells("control | baseline | 1 | x", "control | M | 1 | y", "A | baseline M | 1 | z")
    found = row(screen_of(apart), "no_response", "A", "M")
    assert not found["testable"]
    assert "no condition links" in found["reason"] and "A in medium M in batch z" in found["reason"]


def test_no_baseline_medium_is_said_to_be_missing():
    screen = screen_of(cells("control A | M | 1 2 | x"), baseline_media=None)
    for assumption in ("necessary", "silent_at_baseline", "no_response"):
        found = rows_of(screen).loc[assumption].iloc[0]
        assert not found["testable"] and "every cell was in medium M" in found["reason"]
    assert row(screen, "steady", "control", "M")["testable"]
    some = screen_of(cells("control | baseline | 1 | x", "A | M | 1 | x"))
    found = row(some, "silent_at_baseline", "A")
    assert not found["testable"] and "A was never measured in medium baseline" in found["reason"]


def test_a_gene_seen_only_in_combinations_is_not_known_alone():
    screen = screen_of(cells("control A A+B | baseline M | 1 | x"))
    for assumption, medium in (("silent_at_baseline", "baseline"), ("no_response", "M")):
        found = row(screen, assumption, "B", medium)
        assert not found["testable"] and "only in combinations (A+B)" in found["reason"]
        assert row(screen, assumption, "A+B", medium)["testable"]


def test_memory_asks_for_the_other_order():
    found = row(screen_of(cells("control A | baseline M | 1 2 | x y")), "memory", "all", "M")
    assert not found["testable"] and "M first and are perturbed afterwards" in found["reason"]


# ---------------------------------------------------------------- screens


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_the_embedded_screen_tests_what_is_relative_to_control_and_no_drift():
    obs = pyrocell.datasets.hipsc_timecourse().obs
    found = table_of(screen_of(obs[LABELS]))
    by_name = found.groupby("assumption")["testable"].agg(["sum", "size"])
    assert by_name.to_dict("index") == {
        "necessary": {"sum": 0, "size": 1},
        "steady": {"sum": 0, "size": 23},
        "steady_vs_control": {"sum": 23, "size": 23},
        "silent_at_baseline": {"sum": 23, "size": 23},
    }
    reasons = found.groupby("assumption")["reason"].first()
    assert "time 4 in batch sample_3; time 5 in batch sample_4" in reasons["necessary"]
    assert "sample_3 at time 4" in reasons["steady_vs_control"]


@pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")
def test_a_model_says_what_its_screen_can_test_before_training(make_screen, build):
    model = build(make_screen(media=1, times=(1.0, 2.0)))
    found = model.testability()
    pd.testing.assert_frame_equal(found, table_of(model.screen))
    assert list(found.columns) == [*KEYS, "testable", "reason"]
    assert (found["testable"] == (found["assumption"] != "memory")).all()
    one = table_of(build(make_screen(n_batches=1)).screen).set_index("assumption")
    assert one.loc["silent_at_baseline", "reason"].str.contains("share the only batch").all()


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the screens in {DATA}")
def test_the_stimulation_screen_tests_silence_and_responses_and_no_time():
    obs = anndata.read_h5ad(DATA / "datlinger2021_jurkat_tcr.h5ad", backed="r").obs
    screen = screen_of(obs[["perturbation", "media", "batch"]])
    found = table_of(screen).groupby("assumption")["testable"].mean()
    assert found[["silent_at_baseline", "no_response"]].eq(1).all()
    assert found[["necessary", "steady", "steady_vs_control", "memory"]].eq(0).all()

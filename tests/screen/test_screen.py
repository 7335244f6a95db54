"""Conditions, layout graph and aliased contrasts of a screen, from labels alone."""

from __future__ import annotations

import json
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from layouts import GENES, crossed, screen_of

from pyrocell.errors import ConflictingTypesError, ScreenError, ScreenWarning, UnknownLabelError
from pyrocell.screen.screen import Screen

# ---------------------------------------------------------------- conditions


def test_conditions_are_perturbation_sets_times_media_times_times():
    cells = crossed(
        perturbation=["control", "A", "B+A", " A + B "],
        media=["IFNG", "baseline"],
        time=[2.0, 5.0],
        batch=["x", "y"],
    )
    screen = screen_of(cells)
    assert screen.perturbations == ("A", "B")
    assert screen.media == ("IFNG",) and screen.times == (2.0, 5.0) and screen.batches == ("x", "y")
    assert len(screen.conditions) == 3 * 2 * 2
    assert set(screen.conditions["perturbation"]) == {"control", "A", "A+B"}
    first = screen.conditions.iloc[0]
    assert (first["perturbation"], first["media"], first["time"]) == ("control", "baseline", 2.0)
    assert screen.conditions["n_cells"].sum() == len(cells) == screen.n_cells
    assert (screen.layout.to_numpy().sum(axis=1) == screen.conditions["n_cells"]).all()


def test_each_cell_points_at_the_condition_of_its_labels():
    cells = crossed(
        perturbation=["control", "A", "B", "A+B"], media=["baseline", "M"], batch=[1, 2]
    )
    cells = cells.sample(frac=1.0, random_state=0)
    screen = screen_of(cells)
    found = screen.conditions.iloc[screen.cell_condition]
    assert (found["perturbation"].to_numpy() == cells["perturbation"].to_numpy()).all()
    assert (found["media"].to_numpy() == cells["media"].to_numpy()).all()
    batches = np.array(screen.batches)[screen.cell_batch]
    assert (batches == cells["batch"].astype(str).to_numpy()).all()
    both = screen.condition_of("B + A", "M")
    assert screen.genotype[both].tolist() == [1.0, 1.0]
    assert screen.exposure[both].tolist() == [1.0]
    assert screen.genotype[screen.is_control].sum() == 0


def test_courses_are_of_single_perturbations_where_there_are_controls():
    cells = crossed(perturbation=["control", "A", "B", "A+B"], media=["baseline", "M"], time=[1, 2])
    lacks = (cells["perturbation"] == "control") & (cells["media"] == "M") & (cells["time"] == 2)
    lacks |= (cells["perturbation"] == "B") & (cells["time"] == 1)
    screen = screen_of(cells[~lacks])
    found = screen.courses("baseline")
    assert found.times.tolist() == [1.0, 2.0]
    at = lambda label, time: screen.condition_of(label, "baseline", time)  # noqa: E731
    assert found.control.tolist() == [at("control", 1), at("control", 2)]
    assert found.rows.tolist() == [[at("A", 1), at("A", 2)], [-1, at("B", 2)]]
    assert screen.courses("M").times.tolist() == [1.0]
    assert screen.courses("baseline").some(found.times > 1).rows.shape == (2, 1)
    without = screen_of(crossed(perturbation=["control", "A"])).courses("baseline")
    assert np.isnan(without.times).tolist() == [True] and without.rows.shape == (1, 1)


def test_without_media_times_and_batches_there_is_one_of_each():
    screen = screen_of(crossed(perturbation=["control", "A"]))
    assert screen.media == () and screen.times == () and len(screen.batches) == 1
    assert screen.exposure.shape == (2, 0)
    assert screen.duration.tolist() == [1.0, 1.0] and screen.time_index.tolist() == [0, 0]
    assert screen.conditions["time"].isna().all()


def test_control_inside_a_combination_adds_nothing():
    screen = screen_of(crossed(perturbation=["control", "A", "A+control", "control+control"]))
    assert list(screen.conditions["perturbation"]) == ["control", "A"]


def test_targets_are_columns_of_the_genes_and_minus_one_if_not_measured():
    screen = screen_of(crossed(perturbation=["control", "C", "A", "ZZZ"]))
    assert screen.perturbations == ("A", "C", "ZZZ")
    assert screen.target.tolist() == [0, 2, -1]


def test_a_gene_with_two_types_gives_two_perturbations():
    cells = pd.DataFrame({"perturbation": ["control", "A", "A", "B"]})
    screen = screen_of(cells, perturbation_type=[np.nan, "CRISPRi", "crispra", "CRISPRa"])
    assert screen.perturbations == ("A (CRISPRa)", "A (CRISPRi)", "B")
    assert screen.perturbation_genes == ("A", "A", "B")
    assert screen.perturbation_types == ("CRISPRa", "CRISPRi", "CRISPRa")
    assert screen.indices("A (CRISPRi)+B") == [1, 2]
    with pytest.raises(UnknownLabelError, match='say "A \\(CRISPRa\\)", "A \\(CRISPRi\\)"'):
        screen.indices("A")
    with pytest.raises(ConflictingTypesError, match='gene "A" two types'):
        screen.indices("A (CRISPRi)+A (CRISPRa)")


def test_types_of_a_combination_follow_the_order_of_its_genes():
    perturbation = ["control", "B+A"]
    screen = screen_of(
        pd.DataFrame({"perturbation": perturbation}), perturbation_type=["", "CRISPRi+CRISPRa"]
    )
    assert screen.perturbations == ("A", "B")
    assert screen.perturbation_types == ("CRISPRa", "CRISPRi")


@pytest.mark.parametrize(
    ("label", "kind"),
    [("A+A", "CRISPRi+CRISPRa"), ("A (knockout)+A (CRISPRi)", "knockout")],
)
def test_two_types_on_one_gene_in_one_cell_are_refused(label, kind):
    with pytest.raises(ConflictingTypesError, match='gene "A" two types'):
        screen_of(pd.DataFrame({"perturbation": ["control", label]}), perturbation_type=["", kind])


def test_perturbing_a_gene_twice_is_perturbing_it_once():
    screen = screen_of(crossed(perturbation=["control", "A", "A+A"]))
    assert list(screen.conditions["perturbation"]) == ["control", "A"]


def test_unused_categories_and_narrow_codes_do_not_matter():
    labels = ["control", *(f"G{i}" for i in range(100))]
    cells = pd.Categorical(labels * 2, categories=["never", *labels])
    batch = pd.Categorical(["b"] * 101 + ["a"] * 101, categories=["b", "unused", "a"])
    assert cells.codes.dtype == batch.codes.dtype == np.int8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        screen = Screen.from_labels(GENES, cells, batch=batch)
    assert len(screen.perturbations) == 100 and screen.batches == ("b", "a")
    assert len(screen.conditions) == 101
    assert (screen.layout.to_numpy() == 1).all()


# ---------------------------------------------------------------- asking for conditions


def test_an_unknown_label_is_answered_with_what_is_near():
    screen = screen_of(crossed(perturbation=["control", "STAT1", "JAK2"]))
    assert screen.indices("JAK2+STAT1") == [0, 1]
    assert screen.indices("control") == []
    with pytest.raises(UnknownLabelError, match='"STAT2" in "JAK2\\+STAT2".*did you mean "STAT1"'):
        screen.indices("JAK2+STAT2")
    with pytest.raises(UnknownLabelError, match="empty part"):
        screen.indices("JAK2+")


def test_a_condition_that_was_not_measured_is_said_to_be_so():
    cells = pd.DataFrame(
        {
            "perturbation": ["control", "A", "control"],
            "media": ["baseline", "baseline", "IFNG"],
            "time": [1.0, 2.0, 2.0],
        }
    )
    screen = screen_of(cells)
    assert screen.condition_of("A", time=2) == 2
    with pytest.raises(UnknownLabelError, match='no cell was measured with perturbation "A"'):
        screen.condition_of("A", "IFNG", 2.0)
    with pytest.raises(UnknownLabelError, match="time= is needed"):
        screen.condition_of("A")
    with pytest.raises(UnknownLabelError, match='did you mean "IFNG"'):
        screen.condition_of("A", "IFNg", 2.0)
    with pytest.raises(UnknownLabelError, match="time 7"):
        screen.condition_of("A", time=7.0)


def test_encode_turns_requests_into_arrays():
    cells = crossed(
        perturbation=["control", "A", "B"], media=["baseline", "M"], time=[1.0, 2.0], batch=["x"]
    )
    screen = screen_of(cells)
    request = pd.DataFrame(
        {
            "perturbation": ["A+B", "control", "A"],
            "media": ["M", "baseline", "M"],
            "time": [1.5, 1, 9],
            "batch": [np.nan, "x", "x"],
        }
    )
    genotype, exposure, duration, batch = screen.encode(request)
    assert genotype.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert exposure[:, 0].tolist() == [1, 0, 1]
    assert duration.tolist() == [1.5, 1.0, 9.0]
    assert batch.tolist() == [-1, 0, 0]
    assert genotype.dtype == exposure.dtype == duration.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"media": "N"}, 'medium "N" is not in the screen'),
        ({"perturbation": "Z"}, 'perturbation "Z" is not in the screen'),
        ({"time": -1.0}, "negative"),
        ({"time": "2"}, "text"),
        ({"batch": "y"}, 'batch "y" is not in the screen'),
        ({"medium": "M"}, 'column "medium" is not understood; did you mean "media"'),
    ],
)
def test_encode_refuses_what_the_screen_does_not_have(change, message):
    cells = crossed(
        perturbation=["control", "A"], media=["baseline", "M"], time=[1.0, 2.0], batch=["x"]
    )
    request = {"perturbation": "A", "media": "M", "time": 1.0} | change
    with pytest.raises((UnknownLabelError, ScreenError), match=message):
        screen_of(cells).encode(pd.DataFrame([request]))


def test_a_screen_survives_json():
    cells = crossed(
        perturbation=["control", "A", "A+B"], media=["baseline", "M"], time=[1.0, 2.0], batch="xy"
    )
    for screen in (screen_of(cells), screen_of(cells[["perturbation", "batch"]])):
        back = Screen.from_dict(json.loads(json.dumps(screen.to_dict())))
        pd.testing.assert_frame_equal(back.conditions, screen.conditions)
        pd.testing.assert_frame_equal(back.aliased, screen.aliased)
        pd.testing.assert_frame_equal(back.layout, screen.layout)
        for name in ("genotype", "exposure", "duration", "time_index", "target"):
            np.testing.assert_array_equal(getattr(back, name), getattr(screen, name))
        assert back.perturbations == screen.perturbations and back.times == screen.times
        assert len(back.cell_condition) == 0


def test_new_cells_are_read_in_terms_of_the_known_screen():
    cells = crossed(perturbation=["control", "A", "B"], media=["baseline", "M"], batch=["x", "y"])
    screen = screen_of(cells)
    new = pd.DataFrame({"perturbation": ["B+A", "B"], "media": ["M", "M"], "batch": ["y", "y"]})
    other = screen_of(new, like=screen)
    assert other.perturbations == screen.perturbations and other.batches == screen.batches
    assert other.media == screen.media and other.cell_batch.tolist() == [1, 1]
    assert other.genotype[other.cell_condition].tolist() == [[1, 1], [0, 1]]
    for column, value in (("perturbation", "C"), ("media", "N"), ("batch", "z")):
        with pytest.raises(UnknownLabelError, match="never saw"):
            screen_of(new.assign(**{column: value}), like=screen)


def test_a_million_cells_and_thousands_of_perturbations_are_read_in_seconds():
    rng = np.random.default_rng(0)
    n, k = 300_000, 3000
    labels = np.array(["control", *(f"G{i:04d}" for i in range(k))])
    perturbation = pd.Categorical.from_codes(rng.integers(0, k + 1, n), labels)
    batch = rng.integers(0, 20, n)
    media = np.where(rng.random(n) < 0.5, "baseline", "M")
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScreenWarning)
        screen = Screen.from_labels(GENES, perturbation, media=media, batch=batch)
    assert time.perf_counter() - start < 30
    assert len(screen.conditions) == 2 * (k + 1) and screen.aliased["estimable"].all()

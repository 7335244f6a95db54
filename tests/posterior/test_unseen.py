"""Perturbations that are not in the screen: flagged, explained, as wide as they must be."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pyrocell import Knowledge, Media, Perturb, Protocol, PyroCell, Wait
from pyrocell.errors import KnowledgeError, ProtocolError, ScreenError, UnknownLabelError
from pyrocell.posterior.unseen.place import Place, _Measured, _turns

pytestmark = pytest.mark.filterwarnings("ignore::pyrocell.errors.ScreenWarning")


@pytest.fixture(scope="module")
def names(fitted) -> list[str]:
    return list(fitted.screen.perturbations)


@pytest.fixture(scope="module")
def known(names) -> Knowledge:
    """A new gene that shares sets with the first perturbation alone."""
    return Knowledge.from_gene_sets({"a": [names[0], "new", "x"], "b": [names[1], names[2], "y"]})


def test_a_table_with_unseen_rows_is_the_one_without_them_and_says_which_are_which(
    fitted, names, known
):
    plain = fitted.perturbation_effects(names[:2], n_samples=20)
    table = fitted.perturbation_effects([names[0], "new", names[1]], n_samples=20, knowledge=known)
    assert list(table) == [*plain, "unseen"]
    assert list(table["perturbation"].unique()) == [names[0], "new", names[1]]
    assert table.groupby("perturbation")["unseen"].all().to_dict() == {
        names[0]: False,
        names[1]: False,
        "new": True,
    }
    seen = table[~table["unseen"]].drop(columns=["unseen", "fdr"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(seen, plain.drop(columns="fdr"))
    new = table[table["unseen"]]
    assert (new["count"] == 0).all() and (new["lower"] <= new["upper"]).all()
    assert np.allclose(new["prob_direction"], 1 - new["lfsr"])
    order = table.sort_values("lfsr", kind="stable")
    order = order[~order["few_counts"]]
    expected = order["lfsr"].cumsum() / np.arange(1, len(order) + 1)
    assert np.allclose(order["fdr"], expected, atol=1e-5)


def test_without_knowledge_it_is_like_any_perturbation_of_the_screen(fitted, names):
    """Its mean is that of all, but where one of them met its own gene."""
    asked = {"n_samples": 30, "knowledge": "population"}
    table = fitted.perturbation_effects(["anything"], **asked)
    every = fitted.perturbation_effects(n_samples=30)
    genes = [g for g in fitted.screen.genes if g not in fitted.screen.perturbation_genes]
    mean = every.groupby("gene")["mean"].mean()[genes]
    found = table.set_index("gene")["mean"][genes]
    assert np.allclose(found, mean, atol=0.15 * every["mean"].std())
    spread = every.pivot(index="perturbation", columns="gene", values="mean")[genes].std()
    assert np.corrcoef(table.set_index("gene")["sd"][genes], spread)[0, 1] > 0.5


def test_a_name_that_nobody_knows_is_an_error_and_not_a_prediction(fitted, names, known):
    for question in (
        lambda: fitted.perturbation_effects(["typo"], n_samples=5, knowledge=known),
        lambda: fitted.neighbours("typo", known),
        lambda: fitted.perturbation_effects(["new"], n_samples=5),
    ):
        with pytest.raises(UnknownLabelError, match="typo|new"):
            question()
    with pytest.raises(KnowledgeError, match="population"):
        fitted.perturbation_effects(["new"], knowledge="nothing")
    with pytest.raises(KnowledgeError, match="none of 3 genes"):
        fitted.knowledge(Knowledge.from_gene_sets({"s": ["new", "x", "y"]}))
    for option in ({"path": "store.zarr"}, {"shrunken": False}):
        with pytest.raises(ScreenError, match="knowledge="):
            fitted.perturbation_effects(["new"], knowledge=known, **option)
    with pytest.raises(ScreenError, match="was measured"):
        fitted.neighbours(names[0], known)


def test_neighbours_add_up_to_the_prediction(fitted, names, known):
    table = fitted.neighbours("new", known, n_samples=20)
    assert list(table) == ["perturbation", "neighbour", "source", "weight"]
    assert table["weight"].sum() == pytest.approx(1)
    assert table["neighbour"].iloc[-1] == "mean of all"
    one = table[table["neighbour"] == names[0]]["weight"].sum()
    assert one > 0 and one >= table["weight"].iloc[:-1].max() - 1e-9
    alone = fitted.neighbours("new", known, n_samples=20, n_neighbours=1)
    assert len(alone) == 2


def test_predictions_flag_what_was_not_measured_and_leave_the_rest_alone(fitted, names, known):
    medium = fitted.screen.media[0]
    frame = pd.DataFrame({"perturbation": ["control", names[0], "new", f"new+{names[0]}"]})
    frame = frame.assign(media=medium, time=2.0)
    found = fitted.predict(frame, n_samples=10, knowledge=known)
    assert list(found.obs["unseen"]) == [False, False, True, True]
    assert set(found.obs["perturbation"].iloc[3].split("+")) == {"new", names[0]}
    plain = fitted.predict(frame.iloc[:2], n_samples=10)
    assert np.allclose(found.X[:2], plain.X, rtol=1e-5)
    draws = fitted.predict(frame, n_samples=5, knowledge=known, return_draws=True)
    assert draws.shape == (5, 4, len(fitted.screen.genes)) and "new" in draws["condition"].item(2)
    protocol = Protocol([Perturb("new"), Media(medium), Wait(2.0)])
    same = fitted.predict(protocol, n_samples=10, knowledge=known)
    assert np.allclose(same.X[0], found.X[2], rtol=1e-5) and same.obs["unseen"].all()
    late = Protocol([Media(medium), Wait(1.0), Perturb("new"), Wait(1.0)])
    with pytest.raises(ProtocolError, match="only come first"):
        fitted.predict(late, n_samples=2, knowledge=known)


def test_nothing_has_happened_at_time_zero(fitted, known):
    """W(X, 0) = X, for perturbations that were not measured, too."""
    frame = pd.DataFrame({"perturbation": ["control", "new"], "time": 0.0})
    found = fitted.predict(frame, n_samples=10, knowledge=known)
    assert np.allclose(found.X[0], found.X[1])


def test_cells_can_be_imagined_under_a_perturbation_that_was_not_measured(fitted, known):
    cells = fitted.adata[:6]
    found = fitted.counterfactual(cells, perturbation="new", n_samples=4, knowledge=known)
    assert found.obs["unseen"].all() and found.uns["counterfactual"]["unseen"]
    with pytest.raises(UnknownLabelError, match="new"):
        fitted.counterfactual(cells, perturbation="new", n_samples=4)
    seen = fitted.counterfactual(cells, perturbation="control", n_samples=4, knowledge=known)
    plain = fitted.counterfactual(cells, perturbation="control", n_samples=4)
    assert not seen.obs["unseen"].any() and np.allclose(seen.X, plain.X, rtol=1e-5)


def test_sources_are_weighed_beside_shuffled_names_and_a_saved_model_answers_alike(
    fitted, names, known, tmp_path
):
    table = fitted.knowledge(known, n_permutations=19, n_samples=20)
    assert list(table) == [
        "source", "genes_covered", "n_perturbations", "share", "lower", "upper",
        "log_bayes_factor", "shuffled_lower", "shuffled_median", "shuffled_upper", "p",
    ]  # fmt: skip
    row = table.iloc[0]
    assert row["genes_covered"] == 3 and row["n_perturbations"] == 3
    assert row["lower"] <= row["share"] <= max(row["upper"], row["share"]) and 0.05 <= row["p"] <= 1
    fitted.save(tmp_path / "model")
    again = PyroCell.load(tmp_path / "model", fitted.adata)
    pd.testing.assert_frame_equal(again.knowledge(known, n_permutations=19, n_samples=20), table)
    asked = {"n_samples": 10, "knowledge": known}
    pd.testing.assert_frame_equal(
        again.perturbation_effects(["new"], **asked), fitted.perturbation_effects(["new"], **asked)
    )


# ---------------------------------------------------------------------- intervals
def population(rng: np.random.Generator, n: int, genes: int) -> np.ndarray:
    """Effects in groups of four: most are silent, some large, few genes of a large one move."""
    size = np.repeat(rng.choice([0.02, 0.1, 0.8], n // 4, p=[0.4, 0.3, 0.3]), 4)
    programs = rng.normal(size=(n // 4, genes)) * (rng.random((n // 4, genes)) < 0.2)
    own = rng.normal(size=(n, genes)) * (rng.random((n, genes)) < 0.1)
    return size[:, None] * (0.8 * np.repeat(programs, 4, 0) + 0.5 * own)


def place_of_effects(effects, names, genes, knowledge, n_samples=200):
    """A place whose measured effects are these, with a small error."""
    n, error = len(effects), 0.01
    fit = SimpleNamespace(
        screen=SimpleNamespace(
            perturbations=names, perturbation_genes=names, genes=pd.Index(genes)
        ),
        model=SimpleNamespace(target=torch.full((n,), -1)),
        posterior=SimpleNamespace(seed=0),
    )
    place = Place(fit, knowledge, "baseline", None, n_samples)
    which = _turns(n, n_samples, 0)
    noise = error * np.random.default_rng(1).normal(size=(n_samples, len(genes)))
    none = np.full(n_samples, np.nan)
    measured = _Measured(
        effects, np.full(n, error**2 * len(genes)), which, effects[which] + noise, none
    )
    place.__dict__["measured"] = measured
    return place


@pytest.mark.parametrize("knows", ["groups", "nothing"])
def test_intervals_hold_whether_knowledge_is_worth_something_or_not(knows):
    inside, errors, anchor = [], [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        effects = population(rng, 80, 60)
        names = [f"p{i}" for i in range(80)]
        kernel = 0.9 * np.kron(np.eye(20), np.ones((4, 4))) + 0.1 * np.eye(80)
        labels = names if knows == "groups" else [names[i] for i in rng.permutation(80)]
        knowledge = Knowledge.from_kernel(pd.DataFrame(kernel, index=labels, columns=labels))
        new = np.arange(80) % 4 == 3
        seen = [n for n, out in zip(names, new, strict=True) if not out]
        place = place_of_effects(effects[~new], seen, [f"g{j}" for j in range(60)], knowledge)
        draws = place.draws([n for n, out in zip(names, new, strict=True) if out])
        low, high = np.percentile(draws, [5, 95], axis=0, method="weibull")
        slack = 0.03  # silent effects are smaller than the error of measuring them
        inside.append(((low - slack <= effects[new]) & (effects[new] <= high + slack)).mean())
        errors.append(((draws.mean(0) - effects[new]) ** 2).mean())
        anchor.append(((effects[~new].mean(0) - effects[new]) ** 2).mean())
    assert 0.87 < np.mean(inside) < 0.98
    ratio = np.mean(errors) / np.mean(anchor)
    assert ratio < 0.75 if knows == "groups" else ratio < 1.05

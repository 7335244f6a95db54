"""Guides: how strong they are, who responded, whether they agree; and that nothing is made up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrocell import Assume, PyroCell, pl
from pyrocell.errors import ScreenError, UnknownLabelError


def test_strength_of_guides_and_share_of_responders_are_found(guides_model):
    found = guides_model.guides().set_index("guide")
    assert set(found["n_cells"]) <= set(range(40, 90)) and len(found) == 6
    for p in ("A", "B"):
        strong, weak = found.loc[f"{p}_0"], found.loc[f"{p}_1"]
        assert strong["lower"] > weak["upper"]  # truth: 1 and .5
        assert weak["efficacy"] / strong["efficacy"] == pytest.approx(0.5, abs=0.2)
        assert strong["response_lower"] < 0.7 < strong["response_upper"]
    active = found[found["perturbation"] != "C"]
    assert (active["agree"] > 0.5).all()


def test_of_a_perturbation_that_does_nothing_no_guide_is_told_from_another(guides_model):
    found = guides_model.guides()
    none = found[found["perturbation"] == "C"]
    assert ((none["lower"] < 1) & (none["upper"] > 1)).all()
    active = found[found["perturbation"] != "C"]
    assert none["upper"].sub(none["lower"]).min() > active["upper"].sub(active["lower"]).max()


def test_cells_that_responded_are_told_from_those_that_did_not(guides_model, guides_adata):
    p = guides_model.response_probability()
    obs = guides_adata.obs
    assert p.index.equals(obs.index) and p.between(0, 1).all()
    assert (p[obs["perturbation"] == "control"] == 0).all()
    strong = obs["guide"].isin(["A_0", "B_0"])
    told = pd.concat([p, obs["responded"]], axis=1)[strong]
    yes, no = (told.loc[told["responded"] == on, "response_probability"] for on in (True, False))
    ranks = pd.concat([yes, no]).rank()
    auroc = (ranks.iloc[: len(yes)].sum() - len(yes) * (len(yes) + 1) / 2) / (len(yes) * len(no))
    assert auroc > 0.9
    # of ten cells that are said to have responded with probability q, ten q have
    assert yes.size / len(told) == pytest.approx(told["response_probability"].mean(), abs=0.12)


def test_other_cells_of_the_same_guides_are_judged_alike(guides_model, guides_adata):
    some = guides_adata[guides_adata.obs["perturbation"] == "A"][::3].copy()
    again = guides_model.response_probability(some)
    pd.testing.assert_series_equal(
        again, guides_model.response_probability()[again.index], atol=1e-4
    )


def test_effects_are_those_of_cells_that_responded(guides_model, guides_adata):
    effects = guides_model.perturbation_effects(["A", "B"])
    truth = pd.DataFrame(guides_adata.varm["effects"][:, :2], guides_adata.var_names, ["A", "B"])
    moved = truth.stack()[lambda t: t != 0]
    mean = effects.set_index(["gene", "perturbation"])["mean"].loc[moved.index]
    slope = float((mean * moved).sum() / (moved**2).sum())
    # responding cells are at .75 of the full effect on average; all cells at .53
    assert slope == pytest.approx(0.75, abs=0.12)


def test_the_assumption_that_guides_agree_is_in_the_table(guides_model):
    table = guides_model.assumptions()
    mine = table[table["assumption"] == "guides_agree"].set_index("perturbation")
    assert set(mine.index) == {"A", "B", "C"} and mine["testable"].all()
    assert (mine["prior"] == 0.9).all() and (mine["posterior"] > 0.5).all()
    held = guides_model.assumptions(assume=[Assume("guides_agree", "A", probability=0.5)])
    held = held[held["assumption"] == "guides_agree"].set_index("perturbation")
    assert held.loc["A", "prior"] == 0.5 and held.loc["B", "prior"] == 0.9


def test_that_guides_agree_cannot_be_imposed(guides_adata):
    PyroCell.setup_anndata(guides_adata, guide_key="guide")
    with pytest.raises(ScreenError, match="guides_agree cannot be imposed"):
        PyroCell(guides_adata, n_latent=2, assume=[Assume("guides_agree")])


def test_guides_are_kept_in_files(guides_model, guides_adata, tmp_path):
    guides_model.save(tmp_path / "model")
    again = PyroCell.load(tmp_path / "model", guides_adata)
    pd.testing.assert_frame_equal(again.guides(), guides_model.guides())
    pd.testing.assert_frame_equal(
        again.perturbation_effects(["A"]), guides_model.perturbation_effects(["A"])
    )


def test_sites_of_guides_have_names_in_arviz(guides_model):
    samples = guides_model.posterior_samples(5)
    assert samples["P.guide_efficacy"].shape == (5, 6)
    assert ((samples["P.guide_escapers"] >= 0) & (samples["P.guide_escapers"] <= 1)).all()
    found = guides_model.to_arviz(8, sites=["P.guide_efficacy"])
    assert list(found["posterior"]["guide"].values)[:2] == ["A | A_0", "A | A_1"]


def test_without_guides_there_is_nothing_to_say_of_them(guides_adata):
    PyroCell.setup_anndata(guides_adata)
    model = PyroCell(guides_adata, n_latent=2, n_response=1, n_hidden=8)
    model.train(max_epochs=1, progress_bar=False)
    with pytest.raises(ScreenError, match="guide_key"):
        model.guides()
    with pytest.raises(ScreenError, match="guide_key"):
        model.response_probability()
    assert "guides_agree" not in set(model.testability()["assumption"])


def test_guides_may_be_left_out_of_training(guides_adata):
    PyroCell.setup_anndata(guides_adata, guide_key="guide")
    model = PyroCell(guides_adata, n_latent=2, n_response=1, n_hidden=8)
    model.train(max_epochs=1, progress_bar=False, guides=False)
    with pytest.raises(ScreenError, match="guides=True"):
        model.guides()


def test_a_guide_with_an_effect_of_its_own_is_named(guides_adata):
    """A third of the genes move under one guide alone, in other directions than the effect."""
    adata = guides_adata.copy()
    rng = np.random.default_rng(5)
    mine = (adata.obs["guide"] == "A_1").to_numpy()
    genes = np.flatnonzero(adata.varm["effects"][:, 0] == 0)[:20]
    counts = adata.X.copy()
    counts[np.ix_(mine, genes)] = rng.binomial(counts[np.ix_(mine, genes)].astype(int), 0.45)
    adata.X = counts
    PyroCell.setup_anndata(adata, guide_key="guide")
    model = PyroCell(adata, n_latent=3, n_response=2, n_hidden=16)
    model.train(max_epochs=15, progress_bar=False)
    table = model.assumptions().set_index(["assumption", "perturbation"])["posterior"]
    assert table["guides_agree", "A"] < 0.2 < 0.5 < table["guides_agree", "B"]


def test_guides_are_drawn_beside_the_others_of_their_perturbation(guides_model):
    table = guides_model.guides()
    for share in (False, True):
        ax = pl.guides(table, share=share)
        assert [t.get_text() for t in ax.get_yticklabels()] == table["guide"].tolist()
    assert len(pl.guides(table, n=4).get_yticklabels()) == 4
    with pytest.raises(UnknownLabelError, match="Z"):
        pl.guides(table, "Z")


def test_a_model_read_for_other_cells_knows_their_guides_by_name(
    guides_model, guides_adata, tmp_path
):
    """Fewer guides are then numbered otherwise than in the fit."""
    guides_model.save(tmp_path / "model")
    some = guides_adata[guides_adata.obs["guide"].isin(["control_0", "B_0", "B_1"])].copy()
    again = PyroCell.load(tmp_path / "model", some)
    pd.testing.assert_series_equal(
        again.response_probability(),
        guides_model.response_probability()[some.obs_names],
        atol=1e-4,
    )
    found = again.to_arviz(8, sites=["P.guide_efficacy"])
    assert found["posterior"]["guide"].size == 6

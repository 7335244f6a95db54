"""The change of a condition as a sum of terms: exact, and the answer of the other questions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from view_cells import small_screen

from pyrocell import Knowledge, Media, Perturb, Protocol, PyroCell, Wait
from pyrocell.errors import ScreenError, UnknownLabelError
from pyrocell.posterior.explain import sentences

FEW = 5


@pytest.fixture(scope="module")
def models(make_screen, build, fitted) -> dict[str, PyroCell]:
    """Models of the same screen under different dynamics, hardly trained, and one that is."""
    found = {"fitted": fitted}
    for dynamics in ("none", "relaxation", "node", "flow", "sde"):
        adata = make_screen(media=1, times=(1.0, 2.0), combinations=True)
        model = build(adata, interactions=True, dynamics=dynamics)
        model.train(max_epochs=1, gene_level=False, progress_bar=False)
        found[dynamics] = model
    return found


@pytest.fixture(scope="module")
def ordered(make_screen, build) -> PyroCell:
    """A model of arms that differ in order."""
    adata = make_screen(media=1, times=(1.0, 2.0), n_cells_per_condition=16)
    late = np.arange(adata.n_obs) % 2 == 0
    adata.obs["perturbed_at"] = np.where(late, 0.5, 0.0)
    adata.obs["exposed_at"] = np.where(late, 0.0, 0.5)
    keys = {"perturbation_time_key": "perturbed_at", "media_time_key": "exposed_at"}
    model = build(adata, keys)
    model.train(max_epochs=1, progress_bar=False)
    return model


def apart(draws) -> float:
    """Largest distance of the sum of terms from the answer, over draws and genes."""
    return float(np.abs(draws[:, :-1].sum("term") - draws.sel(term="total")).max())


LABELS = ("one", "pair", "pair that was not measured", "control")


def label_of(model: PyroCell, name: str) -> str:
    first, second, third = model.screen.perturbations
    every = (first, f"{first}+{second}", f"{first}+{third}", "control")
    return dict(zip(LABELS, every))[name]


@hypothesis_settings(max_examples=25)
@given(
    dynamics=st.sampled_from(["fitted", "none", "relaxation", "node"]),
    label=st.sampled_from(LABELS),
    medium=st.booleans(),
    time=st.sampled_from([0.0, 1.0, 1.7, 2.0, 3.0]),
    batch=st.sampled_from([None, "first", "new"]),
    scale=st.sampled_from(["effect", "counts"]),
    against=st.sampled_from([None, "medium", "earlier", "another"]),
)
def test_terms_add_up_to_the_answer_in_every_draw(
    models, dynamics, label, medium, time, batch, scale, against
):
    model = models[dynamics]
    screen = model.screen
    media = screen.media[0] if medium else screen.baseline_media
    others = {
        None: None,
        "medium": {"media": screen.media[0]},
        "earlier": {"time": 0.5},
        "another": screen.perturbations[1],
    }
    frame = {"perturbation": label_of(model, label), "media": media, "time": time}
    if batch is not None:
        frame["batch"] = screen.batches[0] if batch == "first" else "new"
    options = {"scale": scale, "n_samples": FEW, "return_draws": True}
    options["against"] = others[against]
    try:
        draws = model.explain(frame, **options)
    except ScreenError as error:  # nothing was done to it
        assert "compared with itself" in str(error)
        return
    assert apart(draws) < 1e-5


@pytest.mark.parametrize("dynamics", ["flow", "sde"])
@pytest.mark.parametrize("label", LABELS[:2])
def test_terms_add_up_where_states_move(models, dynamics, label):
    model = models[dynamics]
    draws = model.explain(
        label_of(model, label), media=model.screen.media[0], n_samples=2, return_draws=True
    )
    assert apart(draws) < 1e-5
    assert any("where cells go" in str(name) for name in draws.term.values)


@pytest.mark.parametrize("dynamics", ["none", "relaxation", "node", "flow"])
def test_the_total_is_the_effect_that_the_effects_report(models, dynamics):
    model = models[dynamics]
    medium = model.screen.media[0]
    for label in ("one", "pair"):
        name = label_of(model, label)
        effects = model.perturbation_effects([name], media=medium, n_samples=FEW)
        against = {"media": medium}
        table = model.explain(name, media=medium, against=against, n_samples=FEW)
        total = table[table["term"] == "total"]
        assert list(total["gene"]) == list(effects["gene"])
        for column in ("mean", "lower", "upper"):
            np.testing.assert_allclose(total[column], effects[column], atol=2e-5)
        assert "medium" not in set(table["term"])  # both sides met it


def test_the_total_is_the_effect_of_the_gene_level_phase_up_to_the_error_of_draws(fitted):
    name, medium = fitted.screen.perturbations[0], fitted.screen.media[0]
    effects = fitted.perturbation_effects([name], media=medium, n_samples=100)
    table = fitted.explain(name, media=medium, against={"media": medium}, n_samples=100)
    total = table[table["term"] == "total"]
    error = effects["sd"].to_numpy() / np.sqrt(len(fitted.module.gene_level))
    assert (np.abs(total["mean"].to_numpy() - effects["mean"].to_numpy()) < 4 * error + 0.02).all()


@pytest.mark.parametrize("dynamics", ["fitted", "node", "flow"])
@pytest.mark.parametrize("label", LABELS[:3])
def test_on_the_scale_of_counts_the_total_is_what_is_predicted_draw_by_draw(
    models, dynamics, label
):
    model = models[dynamics]
    row = {"perturbation": label_of(model, label), "media": model.screen.media[0], "time": 2.0}
    row["batch"] = model.screen.batches[1]
    other = {"perturbation": "control", "media": "baseline", "time": 2.0}
    logs = [
        np.log(model.predict(pd.DataFrame([r]), n_samples=3, return_draws=True)[:, 0])
        for r in (row, other)
    ]
    draws = model.explain(pd.DataFrame([row]), n_samples=3, scale="counts", return_draws=True)
    np.testing.assert_allclose(draws.sel(term="total"), logs[0] - logs[1], atol=2e-5)


def test_terms_add_up_for_every_order_of_steps(models, ordered):
    name, medium = ordered.screen.perturbations[0], ordered.screen.media[0]
    rows = [
        {"perturbed_at": 0.0, "exposed_at": 0.5},
        {"perturbed_at": 0.5, "exposed_at": 0.0},
        {"perturbed_at": 1.0, "exposed_at": 0.2},
    ]
    found = []
    for row in rows:
        asked = {"perturbation": name, "media": medium, "time": 2.0} | row
        found.append(ordered.explain(asked, n_samples=FEW, return_draws=True))
        assert apart(found[-1]) < 1e-5
    steps = [Media(medium), Wait(0.5), Perturb(name), Wait(1.5)]
    for model in (ordered, models["node"], models["fitted"], models["flow"]):
        mine = steps if model is ordered else [*steps[:2], Perturb(model.screen.perturbations[0])]
        mine = mine if model is ordered else [*mine, Wait(1.5)]
        medium_first = model.explain(Protocol(mine), n_samples=2, return_draws=True)
        assert apart(medium_first) < 1e-5
    gains = [float(np.abs(draws.sel(term="gain")).mean()) for draws in found[:2]]
    assert gains[1] < gains[0]  # a cascade that had begun is not yet lost


def test_a_protocol_in_the_order_of_the_screen_is_its_condition(fitted):
    name, medium = fitted.screen.perturbations[0], fitted.screen.media[0]
    protocol = Protocol([Perturb(name), Media(medium), Wait(2.0)])
    pd.testing.assert_frame_equal(
        fitted.explain(protocol, n_samples=FEW),
        fitted.explain(name, media=medium, time=2.0, n_samples=FEW),
    )


def test_without_gain_the_medium_alone_moves_controls(fitted):
    medium = fitted.screen.media[0]
    draws = fitted.explain("control", media=medium, n_samples=FEW, return_draws=True)
    assert list(draws.term.values) == ["medium", "total"]


def test_single_axes_add_up_to_all_of_them(models):
    model = models["relaxation"]
    name = model.screen.perturbations[0]
    one = model.explain(name, n_samples=FEW, by_axis=True, return_draws=True)
    both = model.explain(name, n_samples=FEW, return_draws=True)
    axes = [t for t in one.term.values if t.startswith("axis")]
    assert len(axes) == model.module.config.n_latent + model.module.config.n_response
    whole = both.sel(term="axes of state") + both.sel(term="axes of response")
    np.testing.assert_allclose(one.sel(term=axes).sum("term"), whole, atol=1e-5)


def test_genes_are_told_alike_alone_and_among_all(fitted):
    name, gene = fitted.screen.perturbations[0], str(fitted.screen.genes[4])
    every = fitted.explain(name, n_samples=FEW)
    alone = fitted.explain(name, gene, n_samples=FEW)
    mine = every[every["gene"] == gene].set_index("term")
    alone = alone.set_index("term")
    assert set(alone.index) <= set(mine.index)
    pd.testing.assert_frame_equal(alone, mine.loc[alone.index], check_names=False)


def test_each_term_says_which_cells_stand_behind_it(fitted):
    first, second, third = fitted.screen.perturbations
    medium = fitted.screen.media[0]
    table = fitted.explain(f"{first}+{second}", media=medium, n_samples=FEW)
    rows = table.drop_duplicates("term").set_index("term")
    cells = fitted.screen.conditions
    label = cells["perturbation"].astype(str)
    carry = label.isin([first, f"{first}+{second}"])
    assert rows.loc[f"{first}: single genes", "n_cells"] == cells["n_cells"][carry].sum()
    pair = (label == f"{first}+{second}") & (cells["media"] == medium)
    assert rows.loc["interaction", "n_cells"] == cells["n_cells"][pair].sum()
    now = pair & (cells["time"] == 2.0)
    assert rows.loc["total", "n_cells"] == cells["n_cells"][now].sum()
    controls = label == "control"
    assert rows.loc["medium", "n_cells"] == cells["n_cells"][controls].sum()
    assert rows["n_batches"].eq(2).all() and rows["measured"].all()
    unmeasured = fitted.explain(f"{first}+{third}", media=medium, n_samples=FEW)
    last = unmeasured[unmeasured["term"].isin(["total", "not measured"])]
    assert (last["n_cells"] == 0).all() and not last["measured"].any()


def test_a_perturbation_of_no_cells_is_explained_by_its_neighbours(fitted):
    names = fitted.screen.perturbations
    known = Knowledge.from_gene_sets({"a": [names[0], "NEW1", "x"], "b": [names[1], names[2], "y"]})
    medium = fitted.screen.media[0]
    draws = fitted.explain(
        "NEW1", media=medium, knowledge=known, n_samples=20, return_draws=True, scale="counts"
    )
    assert apart(draws) < 1e-5
    row = pd.DataFrame({"perturbation": ["NEW1"], "media": medium, "time": 2.0})
    asked = {"knowledge": known, "n_samples": 20, "return_draws": True}
    predicted = np.log(fitted.predict(row, **asked)[:, 0])
    row["perturbation"], row["media"] = "control", "baseline"
    predicted = predicted - np.log(fitted.predict(row, n_samples=20, return_draws=True)[:, 0])
    np.testing.assert_allclose(draws.sel(term="total"), predicted, atol=2e-5)
    table = fitted.explain("NEW1", media=medium, knowledge=known, n_samples=20)
    carried = pd.DataFrame(table.attrs["neighbours"])
    assert {"neighbour", "source", "weight"} <= set(carried)
    assert not table[table["term"] == "from knowledge"]["measured"].any()


def test_labels_that_mean_nothing_have_terms_whose_intervals_hold_zero(make_screen, build):
    adata = make_screen(
        seed=3, media=1, n_genes=30, n_cells_per_condition=30, n_controls=60, n_perturbations=4
    )
    rng = np.random.default_rng(1)
    for medium in adata.obs["media"].unique():
        at = np.flatnonzero(adata.obs["media"] == medium)
        shuffled = rng.permutation(adata.obs["perturbation"].to_numpy()[at])
        adata.obs.iloc[at, adata.obs.columns.get_loc("perturbation")] = shuffled
    model = build(adata, interactions=True)
    model.train(max_epochs=15, progress_bar=False)
    medium = model.screen.media[0]
    tables, steps = [], []
    for name in model.screen.perturbations:
        asked = {"media": medium, "against": {"media": medium}, "n_samples": 60}
        tables.append(model.explain(name, **asked))
        steps.append(model.explain(name, by="step", **asked))
    table, step = pd.concat(tables), pd.concat(steps)
    holds = (table["lower"] <= 0) & (table["upper"] >= 0)
    assert holds.groupby(table["term"]).mean().min() > 0.85
    assert (step["prob_seen"] > 0.9).mean() < 0.1


def test_a_blocked_response_is_the_largest_step(make_screen, build):
    adata = make_screen(
        seed=5,
        media=1,
        n_genes=40,
        n_perturbations=4,
        n_cells_per_condition=40,
        n_controls=100,
        media_rms=0.6,
        effect_rms=0.03,
        blocked_fraction=0.5,
        mean_library=600.0,
    )
    model = build(adata)
    model.train(max_epochs=20, progress_bar=False)
    medium = model.screen.media[0]
    truth = adata.uns["truth"]["gain"].iloc[:, 0]
    for name in truth.index[truth < 0.5]:
        against = {"media": medium}
        steps = model.explain(name, media=medium, against=against, by="step", n_samples=60)
        assert steps["step"].iloc[0] == "response to the medium"
        row = steps.iloc[0]
        assert row["value_of"] == "gain" and row["value_upper"] < 0.6
        said = " ".join(sentences(steps))
        assert "the medium's response: gain" in said and f"{row['value']:.2f}" in said


def test_each_of_several_views_has_its_terms():
    mdata, _ = small_screen(n=300)
    PyroCell.setup_mudata(mdata, rna="rna", protein="prot", chromatin="atac")
    model = PyroCell(mdata, n_latent=2, n_response=2, n_hidden=16)
    model.train(max_epochs=2, progress_bar=False)
    for scale in ("effect", "counts"):
        whole = model.explain("A", n_samples=FEW, return_draws=True, scale=scale)
        assert apart(whole) < 1e-5
        part = model.explain("A", n_samples=FEW, return_draws=True, scale=scale, view="protein")
        mine = whole.sel(term=part.term, gene=part.gene)
        np.testing.assert_array_equal(part, mine)
    assert list(part.gene.values) == [f"p{i}" for i in range(6)]
    table = model.explain("A", n_samples=FEW)
    assert list(table["view"].unique()) == ["rna", "protein", "chromatin"]
    with pytest.raises(UnknownLabelError, match="g1"):
        model.explain("A", "g1", view="protein")


def test_sentences_say_the_numbers_of_the_table(fitted):
    name = fitted.screen.perturbations[0]
    table = fitted.explain(name, n_samples=50)
    said = sentences(table, n=2)
    assert len(said) == 2
    top = table[table["term"] == "total"].sort_values("mean", key=abs, ascending=False).iloc[0]
    assert said[0].startswith(str(top["gene"])) and f"{top['mean']:.2f}" in said[0]
    steps = fitted.explain(name, by="step", n_samples=50)
    assert f"{steps['rms'].iloc[-1]:.2f}" in sentences(steps)[0]
    with pytest.raises(ScreenError, match="explain"):
        sentences(pd.DataFrame({"term": []}))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"perturbation": "nobody"}, UnknownLabelError, "nobody"),
        ({"gene": "gene3"}, UnknownLabelError, 'gene "gene3" is not in the screen'),
        ({"perturbation": "control"}, ScreenError, "compared with itself"),
        ({"by": "cell"}, ScreenError, 'by="cell"'),
        ({"scale": "log"}, ScreenError, 'scale="log"'),
        ({"by_axis": True}, ScreenError, "by_axis"),
        ({"view": "protein"}, ScreenError, "one view"),
        ({"media": "IFNG"}, UnknownLabelError, "IFNG"),
        ({"batch": "b9"}, UnknownLabelError, "b9"),
        ({"perturbation": 3}, ScreenError, "3 is no condition"),
        ({"perturbation": Protocol([Wait(1.0)]), "time": 1.0}, ScreenError, "says it itself"),
    ],
)
def test_what_cannot_be_asked_is_said(fitted, options, error, said):
    asked = {"perturbation": fitted.screen.perturbations[0], "n_samples": 2} | options
    with pytest.raises(error, match=said):
        fitted.explain(**asked)


def test_one_condition_is_asked_at_a_time(fitted):
    table = pd.DataFrame({"perturbation": list(fitted.screen.perturbations), "time": 2.0})
    with pytest.raises(ScreenError, match="3 rows"):
        fitted.explain(table)
    with pytest.raises(ScreenError, match="n_cells"):
        fitted.explain(table.iloc[[0]].assign(n_cells=100))

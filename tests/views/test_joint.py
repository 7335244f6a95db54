"""Several views of one state: cells that lack one, answers by view, files."""

from __future__ import annotations

from types import SimpleNamespace

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata.abc import CSRDataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pandas.testing import assert_frame_equal
from torch.testing import assert_close
from view_cells import small_screen

import pyrocell
from pyrocell import PyroCell
from pyrocell.distributions.kernels.split_rows import split_rows
from pyrocell.errors import CountError, ScreenError, UnknownLabelError
from pyrocell.posterior.gene_level.sampler import Sampler

SMALL = {"n_latent": 2, "n_response": 2, "n_hidden": 16}
VIEWS = {"rna": "rna", "protein": "prot", "chromatin": "atac"}


def model_of(mdata, views=VIEWS, **setup):
    PyroCell.setup_mudata(mdata, **views, **setup)
    return PyroCell(mdata, **SMALL)


@pytest.fixture(scope="module")
def fitted():
    mdata, has = small_screen(lacking=0.4)
    before = mdata.copy()
    model = model_of(mdata)
    model.train(max_epochs=20, progress_bar=False, accelerator="cpu")
    return mdata, model, has, before


def log_prob(model, args):
    """Log likelihood of each view of cells at one draw of everything."""
    torch.manual_seed(0)
    module = model.module.model
    values = model.posterior.mean()
    z = torch.linspace(-1, 1, len(args["batch"]))[:, None].expand(-1, 2)
    shift = module.cell_shift(values, args["condition"], args["batch"])
    logits = module.resting_logits(values, z) + shift
    with torch.no_grad():
        return module.view(values, logits, args["log_size"], z).by_view(args["x"])


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 100))
def test_rows_are_split_where_views_end(sizes, seed):
    dense = sp.random(5, sum(sizes), 0.4, random_state=seed, format="csr", dtype=np.float32)
    dense.sort_indices()
    parts = [torch.from_numpy(a.astype(np.int64)) for a in (dense.indptr, dense.indices)]
    whole = torch.sparse_csr_tensor(*parts, torch.from_numpy(dense.data), dense.shape)
    ends = np.cumsum(sizes)[:-1]
    expected = np.split(dense.toarray(), ends, axis=1)
    for found, part in zip(split_rows(whole, sizes), expected, strict=True):
        assert_array_equal(found.to_dense().numpy(), part)


def test_mudata_is_left_as_it_is(fitted):
    mdata, _, _, before = fitted
    for name, part in before.mod.items():
        assert_array_equal(mdata.mod[name].X.toarray(), part.X.toarray())
        pd.testing.assert_frame_equal(mdata.mod[name].obs, part.obs)
    assert list(mdata.obs) == list(before.obs)


def test_a_view_that_a_cell_lacks_says_nothing(fitted):
    _, model, _, _ = fitted
    args = model.module_arguments(indices=range(40))
    found = log_prob(model, args)
    seen = torch.isfinite(args["log_size"][:, :-1])
    assert not seen.all()
    assert_close(found == 0, ~seen)
    whole = args | {"log_size": torch.where(seen, args["log_size"][:, :-1], 0.0)}
    whole["log_size"] = torch.cat([whole["log_size"], args["log_size"][:, -1:]], 1)
    filled = log_prob(model, whole)
    assert_close(found[seen], filled[seen])


def test_encoder_does_not_take_a_missing_view_for_zero_counts(fitted):
    _, model, _, _ = fitted
    args = model.module_arguments(indices=range(200))
    seen = torch.isfinite(args["log_size"][:, 1])
    values = model.posterior.mean()
    labels = args["condition"], args["batch"]
    loc, _ = model.module.guide.encode(values, args["x"], *labels, log_size=args["log_size"])
    spread = loc.detach().std(0)
    apart = (loc[seen].mean(0) - loc[~seen].mean(0)).abs().detach()
    assert (apart < 0.6 * spread + 0.3).all()


def test_effects_are_found_in_the_view_that_they_are_in(fitted):
    _, model, _, _ = fitted
    for view, feature in (("rna", "g0"), ("protein", "p0")):
        table = model.perturbation_effects(view=view)
        assert set(table["view"]) == {view}
        top = table.loc[table["lfsr"].idxmin()]
        assert (top["perturbation"], top["gene"]) == ("A", feature)
        others = table[table["perturbation"] == "B"]
        assert (others["fdr"] > 0.1).all()
    every = model.perturbation_effects()
    assert len(every) == 2 * (12 + 6 + 10)


def test_silence_is_judged_by_view_and_jointly(fitted):
    _, model, _, _ = fitted
    for view in (None, "rna", "protein", "chromatin"):
        table = model.assumptions(view=view).query("assumption == 'silent_at_baseline'")
        p = table.set_index("perturbation")["posterior"]
        assert p["B"] > 0.5
        assert (p["A"] < 0.1) == (view != "chromatin")


def test_proteins_of_cells_without_them_are_foretold(fitted):
    mdata, model, has, _ = fitted
    lacks = np.flatnonzero(~has)
    found = model.impute("protein", indices=lacks, n_samples=60)
    full, _ = small_screen()  # the same cells, all with proteins
    counts = full["prot"].X.toarray()[lacks]
    inside = (found.layers["lower"] <= counts) & (counts <= found.layers["upper"])
    assert 0.85 < inside.mean() < 0.99  # counts are Poisson about the truth, and whole
    assert not found.obs["measured"].any()
    mean = mdata["prot"].X.toarray().mean(0)
    error = lambda x: np.square(np.log1p(x) - np.log1p(counts)).mean()  # noqa: E731
    assert error(found.X) < error(mean)


def test_a_saved_model_answers_as_before(fitted, tmp_path):
    mdata, model, _, _ = fitted
    model.save(tmp_path / "m", save_anndata=True)
    for cells in (mdata, None):
        again = PyroCell.load(tmp_path / "m", cells)
        pd.testing.assert_frame_equal(again.perturbation_effects(), model.perturbation_effects())


def test_a_model_is_read_for_cells_that_were_not_registered(fitted, tmp_path):
    _, model, _, before = fitted
    model.save(tmp_path / "m")
    again = PyroCell.load(tmp_path / "m", before)
    pd.testing.assert_frame_equal(again.perturbation_effects(), model.perturbation_effects())


def test_counterfactuals_of_cells_without_a_view_have_its_usual_depth(fitted):
    mdata, model, _, _ = fitted
    some = mdata.copy()
    some.mod["atac"] = some["atac"][::2].copy()
    some.update()
    PyroCell.setup_mudata(some, **VIEWS, source_registry=model.adata_manager.registry)
    found = model.counterfactual(some, n_samples=8)
    fragments = found.X[:, 18:].sum(1)
    usual = np.median(np.asarray(mdata["atac"].X.sum(1)))
    lacks = ~found.obs_names.isin(some["atac"].obs_names)
    assert lacks.sum() > 300
    assert np.median(fragments[lacks]) == pytest.approx(usual, rel=0.15)


def test_answers_come_as_mudata_where_asked(fitted):
    _, model, _, _ = fitted
    table = pd.DataFrame({"perturbation": ["control", "A"], "media": "baseline"})
    answer = model.to_mudata(model.predict(table, n_samples=20))
    assert {name: part.n_vars for name, part in answer.mod.items()} == {
        "rna": 12, "protein": 6, "chromatin": 10,
    }  # fmt: skip
    change = np.log(answer["protein"].X[1, 0] / answer["protein"].X[0, 0])
    assert 0.3 < change < np.log(2)  # background is not doubled


def test_sites_of_views_are_named_in_arviz(fitted):
    _, model, _, _ = fitted
    found = model.to_arviz(8)
    assert found.posterior["V.protein.background"].dims[-1] == "protein"
    assert found.posterior["V.dispersion"].dims[-1] == "rna"
    assert list(found.posterior["protein"].to_numpy()) == [f"p{i}" for i in range(6)]


@pytest.mark.parametrize("kind", ["poisson fragments", "binary fragments"])
def test_any_subset_of_views_can_be_fitted(kind):
    mdata, _ = small_screen(n=150)
    views = {"chromatin": "atac", "protein": "prot"}
    model = model_of(mdata, views, kinds={"chromatin": kind})
    model.train(max_epochs=2, progress_bar=False, accelerator="cpu")
    assert len(model.perturbation_effects(view="chromatin")) == 20


def test_unpaired_cells_share_a_state():
    mdata, _ = small_screen(n=300)
    half = mdata["rna"].obs_names[:150]
    apart = mudata.MuData(
        {
            "rna": mdata["rna"][half].copy(),
            "atac": mdata["atac"][~mdata["atac"].obs_names.isin(half)].copy(),
        }
    )
    model = model_of(apart, {"rna": "rna", "chromatin": "atac"})
    model.train(max_epochs=3, progress_bar=False, accelerator="cpu")
    assert model.adata.n_obs == 150 + apart["atac"].n_obs
    assert np.isfinite(model.perturbation_effects()["mean"]).all()


def test_a_whole_arm_without_a_view_is_as_wide_as_the_prior():
    mdata, _ = small_screen(n=500)
    prot = mdata["prot"]
    some = mudata.MuData(
        {"rna": mdata["rna"], "prot": prot[prot.obs["perturbation"] != "A"].copy()}
    )
    model = model_of(some, {"rna": "rna", "protein": "prot"})
    model.train(max_epochs=3, progress_bar=False, accelerator="cpu")
    table = model.perturbation_effects(view="protein").set_index(["perturbation", "gene"])
    assert (table.loc["A", "fdr"] > 0.1).all()
    assert table.loc["A", "sd"].mean() > table.loc["B", "sd"].mean()
    assert set(model.screen_of("protein").perturbations) == {"B"}
    silent = model.assumptions(view="protein").query("assumption == 'silent_at_baseline'")
    assert list(silent["perturbation"]) == ["B"]
    assert len(model.testability("rna")) > len(model.testability("protein"))


def test_batches_of_views_may_differ():
    mdata, _ = small_screen(n=120)
    mdata["prot"].obs["pool"] = np.where(np.arange(120) % 3 == 0, "x", "y")
    PyroCell.setup_mudata(
        mdata, rna="rna", protein="prot", batch_key={"rna": "batch", "protein": "pool"}
    )
    model = PyroCell(mdata, **SMALL)
    assert set(model.screen.batches) == {"b0 | x", "b0 | y", "b1 | x", "b1 | y"}


def test_errors_name_modality_column_and_remedy():
    mdata, _ = small_screen(n=60)
    with pytest.raises(UnknownLabelError, match='protein="port" is not a modality of mdata.*prot'):
        PyroCell.setup_mudata(mdata, rna="rna", protein="port")
    with pytest.raises(ScreenError, match="setup_anndata"):
        PyroCell.setup_mudata(mdata["rna"], rna="rna")
    empty = mdata.copy()
    counts = empty["atac"].X.toarray()
    counts[3] = 0
    empty["atac"].X = counts
    with pytest.raises(CountError, match='1 of .* no counts in mdata."atac".* not measured there'):
        PyroCell.setup_mudata(empty, rna="rna", chromatin="atac")
    with pytest.raises(ScreenError, match="no view was named"):
        PyroCell.setup_mudata(mdata)
    with pytest.raises(ScreenError, match="not registered"):
        PyroCell(mdata)
    with pytest.raises(ScreenError, match="size_factor_key is of one view"):
        PyroCell.setup_mudata(mdata, rna="rna", protein="prot", size_factor_key="depth")
    other = mdata.copy()
    labels = other["prot"].obs["perturbation"].astype(str).to_numpy()
    other["prot"].obs["perturbation"] = np.where(labels == "A", "B", labels)
    with pytest.raises(
        ScreenError, match='column "perturbation" of cell .* is "A" and, in protein'
    ):
        PyroCell.setup_mudata(mudata.MuData(dict(other.mod)), rna="rna", protein="prot")
    normal = mdata.copy()
    normal["prot"].X = normal["prot"].X * 0.5
    with pytest.raises(CountError):
        PyroCell.setup_mudata(normal, rna="rna", protein="prot")


def test_questions_of_one_view_say_so(fitted):
    _, model, _, _ = fitted
    with pytest.raises(UnknownLabelError, match='view="proteins".*protein'):
        model.perturbation_effects(view="proteins")
    from pyrocell import metrics

    with pytest.raises(ScreenError, match="one view"):
        metrics.evaluate(model, ["A"])


def test_isotype_controls_are_background_alone_and_say_what_batches_do_to_all(tmp_path):
    mdata, _ = small_screen(n=150)
    views = {"rna": "rna", "protein": "prot"}
    with pytest.raises(UnknownLabelError, match='"p55" is not a feature of protein'):
        model_of(mdata, views, isotypes=["p55"])
    with pytest.raises(ScreenError, match="isotypes are features of proteins"):
        model_of(mdata, {"rna": "rna"}, isotypes=["p5"])
    model = model_of(mdata, views, isotypes=["p4", "p5"])
    model.train(max_epochs=2, progress_bar=False, accelerator="cpu")
    model.save(tmp_path / "model")
    again = PyroCell.load(tmp_path / "model", mdata)
    view = again.module.model.measurement.views[1]
    assert view.controls == [4, 5]
    values = {site: prior.mean for site, prior in view.priors().items()}
    own = torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.5, 0.1], [-0.3, 0.0, 0.0, 0.0, -0.5, -0.1]])
    values["V.background_batch"] = own
    low = view.background(values, torch.arange(2)) - values["V.background"]
    assert_close(low[0], torch.tensor([0.6, 0.3, 0.3, 0.3, 0.5, 0.1]))
    gate = torch.sigmoid(view._gate(values, torch.full((1, 6), 4.0), torch.zeros(6)))
    assert (gate[:, 4:] > 0.999).all()
    assert (gate[:, :4] < 0.5).all()


def test_counts_of_views_may_stay_in_a_file(tmp_path):
    mdata, _ = small_screen(n=150, lacking=0.3)
    answers = []
    for path in (None, tmp_path / "joint.h5ad"):
        model = model_of(mdata, isotypes=["p5"], path=path)
        model.train(max_epochs=2, progress_bar=False, accelerator="cpu", seed=1)
        answers.append(model)
    inside, outside = answers
    assert isinstance(outside.adata.X, CSRDataset)
    assert outside._cells.fingerprint() == inside._cells.fingerprint()
    for view in ("rna", "chromatin"):
        tables = [m.perturbation_effects(view=view, shrunken=False) for m in answers]
        assert_frame_equal(*tables)
    said = [m.assumptions(view="protein") for m in answers]
    assert_frame_equal(said[0][["assumption", "testable"]], said[1][["assumption", "testable"]])
    again = pyrocell.read_backed(tmp_path / "joint.h5ad")
    PyroCell.setup_anndata(again)
    assert len(PyroCell(again, **SMALL).screen_of("rna").conditions) == len(
        inside.screen_of("rna").conditions
    )
    with pytest.raises(ScreenError, match="is there already"):
        model_of(mdata, path=tmp_path / "joint.h5ad")


def test_links_are_rows_of_weights_and_errors_name_what_is_wrong():
    mdata, _ = small_screen(n=150)
    views = {"rna": "rna", "chromatin": "atac"}
    links = pd.DataFrame({"region": ["r0", "r0", "r1", "r99"], "gene": ["g1", "g2", "g0", "g0"]})
    with pytest.raises(ScreenError, match="name the modality in chromatin="):
        model_of(mdata, {"rna": "rna"}, links=links)
    with pytest.raises(UnknownLabelError, match='links has no column "gene"'):
        model_of(mdata, views, links=links.rename(columns={"gene": "genes"}))
    with pytest.raises(UnknownLabelError, match="none of the 4 links"):
        model_of(mdata, views, links=links.assign(gene="nothing"))
    with pytest.raises(ScreenError, match="above 0"):
        model_of(mdata, views, links=links.assign(weight=-1.0))
    model = model_of(mdata, views, links=links.assign(weight=[3.0, 1.0, 1.0, 1.0]))
    found = model._cells.views.links.toarray()
    expected = np.zeros((22, 22))
    expected[12, [1, 2]], expected[13, 0] = [0.75, 0.25], 1.0
    assert_array_equal(found, expected)
    model.train(max_epochs=1, progress_bar=False, accelerator="cpu")
    assert len(model.perturbation_effects(view="chromatin")) == 20


@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_what_links_say_is_learned_from_all_of_them(slope):
    rng = np.random.default_rng(0)
    loading = rng.normal(0, 0.4, (400, 3))
    loading[200:] = slope * loading[:200] + rng.normal(0, 0.2, (200, 3))
    rows, columns = np.arange(200, 400), np.arange(200)
    links = sp.csr_array((np.ones(200), (rows, columns)), (400, 400))
    state = SimpleNamespace(loading=loading, links=links, linked=rows, link_slope=0.0, rng=rng)
    drawn = []
    for _ in range(200):
        Sampler._draw_link_slope(state)
        drawn.append(state.link_slope)
    error = 0.2 / (0.4 * np.sqrt(600))  # of a regression on 600 pairs
    assert np.mean(drawn[10:]) == pytest.approx(slope, abs=4 * error)
    assert np.std(drawn[10:]) == pytest.approx(error, rel=0.25)

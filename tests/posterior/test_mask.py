"""Inclusion under a sparse prior: exact where it can be worked out, found where it was planted."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import multivariate_normal

import pyrocell
from pyrocell.errors import ScreenError
from pyrocell.generative.effects import NormalEffects, SparseEffects
from pyrocell.generative.starting_values import _simple_axes
from pyrocell.posterior.mask import effect_likelihood, inclusion


def likelihoods(seed: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Λ and b of k Gaussian likelihoods in d effects."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(k, d, d + 2))
    precision = 20 * root @ root.transpose(0, 2, 1) / d
    effect = rng.normal(0, 0.4, (k, d)) * (rng.random((k, d)) < 0.4)
    return precision, np.einsum("kab,kb->ka", precision, effect)


def test_inclusion_is_bayes_rule_over_all_sets_of_axes():
    precision, linear = likelihoods(0, 3, 3)
    scale, share, spike = np.array([0.3, 0.5, 0.2]), 0.3, 0.1
    found = inclusion(precision, linear, scale, share, spike)
    for k in range(3):
        covariance = np.linalg.inv(precision[k])
        mode = covariance @ linear[k]
        weights = {}
        for on in product([0, 1], repeat=3):
            width = np.where(on, scale, spike * scale)
            law = multivariate_normal(np.zeros(3), covariance + np.diag(width**2))
            weights[on] = law.pdf(mode) * np.prod(np.where(on, share, 1 - share))
        total = sum(weights.values())
        expected = sum(np.array(on) * w for on, w in weights.items()) / total
        assert found[k] == pytest.approx(expected, abs=1e-9)


def test_many_axes_are_sampled_and_agree_with_the_sum():
    """Twelve axes, the last eight of which nothing is known of: the rest is as of four alone."""
    precision, linear = likelihoods(1, 4, 4)
    wide = np.zeros((4, 12, 12))
    wide[:, :4, :4] = precision
    more = np.concatenate([linear, np.zeros((4, 8))], 1)
    some = inclusion(precision, linear, np.full(4, 0.4), 0.25, 0.1)
    found = inclusion(wide, more, np.full(12, 0.4), 0.25, 0.1, seed=3)
    assert found[:, :4] == pytest.approx(some, abs=0.06)  # 200 sweeps
    assert found[:, 4:] == pytest.approx(0.25)  # the prior share, where cells say nothing


@pytest.mark.parametrize("prior", [NormalEffects(), SparseEffects()], ids=["normal", "sparse"])
def test_the_likelihood_is_taken_out_of_the_posterior(prior):
    """q that is optimal for a Gaussian likelihood gives it back, whatever the prior."""
    scale = np.array([0.4, 0.3])
    precision, linear = likelihoods(2, 1, 2)
    loc = torch.zeros(2, dtype=torch.double, requires_grad=True)
    lower = (0.1 * torch.eye(2, dtype=torch.double)).requires_grad_()
    noise = torch.randn(100_000, 2, dtype=torch.double, generator=torch.manual_seed(0))
    noise = torch.cat([noise, -noise])
    optimiser = torch.optim.LBFGS([loc, lower], max_iter=200, line_search_fn="strong_wolfe")
    told, pull = torch.as_tensor(precision[0]), torch.as_tensor(linear[0])

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        e = loc + noise @ lower.tril().T
        law = prior.prior(torch.as_tensor(scale), len(e))
        fit = e @ pull - 0.5 * ((e @ told) * e).sum(1)
        out = -(fit.sum() + law.log_prob(e)) / len(e) - lower.diagonal().abs().log().sum()
        out.backward()
        return out

    optimiser.step(loss)
    covariance = (lower.tril() @ lower.tril().T).detach().numpy()
    found = effect_likelihood(loc.detach().numpy()[None], covariance[None], prior, scale)
    assert found[0] == pytest.approx(precision, rel=0.1, abs=0.1 * precision.max())
    assert found[1] == pytest.approx(linear, rel=0.1, abs=0.1 * np.abs(linear).max())


def test_axes_are_turned_to_where_effects_are_sparse():
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(50, 3)))[0].T * 50**0.5
    effects = (rng.random((40, 3)) < 0.3) * rng.normal(0, 0.4, (40, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    found, moved, media = _simple_axes(turn.T @ axes, effects @ turn, np.ones((1, 3)) @ turn, 0)
    assert moved @ found == pytest.approx(effects @ axes)  # the same responses
    assert media @ found == pytest.approx(np.ones((1, 3)) @ axes)
    likeness = np.abs(found @ axes.T / 50)
    assert np.sort(likeness.max(1)) == pytest.approx(np.ones(3), abs=0.05)


def planted(seed: int) -> tuple[AnnData, np.ndarray, np.ndarray]:
    """12 perturbations on two axes of 40 genes, six of them on one axis each and none on both."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(2, 40))
    axes /= np.sqrt(np.square(axes).mean(1, keepdims=True))
    mask = np.zeros((12, 2), bool)
    mask[:3, 0] = mask[3:6, 1] = True
    effect = mask * rng.choice([-0.5, 0.5], (12, 2))
    label = np.concatenate([np.full(100, -1), np.repeat(np.arange(12), 25)])
    log = np.tile(rng.normal(1.5, 0.5, 40), (len(label), 1))
    log[label >= 0] += (effect @ axes)[label[label >= 0]]
    counts = rng.poisson(np.exp(log)).astype(np.float32)
    names = ["control" if x < 0 else f"P{x:02d}" for x in label]
    batch = np.where(np.arange(len(label)) % 2, "a", "b")
    obs = pd.DataFrame({"perturbation": names, "batch": batch})
    obs.index = [f"cell{i}" for i in range(len(label))]
    genes = pd.DataFrame(index=[f"g{i}" for i in range(40)])
    return AnnData(sp.csr_matrix(counts), obs, genes), mask, axes


def fit_of(adata: AnnData) -> pyrocell.PyroCell:
    pyrocell.PyroCell.setup_anndata(adata)
    priors = pyrocell.Priors(effect="sparse")
    model = pyrocell.PyroCell(adata, n_latent=2, n_response=2, n_hidden=16, priors=priors)
    model.train(max_epochs=20, progress_bar=False, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def sparse():
    adata, mask, axes = planted(1)
    return fit_of(adata), mask, axes


def test_a_planted_mask_is_found(sparse):
    model, mask, axes = sparse
    table = model.mask()
    assert list(table["axis"].unique()) == ["z1", "z2", "r1", "r2"]
    found = table.pivot(index="perturbation", columns="axis", values="inclusion")[["r1", "r2"]]
    own = model.module.model.axes(model.posterior.mean())[2:].detach().numpy()
    likeness = np.abs(np.corrcoef(np.concatenate([own, axes]))[:2, 2:])
    order = [0, 1] if likeness[0, 0] > likeness[0, 1] else [1, 0]
    assert likeness[order, [0, 1]].min() > 0.9
    p = found.to_numpy()[:, order]
    assert p[mask].min() > 0.9 and p[~mask].mean() < 0.25 and np.mean(p[~mask] > 0.5) < 0.1
    assert model.module.gene_level is None  # whose sampler has a prior of its own


def test_labels_that_mean_nothing_have_no_more_than_the_prior_share():
    adata = planted(2)[0]
    order = np.random.default_rng(0).permutation(adata.n_obs)
    adata.obs["perturbation"] = adata.obs["perturbation"].to_numpy()[order]
    found = fit_of(adata).mask()["inclusion"]
    assert found.mean() < 0.3 and (found > 0.5).mean() < 0.1


def test_combinations_are_sums_along_axes(sparse):
    model = sparse[0]
    values = model.posterior.mean()
    both, first, second = (
        model.fitted.conditions(pd.DataFrame({"perturbation": [p]}))[0].genotype
        for p in ("P00+P03", "P00", "P03")
    )
    assert torch.equal(both, first + second)
    effect = values["P.effect"]
    assert torch.allclose(both @ effect, first @ effect + second @ effect)


def test_a_sparse_model_is_saved_and_loaded(sparse, tmp_path):
    model = sparse[0]
    model.save(tmp_path / "model")
    again = pyrocell.PyroCell.load(tmp_path / "model", model.adata)
    assert again.module.priors.effect == "sparse"
    pd.testing.assert_frame_equal(model.mask(60), again.mask(60))


def test_a_mask_needs_a_sparse_prior(make_screen, build):
    model = build(make_screen())
    model.train(max_epochs=1, progress_bar=False, gene_level=False)
    with pytest.raises(ScreenError, match=r'Priors\(effect="sparse"\)'):
        model.mask()
    with pytest.raises(ScreenError, match="effect_inclusion=0"):
        pyrocell.Priors(effect_inclusion=0.0)
    with pytest.raises(ScreenError, match="is a name"):
        pyrocell.Priors(effect=0.3)

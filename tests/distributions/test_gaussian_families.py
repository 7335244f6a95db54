"""The guide's Gaussian families against torch's MultivariateNormal, and their limits."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyrocell.distributions import (
    EventLogNormal,
    EventMultivariateNormal,
    EventNormal,
    GaussianWalk,
    LowRankNormal,
    LowRankRow,
    MarkovLowRankNormal,
)
from pyrocell.distributions._low_rank import low_rank_log_prob

J, T, G, D = 3, 4, 5, 2
N_DRAWS = 40_000


@pytest.fixture(autouse=True)
def _double_precision_and_a_seed():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def positive(*shape: int) -> torch.Tensor:
    return torch.rand(shape) + 0.3


def lower_triangular(n: int) -> torch.Tensor:
    return torch.randn(n, n).tril(-1) * 0.5 + torch.diag(positive(n))


def low_rank(mix: torch.Tensor | None = None) -> LowRankNormal:
    return LowRankNormal(
        torch.randn(J, G), positive(J, G), torch.randn(D, G), positive(J, D), mix=mix
    )


def covariance_of(family: LowRankNormal) -> torch.Tensor:
    """Covariance of the flattened rows, (J G, J G)."""
    along = family.axes.T @ (family.tau.square()[:, :, None] * family.axes)  # (J, G, G)
    rows = torch.block_diag(*(torch.diag_embed(family.scale.square()) + along))
    if family.mix is None:
        return rows
    mix = torch.kron(family.mix, torch.eye(G))
    return mix @ rows @ mix.T


def unrolled(walk: MarkovLowRankNormal) -> MultivariateNormal:
    """The joint Gaussian of one driver's nodes: v = m + B ε with B the unrolled recursion."""
    k = 0
    loc, root = walk.loc[k, 0], {}
    noise = torch.diag_embed(walk.scale.square()) + walk.axes.T @ (
        walk.tau.square()[..., :, None] * walk.axes
    )  # (K, T, G, G)
    eye = torch.eye(G)
    means, root[0] = [loc], torch.cat([torch.linalg.cholesky(noise[k, 0])], 1)
    for t in range(1, T):
        unseen = bool(walk.unseen[k, t])
        carried = (walk.prior_keep[t - 1] if unseen else walk.phi[k, t]) * eye
        own = (
            torch.diag(walk.prior_step[k, t - 1]) if unseen else torch.linalg.cholesky(noise[k, t])
        )
        root[t] = torch.cat([carried @ root[t - 1], own], 1)
        means.append(walk.prior_keep[t - 1] * means[-1] if unseen else walk.loc[k, t])
    width = root[T - 1].shape[1]
    whole = torch.cat(
        [torch.nn.functional.pad(root[t], (0, width - root[t].shape[1])) for t in root]
    )
    return MultivariateNormal(torch.cat(means), covariance_matrix=whole @ whole.T)


def markov(unseen: list[bool], n: int = 1, keep: torch.Tensor | None = None) -> MarkovLowRankNormal:
    return MarkovLowRankNormal(
        torch.randn(n, T, G),
        positive(n, T, G),
        torch.randn(D, G),
        positive(n, T, D),
        torch.rand(n, T),
        torch.tensor([unseen] * n),
        positive(n, T - 1, G),
        keep,
    )


def assert_moments(draws: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> None:
    """Sample moments within five standard errors of the stated ones; draws (N, P)."""
    variance = covariance.diagonal()
    error = (variance / len(draws)).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    spread = (variance[:, None] * variance + covariance.square()).sqrt() / len(draws) ** 0.5
    assert ((draws.T.cov() - covariance).abs() < 5 * spread).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_low_rank_normal_has_the_density_of_its_covariance(mixed):
    family = low_rank(lower_triangular(J) if mixed else None)
    reference = MultivariateNormal(family.loc.ravel(), covariance_matrix=covariance_of(family))
    for value in (family.rsample(), family.loc, torch.randn(J, G) * 3):
        torch.testing.assert_close(family.log_prob(value), reference.log_prob(value.ravel()))


@pytest.mark.parametrize("mixed", [False, True])
def test_low_rank_normal_draws_its_covariance(mixed):
    family = low_rank(lower_triangular(J) if mixed else None)
    covariance = covariance_of(family)
    assert_moments(family.rsample((N_DRAWS,)).flatten(1), family.loc.ravel(), covariance)
    torch.testing.assert_close(family.variance.ravel(), covariance.diagonal())
    torch.testing.assert_close(family.mean, family.loc)


def test_without_axes_low_rank_normal_is_a_normal():
    loc, scale = torch.randn(J, G), positive(J, G)
    family = LowRankNormal(loc, scale, torch.randn(D, G), torch.zeros(J, D))
    value = torch.randn(J, G)
    expected = torch.distributions.Normal(loc, scale).log_prob(value).sum()
    torch.testing.assert_close(family.log_prob(value), expected)


def test_gradients_of_a_low_rank_density_are_exact():
    value = torch.randn(J, G)
    inputs = [torch.randn(J, G), positive(J, G), torch.randn(D, G), positive(J, D)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *p: LowRankNormal(*p).log_prob(value), inputs)


def test_gradients_with_fixed_axes_are_exact_to_second_order():
    axes, noise = torch.randn(D, G), torch.randn(J, G).requires_grad_()
    inputs = [noise, positive(J, G).requires_grad_(), positive(J, D).requires_grad_()]
    density = lambda x, scale, tau: low_rank_log_prob(x, scale, axes, tau)  # noqa: E731
    assert torch.autograd.gradcheck(density, inputs)
    assert torch.autograd.gradgradcheck(density, inputs)


@pytest.mark.parametrize("shapes", [((J, G), (J, G)), ((), (G,)), ((J, 1), ()), (None, (J, 1))])
def test_a_wide_normal_is_normals_side_by_side(shapes):
    loc, scale = (None if s is None else torch.randn(s) for s in shapes)
    scale = scale.exp()
    value = torch.randn(J, G)
    inputs = [t.requires_grad_() for t in (value, loc, scale) if t is not None]
    plain = torch.distributions.Normal(0.0 if loc is None else loc, scale)
    expected = plain.log_prob(value).sum()
    found = EventNormal(loc, scale, (J, G)).log_prob(value)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(x, inputs, create_graph=True) for x in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(
            *(
                torch.autograd.grad(x.square().sum(), scale, retain_graph=True)
                for x in (mine, theirs)
            )
        )


def families() -> dict:
    lower = torch.linalg.cholesky(covariance_of(low_rank())[:G, :G]).expand(J, G, G)
    return {
        "normal": EventNormal(torch.randn(J, G), positive(J, G)),
        "scalar": EventNormal(torch.randn(()), positive(1)[0]),
        "log-normal": EventLogNormal(torch.randn(J, G), positive(J, G)),
        "multivariate": EventMultivariateNormal(torch.randn(J, G), lower),
        "low rank": low_rank(lower_triangular(J)),
        "row": LowRankRow(
            LowRankNormal(torch.randn(1, G), positive(1, G), torch.randn(D, G), positive(1, D))
        ),
        "markov": markov([False, False, False, True], J),
    }


@pytest.mark.parametrize("name", families())
def test_the_density_of_a_draw_and_its_total_gradient_are_those_of_its_value(name):
    family = families()[name]
    leaves = {n: t for n, t in vars(family).items() if isinstance(t, torch.Tensor)}
    leaves = [t for n, t in leaves.items() if n in ("loc", "scale", "tau", "scale_tril", "phi")]
    leaves = [t.requires_grad_() for t in leaves if t is not None and t.is_leaf]
    drawn = family.rsample()
    drawn_density, density = family.log_prob(drawn), family.log_prob(drawn.clone())
    torch.testing.assert_close(drawn_density, density)
    if leaves:
        found = torch.autograd.grad(drawn_density, leaves, allow_unused=True, retain_graph=True)
        for mine, plain in zip(found, torch.autograd.grad(density, leaves), strict=True):
            mine = torch.zeros_like(plain) if mine is None else mine
            plain = plain.tril() if name == "multivariate" and plain.dim() == 3 else plain
            torch.testing.assert_close(mine, plain, atol=1e-9, rtol=1e-6)


def walk_covariance(walk: GaussianWalk, k: int, g: int) -> torch.Tensor:
    """Covariance of one driver's and gene's nodes, (T, T), by v_t = keep_t v_{t-1} + step_t."""
    root = torch.zeros(T, T)
    root[0, 0] = walk.first_scale[k, g]
    for t in range(1, T):
        root[t] = walk.keep[t - 1] * root[t - 1]
        root[t, t] = walk.step_scale[k, t - 1, g]
    return root @ root.T


@pytest.mark.parametrize("keep", [None, torch.tensor([0.9, 0.2, 0.6])], ids=["walk", "fading"])
def test_gaussian_walk_has_the_density_and_covariance_of_its_increments(keep):
    walk = GaussianWalk(torch.tensor(0.7), positive(J, T - 1, G), keep)
    value, zero = walk.rsample(), torch.zeros(T)
    expected = sum(
        MultivariateNormal(zero, walk_covariance(walk, k, g)).log_prob(value[k, :, g])
        for k in range(J)
        for g in range(G)
    )
    torch.testing.assert_close(walk.log_prob(value), expected)
    draws = walk.rsample((N_DRAWS,))[:, 1, :, 2]
    assert_moments(draws, zero, walk_covariance(walk, 1, 2))


def test_a_walk_of_one_node_is_a_normal():
    walk = GaussianWalk(torch.tensor(0.5), torch.zeros(J, 0, G))
    value = walk.rsample()
    assert value.shape == (J, 1, G)
    expected = torch.distributions.Normal(0.0, 0.5).log_prob(value).sum()
    torch.testing.assert_close(walk.log_prob(value), expected)


@pytest.mark.parametrize(
    "unseen", [[False] * T, [False, False, True, True]], ids=["seen", "unseen at the end"]
)
@pytest.mark.parametrize("keep", [None, torch.tensor([0.9, 0.2, 0.6])], ids=["walk", "fading"])
def test_markov_family_has_the_density_and_covariance_of_its_recursion(unseen, keep):
    walk = markov(unseen, keep=keep)
    reference = unrolled(walk)
    draws = walk.rsample((4000,)).flatten(1)
    for value in draws[:3]:
        torch.testing.assert_close(walk.log_prob(value.view(1, T, G)), reference.log_prob(value))
    torch.testing.assert_close(walk.mean.ravel(), reference.mean)
    assert_moments(draws, reference.mean, reference.covariance_matrix)


def test_nodes_never_seen_follow_the_prior_s_steps():
    walk = markov([False, False, True, True], n=2)
    steps = torch.stack([walk.rsample() for _ in range(4000)]).diff(dim=2)[:, :, 1:]
    torch.testing.assert_close(steps.std(0), walk.prior_step[:, 1:], rtol=0.06, atol=0)
    value = walk.rsample()
    moved = value.clone()
    moved[:, 2:] += 0.3  # the step into the first node not seen, and no later one
    prior = torch.distributions.Normal(0.0, walk.prior_step[:, 1])
    change = (prior.log_prob((moved - value)[:, 2] + value[:, 2] - value[:, 1])).sum()
    change -= prior.log_prob(value[:, 2] - value[:, 1]).sum()
    torch.testing.assert_close(walk.log_prob(moved) - walk.log_prob(value), change)


def test_gradients_reach_every_parameter_of_the_markov_family():
    loc, scale, tau = torch.randn(2, T, G), positive(2, T, G), positive(2, T, D)
    parameters = [loc, scale, tau, torch.rand(2, T)]
    for parameter in parameters:
        parameter.requires_grad_()
    unseen = torch.zeros(2, T, dtype=torch.bool)
    axes, step = torch.randn(D, G), positive(2, T - 1, G)
    walk = MarkovLowRankNormal(loc, scale, axes, tau, parameters[3], unseen, step)
    (walk.rsample().sum() + walk.log_prob(torch.randn(2, T, G))).backward()
    for gradient in (loc.grad, scale.grad, tau.grad, parameters[3].grad[:, 1:]):
        assert torch.isfinite(gradient).all() and (gradient != 0).all()

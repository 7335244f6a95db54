"""What each way of computing a part of the training step saves, against the plain way.

Both ways give the same numbers to rounding (tests/test_step.py holds a whole step to that); they
take turns, on one thread, forward and backward, 512 cells of 2,000 genes, 13% of the counts not
zero, 50 perturbations, 4 batches. Prints a table of processor time, then one line of JSON.

    python benchmarks/step_changes.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pyro
import torch
from common import part_of, quiet, write_results
from pyro.infer import Trace_ELBO
from throughput import alternate, build, screen
from torch import Tensor

from pyrocell import PyroCell
from pyrocell.distributions import EventNormal
from pyrocell.distributions._low_rank import _all_pairs, _Terms, low_rank_log_prob
from pyrocell.generative.cell_shift import shifts_shared
from pyrocell.guide.encoder import state_shift
from pyrocell.training.fit import negative_elbo

CELLS = 512
Ways = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def first_layer(model: PyroCell, batch: dict[str, Tensor]) -> Ways:
    """Dense counts, log1p and a matrix product; or the non-zero counts alone."""
    encoder = model.module.guide.encoder
    return (
        lambda: encoder._first(batch["x"].to_dense()).sum(),
        lambda: encoder._first(batch["x"]).sum(),
    )


def read_shift(model: PyroCell, batch: dict[str, Tensor]) -> Ways:
    """What the guide reads of the cells' shifts: cells by genes; or rows of tables, projected."""
    guide, net = model.module.guide, model.module.model
    with torch.no_grad():
        values = guide.globals()
    values = {name: v.requires_grad_(v.is_floating_point()) for name, v in values.items()}
    depth = torch.ones(len(batch["condition"]))
    fixed = net.loading.detach(), guide.mean_count, values["V.dispersion"].detach()
    parts = lambda: net.shift_parts(values, batch["condition"], batch["batch"])  # noqa: E731
    return (
        lambda: state_shift(parts().dense(), depth, *fixed).sum(),
        lambda: state_shift(parts(), depth, *fixed).sum(),
    )


def added_shift(model: PyroCell, batch: dict[str, Tensor]) -> Ways:
    """Decoder and likelihood: shifts added to logits first; or as the kernel reads each row."""
    net, guide = model.module.model, model.module.guide
    with torch.no_grad():
        values = guide.globals()
    values = {name: v.requires_grad_(v.is_floating_point()) for name, v in values.items()}
    z = torch.randn(len(batch["condition"]), net.config.n_latent)

    def plain() -> Tensor:
        shift = net.cell_shift(values, batch["condition"], batch["batch"])
        logits = net.resting_logits(values, z) + shift
        return net.view(values, logits, batch["log_size"], z).log_prob(batch["x"]).sum()

    def fused() -> Tensor:
        shift = net.shift_parts(values, batch["condition"], batch["batch"])
        shift = shift.plus(values["V.baseline"])
        logits, offset = shift.decoded(*net.decoding(values, z))
        return net.view(values, logits, batch["log_size"], z, offset).log_prob(batch["x"]).sum()

    return plain, fused


def low_rank(model: PyroCell, batch: dict[str, Tensor]) -> Ways:
    """Density of 500 residuals: automatic gradient; or written out, in one pass over rows."""
    guide, axes = model.module.guide, model.module.model.loading.detach()
    times = 500 // len(guide.P_residual_tau)
    scale = guide.P_residual_log_scale.detach().exp().repeat(times, 1, 1).requires_grad_()
    tau = guide.P_residual_tau.detach().exp().repeat(times, 1, 1).requires_grad_()
    noise = torch.randn_like(scale).requires_grad_()
    return (
        lambda: _Terms(noise, scale, axes, tau, _all_pairs(axes)).log_prob.sum(),
        lambda: low_rank_log_prob(noise, scale, axes, tau).sum(),
    )


def normal(model: PyroCell, batch: dict[str, Tensor]) -> Ways:
    """Draw and density of the weights of the decoder's curve: of the value; or of its noise."""
    loc, log_scale = model.module.guide.curvature_loc, model.module.guide.curvature_log_scale

    def plain() -> Tensor:
        family = pyro.distributions.Normal(loc, log_scale.exp()).to_event(2)
        return family.log_prob(family.rsample())

    def drawn() -> Tensor:
        family = EventNormal(loc, log_scale.exp())
        return family.log_prob(family.rsample())

    return plain, drawn


def elbo(model: PyroCell, batch: dict[str, Tensor]) -> Ways:
    """Sum of the ELBO's terms: by Pyro, shifts of conditions twice; or by scale, shifts once."""
    net, guide, trace = model.module.model, model.module.guide, Trace_ELBO()

    def shared() -> Tensor:
        with shifts_shared():
            return negative_elbo(net, guide, batch)

    return lambda: trace.differentiable_loss(net, guide, **batch), shared


CHANGES = (first_layer, read_shift, added_shift, low_rank, normal, elbo)


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    quiet()
    model, found = build(screen(50)), {}
    model.module.model.n_cells = len(model._cells)
    batch = model.module_arguments(range(CELLS))
    print(f"{'':14s} {'plain ms':>9s} {'now ms':>9s}")
    local = pyro.settings.context(module_local_params=True)
    with local, pyro.validation_enabled(False):
        for change in CHANGES:
            plain, now = change(model, batch)
            tasks = {"plain": lambda f=plain: f().backward(), "now": lambda f=now: f().backward()}
            times = alternate(tasks, options.repeats)
            ms = {name: 1e3 * t["processor"] for name, t in times.items()}
            found[change.__name__] = ms
            line = f"{change.__name__:14s} {ms['plain']:9.2f} {ms['now']:9.2f}"
            print(f"{line}   {change.__doc__}", flush=True)
    write_results("step_changes", {part_of(parser, options): {"milliseconds": found}}, [0])


if __name__ == "__main__":
    main()

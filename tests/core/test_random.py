"""Random numbers of a draw: purposes do not share them."""

from __future__ import annotations

import numpy as np
import torch

from pyrocell._core.random import generator, seeded, stream
from pyrocell.posterior.populations import resting_cells, resting_states

CPU = torch.device("cpu")


def test_a_stream_is_that_of_its_purpose_and_numbers():
    seeds = {stream(name, *n) for name in ("state", "luck") for n in ((0,), (1,), (0, 0), (0, 1))}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    drawn = torch.randn(3, generator=generator(CPU, "state", 4))
    assert torch.equal(drawn, torch.randn(3, generator=generator(CPU, "state", 4)))


def test_a_block_leaves_the_global_generator_as_it_was():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    with seeded(CPU, "past", 1):
        torch.randn(5)
    assert torch.equal(torch.randn(3), expected)


def test_states_of_cells_do_not_follow_the_globals_they_are_drawn_with(fitted):
    """With one seed for both, a state's noise was the very numbers of the draw's first site."""
    fit = fitted.fitted
    cells = resting_cells(fit.data, fit.model, 0)
    noise, first = [], []
    for s, values in enumerate(fit.posterior.draws(200)):
        with torch.no_grad():
            labels = (cells["condition"], cells["batch"])
            loc, scale = fit.posterior.guide.encode(values, cells["x"], *labels)
            z = resting_states(fit.posterior.guide, values, cells, s)
        noise.append(float(((z - loc) / scale)[0, 0]))
        first.append(float(values["V.baseline"][0]))
    assert abs(np.corrcoef(noise, first)[0, 1]) < 4 / 200**0.5

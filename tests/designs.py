"""Random parameters of the operators and random designs, for the tests of their laws."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pyrocell.operators import ResponseParameters
from pyrocell.operators.state import State

GENES = {"A": 0, "B (CRISPRi)": 1, "B (knockout)": 2, "C": 3}
MEDIA = {"m": 0, "n": 1}
K, J, D = len(GENES), len(MEDIA), 3
TIMES = st.floats(0, 4)


@st.composite
def parameters(draw: st.DrawFn, turnover: bool = True) -> ResponseParameters:
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    return ResponseParameters(
        effect=normal(K, D),
        media_effect=normal(J, D),
        gain=normal(K, J).abs(),
        turnover=normal(J).exp() if turnover else torch.zeros(J, dtype=torch.float64),
        log_rate=0.3 * normal(K + J),
        base_log_rate=0.3 * normal(),
        reference_time=draw(st.floats(0.5, 3)),
        log_decay=0.3 * normal(K) if draw(st.booleans()) else None,
    )


@st.composite
def designs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    n = draw(st.integers(1, 5))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    genotype = (torch.rand(n, K, generator=rng) < 0.4).double()
    exposure = (torch.rand(n, J, generator=rng) < 0.5).double()
    return genotype, exposure, 3 * torch.rand(n, generator=rng, dtype=torch.float64)


def rest(n: int) -> State:
    return State.rest(n, K, J, D, dtype=torch.float64)


def assert_same(a: State, b: State, tolerance: float = 1e-10) -> None:
    for field in ("y", "genotype", "dose", "exposure", "gain"):
        assert_close(getattr(a, field), getattr(b, field), rtol=tolerance, atol=tolerance)

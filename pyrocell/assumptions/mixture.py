"""Assumptions that may hold or not, as a factor on the latent state with one indicator for each.

Eq. 9 asks that waiting longer leaves a condition's state where it is; eq. 14, as its text has it,
the same of a medium that a perturbation blocks. Held with a probability between 0 and 1 this is a
mixture: with probability p the change of the state y has size exp(−s² / 2a²), and otherwise the
model says of it what it says anyway,

    log [ p exp(−s² / 2a²) / Z + (1 − p) ],

s² the sum over axes of the squared change, each in the root mean square log-fold change that it is
worth, and a the scale, which is learned: what each axis may still change by.
Z is the expectation of exp(−s² / 2a²) under the model's own prior. Without it the factor would
not be a mixture: its odds would be p Z to 1 − p, and Z is a matter of how many axes there are and
how wide their prior is. With it the prior probability of the indicator is p, and a has no say
before cells have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyrocell.assumptions.constraints import condition_table, uncertain_rows
from pyrocell.assumptions.spec import Assume
from pyrocell.operators import ResponseParameters
from pyrocell.operators.arms import respond_in_order
from pyrocell.operators.waiting import relative_curve
from pyrocell.screen.conditions import Conditions
from pyrocell.screen.screen import Screen

__all__ = ["AssumptionMixture"]

_DRAWS = 128  # of rates and gains from their prior, for Z

Values = dict[str, Tensor]


class AssumptionMixture(nn.Module):
    """The assumptions of a model that are held with a probability between 0 and 1.

    Parameters
    ----------
    screen
        The registered screen.
    assume
        What is held; what has probability 0 or 1 is not dealt with here, nor what no part of the
        model could obey (`memory`; steadiness on a screen of one time).

    Attributes
    ----------
    rows
        (assumption, perturbation, medium) of each, R of them.
    kinds
        Names of the assumptions among them, one scale each.
    """

    contrast: Tensor
    of_row: Tensor
    log_odds: Tensor
    kind: Tensor
    about_drift: Tensor
    code: Tensor
    gram: Tensor

    def __init__(self, screen: Screen, assume: Sequence[Assume]) -> None:
        super().__init__()
        found = uncertain_rows(screen, assume)
        self.rows = [(row.assumption, row.perturbation, row.media) for row, _, _ in found]
        self.kinds = list(dict.fromkeys(name for name, *_ in self.rows))
        if not found:
            return
        contrasts = [weights for _, _, several in found for weights in several]
        conditions, matrix = condition_table(contrasts)
        of_row = [i for i, (_, _, several) in enumerate(found) for _ in several]
        colour = _colours(conditions.genotype)
        tables = {
            "contrast": matrix,  # (n, C)
            "of_row": torch.tensor(of_row),  # (n,)
            "log_odds": torch.tensor([math.log(p) - math.log1p(-p) for _, p, _ in found]),  # (R,)
            "kind": torch.tensor([self.kinds.index(name) for name, *_ in self.rows]),  # (R,)
            "about_drift": torch.tensor([name == "necessary" for name, *_ in self.rows]),
            "code": nn.functional.one_hot(colour).to(matrix.dtype),  # (K, Q)
            **{f"condition_{k}": v for k, v in conditions._asdict().items()},
        }
        for name, value in tables.items():
            self.register_buffer(name, value, persistent=False)

    def __len__(self) -> int:
        """Number of assumptions held with a probability between 0 and 1."""
        return len(self.rows)

    @property
    def conditions(self) -> Conditions:
        """The conditions they speak of, measured or not."""
        return Conditions(*(getattr(self, f"condition_{name}") for name in Conditions._fields))

    def expect(
        self, draw: Callable[[], tuple[ResponseParameters, Tensor | None]], reference: float
    ) -> None:
        """Set what Z averages over: rates and gains from their prior.

        Parameters
        ----------
        draw
            Gives parameters and the rate of drift (None without drift).
        reference
            The time at which drift is stated.
        """
        with torch.random.fork_rng([]), torch.no_grad():  # the same layout gives the same Z
            torch.manual_seed(0)
            moves = [self._movement(*draw(), reference) for _ in range(_DRAWS)]
        self.register_buffer("gram", torch.stack(moves), persistent=False)  # (S, R, Q+H, Q+H)

    def _movement(
        self, params: ResponseParameters, drift_rate: Tensor | None, reference: float
    ) -> Tensor:
        """K'K of each assumption, K what its changes are per unit of what drives them.

        Drivers are its perturbations by colour (Q of them), then each medium and drift (H).
        """
        c, media = self.conditions, len(params.media_effect)
        q = self.code.shape[1]
        eye = torch.eye(media, dtype=self.code.dtype, device=self.code.device)
        coded = replace(
            params,
            effect=nn.functional.pad(self.code, (0, media)),
            media_effect=nn.functional.pad(eye, (q, 0)),
            field=None,
        )
        state = respond_in_order(
            c.genotype, c.exposure, c.duration, c.perturbed_at, c.exposed_at, coded
        )
        drift = c.duration.new_zeros(len(c.duration))
        if drift_rate is not None:
            drift = relative_curve(drift_rate, c.duration, reference)
        each = self.contrast @ torch.cat([state.y, drift[:, None]], 1)  # (n, Q + H)
        moved = self.about_drift[self.of_row]  # there drift is what it is about
        each[moved, 0], each[moved, -1] = each[moved, -1], 0.0
        outer = each[:, :, None] * each[:, None]
        return outer.new_zeros(len(self), *outer.shape[1:]).index_add(0, self.of_row, outer)

    def log_factor(
        self, y: Tensor, width: Tensor, own: Tensor, drift: Tensor, shared: Tensor, scale: Tensor
    ) -> Tensor:
        """Log of spike over slab of each assumption, (R,); its prior expectation is that of 1.

        Parameters
        ----------
        y
            (C, D) displacement of `conditions`.
        width
            (D,) root mean square log-fold change that a unit along each axis is worth.
        own, drift
            (D,) prior standard deviations of a perturbation's effect and of drift, per axis.
        shared
            (J + 1, D) what many conditions share and the rows take as given: effects of media, and
            drift.
        scale
            (kinds,) a, root mean square log-fold change per axis.
        """
        axis = scale[self.kind]  # (R,)
        change = (self.contrast @ y * width).square().sum(1)  # (n,)
        change = change.new_zeros(len(self)).index_add(0, self.of_row, change)
        sd = torch.where(self.about_drift[:, None], drift, own) * width  # (R, D)
        normaliser = self._log_expected(sd / axis[:, None], shared * width, axis)
        return -0.5 * change / axis.square() - normaliser

    def _log_expected(self, sd: Tensor, shared: Tensor, axis: Tensor) -> Tensor:
        """log Z, (R,): effects are summed out in closed form, rates and gains over their draws.

        For x = K e + m, e ~ Normal(0, sd²), E exp(−x'x / 2) is
        |A|^(−1/2) exp(−(m'm − b'A⁻¹b) / 2), A = I + sd K'K sd, b = sd K'm.
        """
        q = self.code.shape[1]
        own, both, rest = self.gram[..., :q, :q], self.gram[..., :q, q:], self.gram[..., q:, q:]
        whole = torch.einsum("srhk,hd,kd->srd", rest, shared, shared) / axis[:, None].square()
        b = torch.einsum("srqh,hd->srdq", both, shared) * (sd / axis[:, None])[..., None]
        a = own[:, :, None] * sd.square()[..., None, None]  # (S, R, D, Q, Q)
        each = -0.5 * (whole + _log_det_less_form(a, b)).sum(-1)  # (S, R)
        return each.logsumexp(0) - math.log(len(each))

    def log_prior(self, log_factor: Tensor) -> Tensor:
        """Log of the mixture, indicator summed out, (R,)."""
        held = nn.functional.logsigmoid(self.log_odds) + log_factor
        return torch.logaddexp(held, nn.functional.logsigmoid(-self.log_odds))

    def responsibility(self, log_factor: Tensor) -> Tensor:
        """Probability that each assumption holds, given the state, (R,)."""
        return (self.log_odds + log_factor).sigmoid()


def _colours(genotype: Tensor) -> Tensor:
    """Number the perturbations so that those of one condition differ, (K,)."""
    together = genotype.T @ genotype > 0
    colour = torch.zeros(genotype.shape[1], dtype=torch.long)
    for k in range(1, len(colour)):
        taken = set(colour[:k][together[k, :k]].tolist())
        colour[k] = next(c for c in range(k + 1) if c not in taken)
    return colour


def _log_det_less_form(a: Tensor, b: Tensor) -> Tensor:
    """log|I + a| − b'(I + a)⁻¹b of many small matrices (..., Q, Q), by elimination, (...)."""
    out = torch.zeros_like(b[..., 0])
    while b.shape[-1]:
        pivot = 1 + a[..., 0, 0]
        out = out + pivot.log() - b[..., 0].square() / pivot
        share = a[..., 1:, 0] / pivot[..., None]
        a = a[..., 1:, 1:] - share[..., None] * a[..., :1, 1:]
        b = b[..., 1:] - share * b[..., :1]
    return out

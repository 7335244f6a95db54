"""A recommendation in words."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from pyrocell.assumptions.testability import testability
from pyrocell.design.inflation import aliasing
from pyrocell.design.layouts import Layout
from pyrocell.design.plan import Plan
from pyrocell.design.planner import Recommendation

__all__ = ["summary", "testable"]

_QUESTIONS = {
    "perturbation": "perturbation against control, same medium and time",
    "media": "control in a medium against baseline",
    "gain": "what a medium changes of a perturbation's effect",
    "time": "control against the first time",
    "change": "what time changes of a perturbation's effect",
}
_SHOWN = 5  # reasons that are spelt out
_REMEDIES = 2  # ways to make an assumption testable that are spelt out
_REMEDY = "Next screen: "  # what a reason of `testability` ends with
_ONE_BATCH = re.compile(r"one batch|same batch|batches of both")
_RULED_OUT = (
    " (this plan rules it out: a lane holds one medium and time; cell hashing would allow it)"
)


def summary(found: Recommendation) -> str:
    """What to load, what to expect of it, and what it cannot tell; markdown."""
    layout, kinds = found.layout, found.score.kinds
    parts = [f"# Layout of {layout.cells.shape[-1]} lanes", _lanes(layout), "## What to expect"]
    rows = [
        (
            _QUESTIONS[str(name)],
            f"{row['error']:.3f}",
            f"{row['known_sd']:.3f}",
            f"{row['prior_sd']:.3f}",
            f"{row['aliased']:.0f} of {row['n']:.0f}",
        )
        for name, row in kinds.iterrows()
    ]
    heads = ("question", "expected error", "were batches known", "before", "aliased with batch")
    parts.append(_table(heads, rows))
    parts.append(
        f"Root mean squares over genes, natural-log fold change; overall {found.score.error:.4f}, "
        f"at most {found.gap:.1%} above the least that any layout of this plan can have."
    )
    if len(found.comparison) > 1:
        compared = [
            (str(name), f"{row['error']:.4f}", f"{row['ratio']:.2f}", f"{row['controls']:.1%}")
            for name, row in found.comparison.iterrows()
        ]
        parts += ["## Beside other layouts", _table(("layout", "error", "ratio", "controls"),
                                                    compared)]  # fmt: skip
    parts += ["## What it cannot tell", _untold(layout)]
    parts += ["## Assumptions that it can test", _tests(layout, _mixes(found.plan))]
    return "\n\n".join(parts) + "\n"


def _lanes(layout: Layout) -> str:
    """Lanes by what is in them."""
    same: dict[bytes, list[int]] = {}
    for b in range(layout.cells.shape[-1]):
        same.setdefault(np.round(layout.cells[..., b], 1).tobytes(), []).append(b)
    lines = []
    for lanes in same.values():
        cells = layout.cells[..., lanes[0]]
        held = []
        for a, arm in enumerate(layout.arms):
            if cells[:, a].any():
                each = cells[1:, a][cells[1:, a] > 0]
                per = f" ({each.mean():.1f} of each perturbation)" if len(each) else ""
                held.append(
                    f"{arm.name}: {cells[0, a]:,.0f} control, {cells[1:, a].sum():,.0f} "
                    f"perturbed{per}"
                )
        names = layout.batches[lanes[0]] + (
            f" to {layout.batches[lanes[-1]]}" if len(lanes) > 1 else ""
        )
        lines.append(f"- {names}: " + "; ".join(held))
    return "\n".join(lines)


def _untold(layout: Layout) -> str:
    """Reasons for aliasing, each with how many contrasts it holds for."""
    table = aliasing(layout)
    mixed = table[~table["estimable"]]
    if mixed.empty:
        return "Every contrast can be told from batch noise."
    lines = []
    groups = mixed.groupby(["contrast", "media", "aliased_with"], sort=False)
    for (kind, media, partners), part in groups:
        where = f"; mixed with batch noise, {partners}" if partners else "; never measured"
        lines.append(f"- {len(part)} × {_QUESTIONS[str(kind)]}, in {media}{where}")
    more = [f"- and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more])


def _mixes(plan: Plan) -> bool:
    """Whether a lane of this plan may hold several media or times."""
    return any(len(arms) > 1 for arms, _ in plan.contents)


def _tests(layout: Layout, mixes: bool) -> str:
    """How many rows of each assumption can be tested, and what would make the others so."""
    table = testability(layout.to_screen())
    lines = []
    for name, row in testable(layout).iterrows():
        lines.append(f"- {name}: {row['testable']} of {row['of']}")
        rows = table[(table["assumption"] == name) & ~table["testable"]]
        remedies: dict[str, int] = {}
        for reason, perturbation in zip(rows["reason"], rows["perturbation"]):
            remedy = str(reason).rpartition(_REMEDY)[2]
            if perturbation and perturbation != layout.control:
                remedy = remedy.replace(str(perturbation), "each perturbation")
            remedies[remedy] = remedies.get(remedy, 0) + 1
        for remedy, n in list(remedies.items())[:_REMEDIES]:
            ruled_out = "" if mixes or not _ONE_BATCH.search(remedy) else _RULED_OUT
            lines.append(f"  - for {n} of the others: {remedy}{ruled_out}")
    return "\n".join(lines)


def testable(layout: Layout) -> pd.DataFrame:
    """How many rows of each assumption a layout can test: testable, of; see `testability`."""
    table = testability(layout.to_screen())
    counts = table.groupby("assumption", sort=False)["testable"].agg(["sum", "size"])
    return counts.set_axis(["testable", "of"], axis=1).astype(int)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

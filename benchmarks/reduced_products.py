"""What products of fewer bits do to loss and gradients, emulated on the CPU: needs no GPU.

The accuracy test of `pyrocell.training.precision` before training, with factors of every float32
matrix product rounded to the nearest, or cut: 11 bits are those of TF32, 8 those of bfloat16 (whose
products would be rounded as well). Units of what 3,000 steps can tell: above 1 the test fails. The
anchor, 24 bits, is what another order of summation does.

    python benchmarks/reduced_products.py

Prints a table, then one line of JSON.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import torch
from common import quiet, write_results
from throughput import SEED, build, parts, screen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocell import TrainingConfig
from pyrocell.training import precision
from pyrocell.training.fit import ElboPlan

STEPS, MINIBATCH = 3000, 512
_aten = torch.ops.aten
PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.mv, _aten.dot, _aten.addmv}


def keep(bits: int, nearest: bool) -> Callable[[Tensor], Tensor]:
    """What leaves so many significant bits of float32."""
    lost = 24 - bits
    half = 1 << (lost - 1) if nearest and lost else 0

    def kept(x: Tensor) -> Tensor:
        return ((x.contiguous().view(torch.int32) + half) >> lost << lost).view(torch.float32)

    return kept


class Rounding(TorchDispatchMode):
    """Products of factors with fewer bits."""

    def __init__(self, kept: Callable[[Tensor], Tensor]):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if op.overloadpacket in PRODUCTS and args[-1].dtype == torch.float32:
            args = (*args[:-2], *(self.kept(t) for t in args[-2:]))
        return op(*args, **(kwargs or {}))


def gradient(plan: ElboPlan, batch: dict[str, Tensor], seed: int) -> list[Tensor | None]:
    """Loss and gradient with draws of a seed."""
    torch.manual_seed(seed)
    return precision._gradient(plan, batch)


def main() -> None:
    """Print the table and the line of JSON."""
    quiet()
    model = build(screen(50, n_cells_per_condition=40))
    net, guide = parts(model)
    plan = ElboPlan(net, guide, net.n_cells, STEPS, TrainingConfig())
    names = ["loss", *(name for name, p in plan.named_parameters() if p.requires_grad)]
    rng, batches = np.random.default_rng(SEED), []
    for _ in range(3):  # dense: a product of CSR counts would be left as it is
        cells = np.sort(rng.choice(net.n_cells, MINIBATCH, replace=False))
        batches.append(model.module_arguments(cells, dense=True))
    rows = {}
    print(f"{net.n_cells} cells of {net.n_genes} genes, {MINIBATCH} per step, {STEPS} steps")
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
        full = [gradient(plan, batch, i) for i, batch in enumerate(batches)]
        for bits, nearest in ((24, True), (11, True), (11, False), (8, True), (8, False)):
            errors = []
            for i, batch in enumerate(batches):
                with Rounding(keep(bits, nearest)):
                    tried = gradient(plan, batch, i)
                errors.append([b if a is None else b - a for a, b in zip(full[i], tried)])
            found = precision.in_units_of_noise(names, full, errors, STEPS)
            worst = max(found, key=found.get)
            row = f"{bits} bits, {'nearest' if nearest else 'cut'}"
            rows[row] = {"loss": found["loss"], "largest": found[worst], "of": worst}
            rows[row]["median"] = float(np.median(list(found.values())))
            print(row, {k: v if isinstance(v, str) else round(v, 4) for k, v in rows[row].items()})
    write_results("reduced_products", {"all": {"rows": rows}}, [SEED])


if __name__ == "__main__":
    main()

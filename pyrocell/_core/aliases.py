"""Import paths of earlier versions: each still works, with a warning that names the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "NAMED", "install"]

# The version after 0.2 may drop them.
MOVED = {
    "pyrocell.assume": "pyrocell.assumptions.spec",
    "pyrocell.checkpoints": "pyrocell.training.checkpoints",
    "pyrocell.decoder": "pyrocell.views.decoder",
    "pyrocell.distances": "pyrocell.metrics.distances",
    "pyrocell.levels": "pyrocell.contrasts.levels",
    "pyrocell.nesting": "pyrocell.noise.laboratories",
    "pyrocell.objectives": "pyrocell.generative.population_objective",
    "pyrocell.plates": "pyrocell.arrayed.plates",
    "pyrocell.precision": "pyrocell.training.precision",
    "pyrocell.pseudobulk_ode": "pyrocell.proof_of_principle.pseudobulk_ode",
    "pyrocell.state": "pyrocell.operators.state",
    "pyrocell.steady_screen": "pyrocell.assumptions.steady_state",
    "pyrocell.stored": "pyrocell.data.backed",
    "pyrocell.testability": "pyrocell.assumptions.testability",
    "pyrocell.vector_field": "pyrocell.proof_of_principle.vector_field",
}

# Short names of modules, as scanpy has them: `from pyrocell.pl import effects` works, too.
NAMED = {
    "calibration": "pyrocell.diagnostics.calibration",
    "pl": "pyrocell.plotting",
    "second_opinion": "pyrocell.diagnostics.nuts_check",
}


class _Alias(Loader):
    """Loads a module that hands every name on from where it is now."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(
            f"{module.__name__} is now {new}; the old path goes after version 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        found = import_module(new)
        module.__doc__ = found.__doc__
        module.__dict__["__getattr__"] = lambda name: getattr(found, name)
        if hasattr(found, "__all__"):
            module.__dict__["__all__"] = found.__all__


class _Name(Loader):
    """Puts the module that a short name stands for in its place."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        sys.modules[name] = import_module(NAMED[name.removeprefix("pyrocell.")])


class _Aliases(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.removeprefix("pyrocell.") in NAMED and fullname.startswith("pyrocell."):
            return ModuleSpec(fullname, _Name())
        return ModuleSpec(fullname, _Alias()) if fullname in MOVED else None


def install() -> None:
    """Make the short names and the old paths importable; once."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.append(_Aliases())

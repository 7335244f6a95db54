"""Ways of computing the count likelihood, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["automatic", "chosen", "compiled_likelihood", "likelihood_path"]

PATHS = ("auto", "rows", "analytic", "compiled", "reference")

_path: ContextVar[str] = ContextVar("likelihood_path", default="auto")
_compile: ContextVar[bool] = ContextVar("compiled_likelihood", default=False)


@contextmanager
def likelihood_path(path: str) -> Iterator[None]:
    """Choose how `log_prob` is computed, within a with block.

    Parameters
    ----------
    path
        "rows": one numba pass over CSR rows (float32, CPU). "analytic": torch with the gradient
        written out. "compiled": the same through torch.compile, which takes some seconds at its
        first use in a process; as "analytic", with a warning, where it cannot be compiled.
        "reference": the plain formula in double. "auto": rows where possible, the reference for
        double precision, and otherwise analytic, or compiled within `compiled_likelihood`.

    Raises
    ------
    ValueError
        If there is no such path.
    """
    if path not in PATHS:
        raise ValueError(f"path={path!r} is not known; choose one of {', '.join(PATHS)}")
    with _set(_path, path):
        yield


@contextmanager
def compiled_likelihood(wanted: bool) -> Iterator[None]:
    """Whether "auto" compiles what it computes by "analytic" on devices other than the CPU."""
    with _set(_compile, wanted):
        yield


@contextmanager
def _set(variable: ContextVar, value: str | bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def chosen() -> str:
    """The path asked for."""
    return _path.get()


def automatic(double: bool, on_cpu: bool) -> str:
    """The path that "auto" takes, by precision and device of the parameters."""
    if double:
        return "reference"
    if on_cpu:
        return "rows"
    return "compiled" if _compile.get() else "analytic"

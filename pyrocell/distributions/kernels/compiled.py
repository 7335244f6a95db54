"""A function through torch.compile, or as it is where the compiler cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Compiled"]


class Compiled:
    """A function of tensors without gradients, compiled at its first call for all sizes from 2 on.

    Where a compiled call fails, the function is called as it is: if it fails too, the error is the
    caller's and is raised. If not, it is the compiler's: there is one UserWarning, and no further
    try on this kind of device in this process.

    Parameters
    ----------
    function
        Takes tensors or None, the first one a tensor; changes none of them.
    what
        What the warning calls it.
    options
        Further options of torch.compile.
    """

    def __init__(self, function: Callable[..., Any], what: str, **options: Any):
        self.function, self.what, self.options = function, what, options
        self._compiled: Callable[..., Any] | None = None
        self._failed: set[str] = set()

    def __call__(self, *arguments: Tensor | None) -> Any:
        """What the function returns."""
        device = arguments[0].device.type
        if device in self._failed:
            return self.function(*arguments)
        try:
            return self._call(arguments)
        except Exception as error:
            result = self.function(*arguments)
            self._failed.add(device)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(
                f"torch.compile failed on {self.what} (device {device!r}); it is computed without "
                f"compilation in this process, more slowly. {reason[:300]}",
                stacklevel=2,
            )
            return result

    def _call(self, arguments: tuple[Tensor | None, ...]) -> Any:
        if self._compiled is None:
            self._compiled = torch.compile(
                self.function, dynamic=True, fullgraph=True, **self.options
            )
        # every combination of gradients, inference mode and layouts would be compiled anew
        with torch.inference_mode(False), torch.no_grad():
            return self._compiled(*(None if t is None else _bare(t) for t in arguments))


def _bare(t: Tensor) -> Tensor:
    """The values of a tensor, contiguous and with nothing about gradients."""
    if t.is_inference() or t.storage_offset() or not t.is_contiguous():
        return t.clone(memory_format=torch.contiguous_format)
    return t.detach()

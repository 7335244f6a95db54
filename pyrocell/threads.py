"""How many threads torch gets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

__all__ = ["few_threads", "on_few_threads"]

_FEW_GENES = 1000


@contextmanager
def few_threads(n_genes: int) -> Iterator[None]:
    """One thread for a small screen, unless the user has set a number: more wait for each other."""
    before = torch.get_num_threads()
    if n_genes < _FEW_GENES and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_few_threads(method: Callable) -> Callable:
    """A method of an object with a `screen`, run on as many threads as its genes are worth."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with few_threads(len(self.screen.genes)):
            return method(self, *args, **kwargs)

    return run

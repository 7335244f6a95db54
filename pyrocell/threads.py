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
    """One thread for a small screen, or the number that the user has set: more wait for each other.

    That number is set again: numba's parallel functions, such as scanpy's, raise it in silence.
    """
    before = torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit():
        torch.set_num_threads(max(1, int(asked)))
    elif n_genes < _FEW_GENES:
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

"""How many threads torch gets, and kernels of ours that share them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

__all__ = ["few_threads", "in_turn", "limit_threads", "parallel_for", "work_of"]

_FEW_GENES = 1000
_CONDITIONS = 250  # whose levels of a gene are as much work as that gene in a minibatch
_pool: ThreadPoolExecutor | None = None
_turn = threading.RLock()  # torch's generator and settings and Pyro's handlers are of the process


def _forget_threads() -> None:
    global _pool, _turn
    _pool, _turn = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # threads do not survive a fork


def parallel_for(work: Callable[[int], None], n_items: int) -> None:
    """Run work(0) .. work(n_items - 1), of kernels that release the GIL, on torch's threads."""
    n_threads = min(torch.get_num_threads(), n_items)
    if n_threads <= 1:
        for i in range(n_items):
            work(i)
        return
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pyrocell")

    def share(first: int) -> None:
        for i in range(first, n_items, n_threads):
            work(i)

    others = [_pool.submit(share, first) for first in range(1, n_threads)]
    share(0)
    for other in others:
        other.result()


@contextmanager
def few_threads(n_genes: int, processes: int = 1) -> Iterator[None]:
    """One thread for a small screen, or the number that the user has set: more wait for each other.

    Threads of the user's take turns, so that none draws from the random numbers of another. Also
    one where other processes share the machine. New tensors are of single precision.
    That number is set again: numba's parallel functions, such as scanpy's, raise it in silence.
    """
    with _turn:
        before, kind = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # whatever the user computes in
        asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        if asked.isdigit():
            torch.set_num_threads(max(1, int(asked)))
        elif n_genes < _FEW_GENES or processes > 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_default_dtype(kind)


def work_of(screen: Any) -> int:
    """Genes of a screen, each counted as often as its conditions are worth.

    For work of our own kernels, whose threads meet rarely; those of torch meet at every operation.
    """
    return len(screen.genes) * max(1, len(screen.conditions) // _CONDITIONS)


def in_turn(method: Callable) -> Callable:
    """A method that threads of the user's call one after the other."""

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _turn:
            return method(*args, **kwargs)

    return run


def limit_threads(method: Callable) -> Callable:
    """A method of an object with a `screen`, run on as many threads as its genes are worth."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with few_threads(len(self.screen.genes)):
            return method(self, *args, **kwargs)

    return run

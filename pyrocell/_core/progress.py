"""Progress of long work, where it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tqdm.auto import tqdm

__all__ = ["progress"]


def progress(show: bool) -> Callable[..., Iterable]:
    """Return what wraps an iterator: in a progress bar, or in nothing to be seen."""

    def bar(items: Iterable, **kwargs: Any) -> Iterable:
        return tqdm(items, disable=not show, **kwargs)

    return bar

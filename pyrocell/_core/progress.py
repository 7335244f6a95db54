"""Progress of long work, where it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from scvi import settings
from scvi.utils import track
from tqdm.auto import tqdm

__all__ = ["progress"]


def progress(show: bool) -> Callable[..., Iterable]:
    """Return what wraps an iterator: in a progress bar, or in nothing to be seen.

    The bar is one of tqdm's, on standard error, or of rich's where `scvi.settings` say so.
    """

    def bar(items: Iterable, desc: str | None = None, **kwargs: Any) -> Iterable:
        if show and settings.progress_bar_style == "rich":
            return track(items, desc or "Working...", style="rich", **kwargs)
        return tqdm(items, desc=desc, disable=not show, **kwargs)

    return bar

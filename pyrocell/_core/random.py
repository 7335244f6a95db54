"""Random numbers of a draw: one stream for each purpose, so that no two purposes share numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["generator", "seeded", "stream"]


def stream(purpose: str, *numbers: int) -> int:
    """Seed for a purpose, the same for the same numbers (a draw, a row) on every machine."""
    # NumPy takes trailing zeros for padding: the length keeps (0,) and (0, 0) apart.
    entropy = [zlib.crc32(purpose.encode()), len(numbers), *numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device, purpose: str, *numbers: int) -> torch.Generator:
    """Generator of such a stream."""
    return torch.Generator(device=device).manual_seed(stream(purpose, *numbers))


@contextmanager
def seeded(device: torch.device, purpose: str, *numbers: int) -> Iterator[None]:
    """Torch's own generator on such a stream within the block, and as it was after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream(purpose, *numbers))
        yield

"""Many fits at once: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from joblib import Parallel, delayed
from tqdm.auto import tqdm

__all__ = ["run"]


class _Shown(Parallel):
    """Parallel with a progress bar, whatever the backend."""

    bar: tqdm

    def print_progress(self) -> None:
        """Joblib calls this when something is done."""
        self.bar.update(self.n_completed_tasks - self.bar.n)


def run(
    function: Callable[..., Any],
    jobs: Sequence[tuple],
    n_jobs: int = 1,
    backend: str | None = None,
    progress_bar: bool = True,
) -> list[Any]:
    """Call a function once for each tuple of arguments, at the same time.

    Parameters
    ----------
    function
        What is done, such as fitting a model and returning a table of it.
    jobs
        Its arguments, a tuple for each call.
    n_jobs
        Calls at the same time; -1: as many as there are cores, with Ray those of the cluster; 1: in
        this process, one after the other.
    backend
        One of joblib's: "loky" (processes, the default), "threading", "sequential", or "ray": the
        Ray cluster that this process is connected to or that RAY_ADDRESS names, otherwise one that
        is started here.
    progress_bar
        Show progress.

    Returns
    -------
    What each call returned, in the order of the jobs.

    Raises
    ------
    ImportError
        For "ray" without the extra ``ray``.
    """
    if backend == "ray":
        _register_ray()
    parallel = _Shown(n_jobs=n_jobs, backend=backend)
    with tqdm(total=len(jobs), disable=not progress_bar) as parallel.bar:
        return list(parallel(delayed(function)(*arguments) for arguments in jobs))


def _register_ray() -> None:
    """Tell joblib of Ray."""
    try:
        # seconds to import, and few need it
        from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports] an extra

        register_ray()
    except ImportError as error:
        raise ImportError(
            'backend "ray" needs the package ray: pip install "pyrocell[ray]"'
        ) from error

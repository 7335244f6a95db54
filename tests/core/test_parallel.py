"""Many fits: the same answers in the same order, wherever they are made."""

from __future__ import annotations

import builtins
import os
import time

import pandas as pd
import pytest

from pyrocell import parallel
from pyrocell.diagnostics.calibration import simulation_based_calibration


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two workers on this machine."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield ray
        ray.shutdown()


@pytest.mark.parametrize(
    ("n_jobs", "backend"), [(1, None), (2, "threading"), (2, None)], ids=["here", "threads", "loky"]
)
def test_results_come_in_the_order_of_the_jobs(n_jobs, backend, capfd):
    jobs = [(i, 2) for i in range(5)]
    assert parallel.run(pow, jobs, n_jobs, backend) == [0, 1, 4, 9, 16]
    assert "5/5" in capfd.readouterr().err
    assert parallel.run(pow, jobs, n_jobs, backend, progress_bar=False) == [0, 1, 4, 9, 16]
    assert not capfd.readouterr().err


def test_without_its_package_ray_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pyrocell\[ray\]"):
        parallel.run(pow, [(1, 2)], backend="ray")


@pytest.mark.slow
def test_ray_shares_the_work_between_its_workers(cluster):
    def where(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    processes = parallel.run(where, [(0.5,)] * 4, n_jobs=2, backend="ray", progress_bar=False)
    assert len(set(processes)) == 2 and os.getpid() not in processes


@pytest.mark.slow
def test_fits_on_ray_give_what_fits_here_give(cluster, make_screen, build):
    model = build(make_screen())
    quantities = {"eta": lambda _, values: values["eta"]}
    settings = {"n_replicates": 2, "quantities": quantities, "n_draws": 9, "max_epochs": 2}
    settings["progress_bar"] = False
    here = simulation_based_calibration(model, **settings)
    there = simulation_based_calibration(model, n_jobs=2, backend="ray", **settings)
    pd.testing.assert_frame_equal(here, there)

"""Bars are those that scvi-tools' settings ask for."""

from __future__ import annotations

import pytest
import scvi

from pyrocell._core.progress import progress


@pytest.mark.parametrize(("style", "mark"), [("tqdm", "it/s"), ("rich", "100%")])
def test_progress_has_the_style_of_scvi_tools_settings(style, mark, capfd, monkeypatch):
    monkeypatch.setattr(scvi.settings, "progress_bar_style", style)
    assert list(progress(True)(range(3), desc="Question")) == [0, 1, 2]
    shown = "".join(capfd.readouterr())
    assert "Question" in shown and mark in shown
    assert list(progress(False)(range(3))) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")

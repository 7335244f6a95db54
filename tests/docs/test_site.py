"""The site that `make docs` built opens in a browser without a network; skipped where it is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = ["index", "start", "questions", "figures", "model", "report"]


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_of_the_site_opens_without_a_network(page, width, tmp_path):
    file = SITE / f"{page}.html"
    if not file.exists():
        pytest.skip("the site is not built here: make docs")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    options += [f"--window-size={width},1400", "--virtual-time-budget=20000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(BROWSER), *options, file.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.search(r"<h1>.+?</h1>|<h1>.+?<a", run.stdout, flags=re.DOTALL)
    # pages opened from a disk may not read others, which the theme's search tries
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    errors = [line for line in console if re.search("error|ERR_NAME", line, re.IGNORECASE)]
    assert not [line for line in errors if "file://" not in line and "CORS" not in line], errors

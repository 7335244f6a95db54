"""Render every block of README and docs that comes from results files or from the code.

python scripts/render_figures.py

Pictures are drawn by `draw_figures.py` alone, which fits models.
"""

from __future__ import annotations

import draw_figures
import render_api
import render_effects
import render_record
import render_screens


def main() -> None:
    """Render all pages."""
    for script in (render_effects, render_screens, render_api):
        script.main()
    page = draw_figures.PAGE
    page.write_text(draw_figures.rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    render_record.main()  # last: it looks into the other pages


if __name__ == "__main__":
    main()

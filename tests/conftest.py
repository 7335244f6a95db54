"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples in every run, whatever the machine's speed; `--hypothesis-profile=explore`
# searches further.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("repeatable")

"""How many examples a property is tried on: few with every run, as many as one likes before a release.

``ARBITER_TEST_EXAMPLES=1`` tries as many as the tests name, 10 ten times as many.
"""

from __future__ import annotations

import os

from hypothesis import settings

#: Share of the examples that tests name; the default keeps the pure core under five seconds.
SHARE = float(os.environ.get("ARBITER_TEST_EXAMPLES", "0.25"))
#: Fewer find nothing.
LEAST = 12


def examples(count: int) -> settings:
    """Settings of a property that deserves ``count`` examples: always the same ones, however long they take."""
    return settings(max_examples=max(LEAST, round(count * SHARE)), deadline=None, derandomize=True)

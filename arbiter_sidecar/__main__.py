"""``python -m arbiter_sidecar`` is ``arbiter-sidecar``."""

from __future__ import annotations

import sys

from arbiter_sidecar.cli import main

sys.exit(main())

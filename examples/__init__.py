"""Two workers that hold real memory and obey directives, and a demonstration in which they share one machine."""

from __future__ import annotations

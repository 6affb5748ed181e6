"""Language model engines for the LLM worker, behind one seam."""

from __future__ import annotations

"""The demonstration: two workers share a memory that is too small for both at full size."""

from __future__ import annotations

"""Metrics over real HTTP, read with the library's own parsers."""

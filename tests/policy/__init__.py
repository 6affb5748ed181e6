"""Checks of the pure policies against definitions restated here, never against the policies' own code."""

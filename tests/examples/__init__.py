"""Tests of the example workers and of the demonstration."""

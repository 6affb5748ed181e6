"""Tests of the core as a whole: commands with a time go in, effects come out."""

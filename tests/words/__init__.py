"""Tests of the words that every floor shares."""

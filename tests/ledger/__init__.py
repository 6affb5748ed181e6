"""Tests of the books, one by one."""

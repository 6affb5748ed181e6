"""The table of options and everything that can be wrong with it."""

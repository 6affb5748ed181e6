"""The least that the same stack can do: what our own figures are divided by."""

"""A real server and real workers, as separate processes."""

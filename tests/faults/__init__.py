"""Named faults, each against a real server and real workers."""

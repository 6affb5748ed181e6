"""The edge as a client meets it: a real server in this process on a Unix socket."""

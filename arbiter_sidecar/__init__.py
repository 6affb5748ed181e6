"""Lets several AI programs share one GPU machine: leases, pushed quality targets, verified reclaim."""

__version__ = "0.1.0"

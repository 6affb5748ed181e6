"""Tests of what touches the machine, against real processes and a driver that is compiled for them."""

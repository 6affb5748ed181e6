"""What drives the core, with a clock, probes and processes of the test's own."""

"""Configures, starts, watches and records runs: the command line `flare`."""

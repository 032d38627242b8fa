"""Configures, starts, watches and records runs; the command line sits on it."""

from flare_core.management._failure import SiteFailedError
from flare_core.management._plan_options import plan_of
from flare_core.management._play import simulate
from flare_core.management._run_folder import RunFolder

__all__ = ["RunFolder", "SiteFailedError", "plan_of", "simulate"]

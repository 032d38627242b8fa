"""A server for real sites: who they are, what they may do, which runs they play."""

from flare_core.management._deployment._folder import ServerFolder
from flare_core.management._deployment._service import Service
from flare_core.management._deployment._settings import ServerSettings

__all__ = ["ServerFolder", "ServerSettings", "Service"]

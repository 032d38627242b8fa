"""A server for real sites: who they are, what they may do, which runs they play."""

from flare_core.management._deployment._check import check_server
from flare_core.management._deployment._checked import Checked
from flare_core.management._deployment._folder import ServerFolder, write_secret
from flare_core.management._deployment._roles import MAY, ROLES
from flare_core.management._deployment._service import ADMIN, Service
from flare_core.management._deployment._settings import ServerSettings

__all__ = [
    "ADMIN",
    "MAY",
    "ROLES",
    "Checked",
    "ServerFolder",
    "ServerSettings",
    "Service",
    "check_server",
    "write_secret",
]

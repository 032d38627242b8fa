"""The keys that a site file names."""

from pathlib import Path

from flare_core._errors import ConfigurationError
from flare_core._site import Site
from flare_core.communication import KeyPair, Secured, is_key


def secured_as(site: Site) -> Secured | None:
    """Return the keys that a site speaks to its server with; None if it has none.

    Raises:
        ConfigurationError: If one of the two is missing, or is no key.
    """
    if not site.server_key and not site.key:
        return None
    if not is_key(site.server_key) or not site.key:
        msg = (
            f"site {site.name!r}: expected `server_key`, 40 characters, and `key`, the "
            f"name of a file, in its site file; got {site.server_key!r} and "
            f"{site.key!r}; `flare accept` writes both"
        )
        raise ConfigurationError(msg)
    return Secured(KeyPair.read(Path(site.key)), site.server_key.encode())

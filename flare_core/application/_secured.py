"""The keys that a site file names."""

import logging
import os
from pathlib import Path

from flare_core._errors import ConfigurationError
from flare_core._site import Site
from flare_core.communication import KeyPair, Secured, is_key, learnt

_log = logging.getLogger(__name__)
_NOW = "server_key"
_NEXT = "next_server_key"


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
    secured = Secured(own_keys(site), site.server_key.encode())
    return learnt(secured, site.next_server_key) or secured


def own_keys(site: Site) -> KeyPair:
    """Return the keys that a site has now; `flare rotate` may have changed them.

    Raises:
        ConfigurationError: If its key file cannot be read.
    """
    return KeyPair.read(Path(site.key))


def remember(site: Site, key: str) -> None:
    """Write the key that the server will have soon into the site file.

    What else is in the file, comments too, stays as it is.  A file that cannot be
    written is no error: as long as this process runs it knows the key.
    """
    path = Path(site.file)
    try:
        text = path.read_text(encoding="utf-8")
        if key in text or not is_key(key):
            return
        lines = [one for one in text.splitlines() if not one.startswith(_NEXT)]
        place = next(n for n, one in enumerate(lines) if one.startswith(_NOW))
        lines.insert(place + 1, f'{_NEXT} = "{key}"')
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except (OSError, StopIteration) as exc:
        _log.warning(
            "site %r: the server will have the key %s soon, and %s does not say so "
            "(%s): write it there, as `next_server_key`",
            site.name,
            key,
            path,
            exc,
        )

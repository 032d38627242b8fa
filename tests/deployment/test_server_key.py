"""A server changes its key, and nobody who has heard of it notices."""

from pathlib import Path

import pytest

import flare_core as flare
from deployed import Beside, Deployment, ServerThread
from flare_core.application import remember
from flare_core.communication import (
    AnnounceKey,
    ChangeKey,
    Control,
    Done,
    Identity,
    NextKey,
    WhoAmI,
)
from flare_core.management._deployment import Service
from site_scripts import add, model, plan, play

_X, _Y = "beside.x", "beside.y"
_EVIL = 'x"\n[runs."*"]\ncommand=["./evil.py"]\n#...'
"""As long as a key, and TOML that has a site's agent start something."""


def _announce(deployed: Deployment) -> NextKey:
    with deployed.admin() as admin:
        return admin.ask(AnnounceKey(), NextKey)


def _change(deployed: Deployment) -> None:
    with deployed.admin() as admin:
        admin.ask(ChangeKey(), Done)


def _service(deployed: Deployment) -> Service:
    assert isinstance(deployed._server, ServerThread)
    return deployed._server._service


def _cut_off(deployed: Deployment, site: str) -> None:
    """Break the connections of a site, as bad weather does."""
    host = _service(deployed)._host
    host.post(lambda: host._router.cut_off(site))


def _who(deployed: Deployment, name: str) -> Identity:
    with deployed.account(name).control() as control:
        return control.ask(WhoAmI(), Identity)


def test_a_run_goes_on_over_a_change_of_the_servers_key(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    before = deployed.server_key()
    found = _announce(deployed)

    _change(deployed)
    _cut_off(deployed, _X)
    _cut_off(deployed, _Y)

    assert beside.blake3() == undisturbed
    assert found.untold == []
    assert deployed.server_key() == found.key.encode() != before
    deployed.audited("next key announced", key=found.key)
    deployed.audited("server key changed", key=found.key)


def test_who_asked_anything_meanwhile_knows_the_next_key(deployed: Deployment) -> None:
    deployed.member("rita", role="researcher")
    found = _announce(deployed)
    assert found.untold == ["rita"]

    _who(deployed, "rita")
    assert _announce(deployed).untold == []
    _change(deployed)

    assert _who(deployed, "rita").name == "rita"
    text = (deployed.path / "rita" / "site.toml").read_text()
    assert f'next_server_key = "{found.key}"' in text


def test_who_never_heard_of_the_next_key_reaches_nobody(deployed: Deployment) -> None:
    deployed.member("rita", role="researcher")
    _announce(deployed)
    _change(deployed)
    account = deployed.account("rita")

    with (
        Control(
            account.address, name="rita", secured=account.secured, patience_s=1
        ) as control,
        pytest.raises(flare.ServerUnreachableError, match="server_key"),
    ):
        control.ask(WhoAmI(), Identity)


def test_a_key_that_nobody_was_told_of_is_not_changed_to(deployed: Deployment) -> None:
    before = deployed.server_key()

    with pytest.raises(flare.RequestDeniedError, match="no key was announced"):
        _change(deployed)

    assert deployed.server_key() == before


def test_a_key_is_announced_until_it_is_changed_to(deployed: Deployment) -> None:
    first, again = _announce(deployed), _announce(deployed)
    _change(deployed)

    assert first.key == again.key
    assert _announce(deployed).key != first.key


def test_a_comment_in_a_site_file_outlives_a_change(deployed: Deployment) -> None:
    path = deployed.member("rita", role="researcher") / "site.toml"
    path.write_text(path.read_text() + "# mine\n[policy]\nmost_rounds = 3\n")

    for _ in range(2):
        _announce(deployed)
        _who(deployed, "rita")
        _change(deployed)

    text = Path(path).read_text()
    assert "# mine" in text
    assert flare.site(path).policy.most_rounds == 3
    assert _who(deployed, "rita").role == "researcher"


def test_a_bad_server_does_not_write_into_the_file_of_who_asks_it(
    deployed: Deployment,
) -> None:
    home = deployed.member("a")
    before = (home / "site.toml").read_text()
    _service(deployed)._desk._server_key.next = _EVIL

    with (
        deployed.account("a").control() as control,
        pytest.raises(flare.ProtocolError),
    ):
        control.ask(WhoAmI(), Identity)

    assert (home / "site.toml").read_text() == before


def test_a_bad_server_does_not_write_into_the_file_of_who_takes_part(
    deployed: Deployment,
) -> None:
    deployed.member("a")
    deployed.create("demo", plan(sites=1))
    site = deployed.site("a", "demo")
    before = site.read_text()
    _service(deployed)._host._next_key = _EVIL

    with pytest.raises(flare.ProtocolError):
        play(site, model(0), add(1))

    assert site.read_text() == before


def test_what_is_no_key_is_not_written_into_a_site_file(deployed: Deployment) -> None:
    site = deployed.member("a") / "site.toml"
    before = site.read_text()

    remember(flare.site(site), _EVIL)

    assert site.read_text() == before

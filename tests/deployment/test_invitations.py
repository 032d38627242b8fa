"""An invitation enrols one member, once, in time."""

from pathlib import Path

import pytest

import flare_core as flare
from deployed import Beside, Deployment
from flare_core.communication import (
    Enrol,
    Identity,
    KeyPair,
    ListMembers,
    Member,
    WhoAmI,
)
from flare_core.management._account import account_of
from flare_core.management._enrolment import accept_invitation


def _enrol() -> Enrol:
    return Enrol(key=KeyPair.new().public.decode())


def _members(deployed: Deployment) -> list[str]:
    with deployed.admin() as admin:
        return [one.name for one in admin.ask(ListMembers(), list[Member])]


def test_an_invitation_that_was_used_enrols_nobody_else(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    invitation = deployed.invitation("a")
    accept_invitation(invitation, deployed.path / "a")

    with pytest.raises(flare.ConfigurationError, match="was used, withdrawn or has"):
        accept_invitation(invitation, deployed.path / "thief")

    deployed.audited("refused", what="used invitation of a")
    assert beside.blake3() == undisturbed


def test_an_invitation_that_has_expired_enrols_nobody(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    invitation = deployed.invitation("a", valid_s=1e-6)

    with pytest.raises(flare.ConfigurationError, match="it has expired"):
        accept_invitation(invitation, deployed.path / "a")

    deployed.audited("refused", what="expired invitation of a")
    assert "a" not in _members(deployed)
    assert beside.blake3() == undisturbed


def test_a_connection_that_has_enrolled_somebody_enrols_nobody_else(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    with deployed.invited(deployed.invitation("a")) as control:
        control.ask(_enrol(), Identity)

        with pytest.raises(flare.RequestDeniedError, match="'a' was used, or has exp"):
            control.ask(_enrol(), Identity)

    why = "the invitation of 'a' was used, or has expired"
    deployed.audited("refused", what="enrolment", why=why)
    assert beside.blake3() == undisturbed


def test_two_invitations_for_one_name_enrol_one_member(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    lost, other = deployed.invitation("a"), deployed.invitation("a", role="admin")
    accept_invitation(other, deployed.path / "a")

    with pytest.raises(flare.ConfigurationError, match="was used, withdrawn or has"):
        accept_invitation(lost, deployed.path / "finder")

    deployed.audited("refused", what="used invitation of a")
    assert beside.blake3() == undisturbed


def test_an_invitation_that_was_withdrawn_enrols_nobody(deployed: Deployment) -> None:
    invitation = deployed.invitation("a")
    deployed.revoke("a")

    with pytest.raises(flare.ConfigurationError, match="was used, withdrawn or has"):
        accept_invitation(invitation, deployed.path / "a")

    assert "a" not in _members(deployed)


@pytest.mark.parametrize("key", ["é" * 40, "\0" * 40, "#" * 40, "%" * 40])
def test_what_is_no_key_enrols_nobody(key: str, deployed: Deployment) -> None:
    with (
        deployed.invited(deployed.invitation("a")) as control,
        pytest.raises(flare.RequestDeniedError, match="expected a new public key"),
    ):
        control.ask(Enrol(key=key), Identity)

    deployed.audited("refused", what="enrolment")


def test_nobody_enrols_with_the_key_of_another_member(deployed: Deployment) -> None:
    deployed.member("a")
    theirs = deployed.account("a").secured.keys.public.decode()

    with (
        deployed.invited(deployed.invitation("eve")) as control,
        pytest.raises(flare.RequestDeniedError, match="or is known"),
    ):
        control.ask(Enrol(key=theirs), Identity)

    deployed.audited("refused", what="enrolment")


def test_an_enrolment_whose_answer_was_lost_is_gone_on_with(
    deployed: Deployment, tmp_path: Path
) -> None:
    invitation = deployed.invitation("a")
    home, _ = accept_invitation(invitation, tmp_path)
    home.unlink()  # as if it had been interrupted before that

    _, identity = accept_invitation(invitation, tmp_path)

    assert identity == Identity(name="a", role="site")
    with account_of(tmp_path).control() as control:
        assert control.ask(WhoAmI(), Identity) == identity

"""What a deployed site writes down of itself, before it does it."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from blake3 import blake3

import flare_core as flare
from deployed import Deployment
from flare_core.application import audit_lines, verify_audit
from site_scripts import Local, add, model, plan, play

_PATIENT = "Max Mustermann, born 1950-02-01"


def _events(folder: Path) -> list[dict[str, object]]:
    return [msgspec.json.decode(raw) for raw in audit_lines(folder)]


@pytest.fixture
def home(deployed: Deployment) -> Path:
    """The folder of a site that a run of one site and two rounds awaits."""
    deployed.create("one", plan(rounds=2, sites=1))
    return deployed.member("a")


def test_a_site_notes_what_it_did_and_signs_each_update(
    deployed: Deployment, home: Path
) -> None:
    play(deployed.site("a", "one"), model(1), add(1))

    events = _events(home)
    assert [event["event"] for event in events] == [
        "joined",
        *["update", "signed"] * 3,
        "ended",
    ]
    assert events[0]["plan"] == plan(rounds=2, sites=1).fingerprint
    updates = [event for event in events if event["event"] == "update"]
    assert [(one["round"], one["bytes"]) for one in updates] == [
        (-1, 4),
        (0, 4),
        (1, 4),
    ]
    assert {event["run"] for event in events} == {"one", ""}
    assert (events[-1]["reason"], events[-1]["failed"]) == ("", False)
    verdict = verify_audit(home)
    assert (verdict.problems, verdict.signatures) == ((), 3)


def test_the_audit_of_an_update_is_bound_to_the_manifest(
    deployed: Deployment, home: Path
) -> None:
    play(deployed.site("a", "one"), model(1), add(1))

    lines = (home / "manifest-a.jsonl").read_bytes().splitlines(keepends=True)
    updates = [one for one in _events(home) if one["event"] == "update"]
    hashes = [one["manifest"] for one in updates]
    assert hashes == [blake3(line).hexdigest() for line in lines]


def test_a_site_notes_what_its_policy_refused(deployed: Deployment, home: Path) -> None:
    file = deployed.site("a", "one", policy={"runs": ["tumour-*"]})

    with pytest.raises(flare.PolicyError) as caught:
        play(file, model(1), add(1))

    refused, ended = _events(home)
    assert (refused["event"], refused["rule"]) == ("policy", "policy.runs")
    assert refused["words"] == str(caught.value)
    assert (ended["event"], ended["failed"]) == ("ended", True)


def test_a_site_notes_what_the_server_refused(deployed: Deployment, home: Path) -> None:
    with pytest.raises(flare.UpdateError):
        play(deployed.site("a", "one"), model(1), add(np.nan))

    last = _events(home)[-1]
    assert (last["event"], last["failed"]) == ("ended", True)
    assert "tensor 'w'" in str(last["reason"])


def test_nothing_leaves_that_cannot_be_audited(
    deployed: Deployment, home: Path
) -> None:
    (home / "audit.jsonl").mkdir()

    with pytest.raises(flare.ConfigurationError, match="cannot be audited is not done"):
        play(deployed.site("a", "one"), model(1), add(1))

    assert not [line for line in deployed.audit() if line["event"] == "joined"]


def test_what_an_error_says_stays_at_the_site(deployed: Deployment, home: Path) -> None:
    def train(current: flare.ClientRound) -> Local:
        del current
        raise KeyError(_PATIENT)

    with pytest.raises(KeyError):
        play(deployed.site("a", "one"), model(1), train)

    assert deployed.audited("left", site="a")["why"] == "KeyError"
    assert _PATIENT.encode() not in (deployed.folder.path / "audit.jsonl").read_bytes()
    assert _PATIENT not in deployed.info("one").error
    assert _PATIENT in str(_events(home)[-1]["reason"])

"""A site whose policy does not allow something, beside a real server."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tomli_w
from blake3 import blake3

import flare_core as flare
from flare_core.application import (
    Published,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    audit_lines,
    verify_audit,
)
from flare_core.communication import Join, Refused
from site_scripts import WAIT_S, Stranger, Watch, add, hello, model, plan, play
from support import RunServer, SiteFile

SitePolicy = Callable[..., Path]


@pytest.fixture
def bounded(site_file: SiteFile) -> SitePolicy:
    """Write a site file with a policy, and perhaps a server's key."""

    def write(name: str, endpoint: str, server_key: str = "", **policy: object) -> Path:
        path = site_file(name, endpoint)
        table = {"server_key": server_key, "policy": policy}
        path.write_text(path.read_text() + tomli_w.dumps(table))
        return path

    return write


def _events(folder: Path) -> list[dict[str, object]]:
    return [msgspec.json.decode(raw) for raw in audit_lines(folder)]


@pytest.mark.parametrize(
    ("rule", "value", "secret"),
    [
        ("runs", ["tumour-*"], "tumour"),
        ("smallest_cohort", 17, "17"),
        ("privacy", "differential", "differential"),
        ("most_rounds", 1, "at most"),
        ("plans", ["a" * 64], "aaaa"),
        ("tensors", ["*", "!w"], "!w"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_the_site_joins(
    *,
    rule: str,
    value: object,
    secret: str,
    run_server: RunServer,
    site_file: SiteFile,
    bounded: SitePolicy,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    watch = Watch()
    server = run_server(plan(rounds=2), observer=watch)
    file = bounded("a", server.endpoint, **{rule: value})
    other = pool.submit(play, site_file("b", server.endpoint), model(1), add(1))
    watch.until(SiteJoined)

    with pytest.raises(flare.PolicyError) as caught:
        play(file, model(1), add(1))

    assert caught.value.violation.rule == f"policy.{rule}"
    assert caught.value.violation.file == str(file)
    assert secret in str(caught.value)
    result = server.result()
    told = f"the site's own policy does not allow it (policy.{rule})"
    assert result.error == f"site 'a' left before round 0: {told}"
    assert isinstance(other.exception(WAIT_S), flare.RunAbortedError)
    joined = [e.site for e in server.events if isinstance(e, SiteJoined)]
    assert "a" not in joined
    assert not [e for e in server.events if isinstance(e, Published)]
    assert not (tmp_path / "manifest-a.jsonl").exists()


def test_a_run_goes_on_without_a_site_whose_budget_is_used_up(
    run_server: RunServer,
    site_file: SiteFile,
    bounded: SitePolicy,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    server = run_server(plan(rounds=3, quorum=1))
    file = bounded("b", server.endpoint, most_bytes=7)  # an update has 4
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))

    with pytest.raises(flare.PolicyError, match="got 4 bytes that have left and 4"):
        play(file, model(1), add(3))

    assert a.result(WAIT_S)["w"].tolist() == [1 + 2 + 1 + 1]
    left = [(e.site, e.reason) for e in server.events if isinstance(e, SiteLeft)]
    told = "the site's own policy does not allow it (policy.most_bytes)"
    assert left[0] == ("b", told)
    assert len((tmp_path / "manifest-b.jsonl").read_bytes().splitlines()) == 1


def test_a_policy_that_allows_all_of_it_changes_nothing(
    run_server: RunServer, bounded: SitePolicy, pool: ThreadPoolExecutor
) -> None:
    played = plan(rounds=2)
    server = run_server(played)
    file = bounded(
        "a",
        server.endpoint,
        tensors=["w"],
        smallest_cohort=2,
        most_rounds=2,
        most_bytes=12,  # with the weights that the run starts from
        plans=[played.fingerprint],
    )
    a = pool.submit(play, file, model(1), add(1))
    b = pool.submit(play, bounded("b", server.endpoint), model(9), add(1))

    assert a.result(WAIT_S)["w"].tolist() == b.result(WAIT_S)["w"].tolist() == [3]


KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def test_a_deployed_site_notes_what_it_did_and_signs_each_update(
    run_server: RunServer, bounded: SitePolicy, tmp_path: Path
) -> None:
    played = plan(rounds=2, sites=1)
    server = run_server(played)

    play(bounded("a", server.endpoint, server_key=KEY), model(1), add(1))

    events = _events(tmp_path)
    assert [event["event"] for event in events] == [
        "joined",
        *["update", "signed"] * 3,
        "ended",
    ]
    assert events[0]["plan"] == played.fingerprint
    updates = [event for event in events if event["event"] == "update"]
    assert [(one["round"], one["bytes"]) for one in updates] == [
        (-1, 4),
        (0, 4),
        (1, 4),
    ]
    assert {event["run"] for event in events} == {server.server.name, ""}
    assert (events[-1]["reason"], events[-1]["failed"]) == ("", False)
    verdict = verify_audit(tmp_path)
    assert (verdict.problems, verdict.signatures) == ((), 3)


def test_the_audit_of_an_update_is_bound_to_the_manifest(
    run_server: RunServer, bounded: SitePolicy, tmp_path: Path
) -> None:
    server = run_server(plan(sites=1))

    play(bounded("a", server.endpoint, server_key=KEY), model(1), add(1))

    lines = (tmp_path / "manifest-a.jsonl").read_bytes().splitlines(keepends=True)
    updates = [one for one in _events(tmp_path) if one["event"] == "update"]
    hashes = [one["manifest"] for one in updates]
    assert hashes == [blake3(line).hexdigest() for line in lines]


def test_a_deployed_site_notes_what_its_policy_refused(
    run_server: RunServer, bounded: SitePolicy, tmp_path: Path
) -> None:
    server = run_server(plan(sites=1))
    file = bounded("a", server.endpoint, server_key=KEY, runs=["tumour-*"])

    with pytest.raises(flare.PolicyError) as caught:
        play(file, model(1), add(1))

    refused, ended = _events(tmp_path)
    assert (refused["event"], refused["rule"]) == ("policy", "policy.runs")
    assert refused["words"] == str(caught.value)
    assert (ended["event"], ended["failed"]) == ("ended", True)


def test_a_deployed_site_notes_what_the_server_refused(
    run_server: RunServer, bounded: SitePolicy, tmp_path: Path
) -> None:
    server = run_server(plan(sites=1))
    file = bounded("a", server.endpoint, server_key=KEY)

    with pytest.raises(flare.UpdateError):
        play(file, model(1), add(np.nan))

    last = _events(tmp_path)[-1]
    assert (last["event"], last["failed"]) == ("ended", True)
    assert "tensor 'w'" in str(last["reason"])


def test_nothing_leaves_that_cannot_be_audited(
    run_server: RunServer, bounded: SitePolicy, tmp_path: Path
) -> None:
    server = run_server(plan(sites=1))
    (tmp_path / "audit.jsonl").mkdir()

    with pytest.raises(flare.ConfigurationError, match="cannot be audited is not done"):
        play(bounded("a", server.endpoint, server_key=KEY), model(1), add(1))

    assert not [e for e in server.events if isinstance(e, SiteJoined)]
    assert "is not done" in server.result().error


def test_a_simulated_site_keeps_no_audit_log(
    run_server: RunServer, bounded: SitePolicy, tmp_path: Path
) -> None:
    server = run_server(plan(sites=1))

    play(bounded("a", server.endpoint), model(1), add(1))

    assert not list(tmp_path.glob("audit.*"))


def test_a_site_that_understood_another_plan_is_refused_by_name(
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    played, other = plan(rounds=2), plan(rounds=3)
    server = run_server(played)
    b = pool.submit(play, site_file("b", server.endpoint), model(1), add(1))
    with closing(Stranger(server.endpoint)) as a:
        a.say(hello("a"))
        a.hear()
        a.say(Join(layout=flare.ModelState(model(1)).layout, plan=other.fingerprint))
        answer = a.hear()

    assert isinstance(answer, Refused)
    refusal = answer.refusal
    assert (refusal.reason, refusal.site) == ("plan", "a")
    assert played.fingerprint in refusal.expected
    assert refusal.got == other.fingerprint
    assert isinstance(b.exception(WAIT_S), flare.RunAbortedError)
    refused = [e.refusal for e in server.events if isinstance(e, SiteRefused)]
    assert refused == [refusal]

"""A site whose policy does not allow something, beside a real server."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import tomli_w

import flare_core as flare
from flare_core.application import (
    Published,
    SiteJoined,
    SiteLeft,
    SiteRefused,
)
from flare_core.communication import Join, Refused
from site_scripts import WAIT_S, Stranger, Watch, add, hello, model, plan, play
from support import RunServer, SiteFile

SitePolicy = Callable[..., Path]


@pytest.fixture
def bounded(site_file: SiteFile) -> SitePolicy:
    """Write a site file with a policy."""

    def write(name: str, endpoint: str, **policy: object) -> Path:
        path = site_file(name, endpoint)
        path.write_text(path.read_text() + tomli_w.dumps({"policy": policy}))
        return path

    return write


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
    joined = [e.site for e in server.told(SiteJoined)]
    assert "a" not in joined
    assert not server.told(Published)
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
    left = [(e.site, e.reason) for e in server.told(SiteLeft)]
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
    refused = [e.refusal for e in server.told(SiteRefused)]
    assert refused == [refusal]

"""Several runs on one server, each by itself, and what becomes of them at a restart."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

import flare_core as flare
from deployed import Beside, Deployment, deployment
from flare_core.communication import CreateRun, Done, ListRuns, RunInfo
from flare_core.management._deployment import Service
from site_scripts import WAIT_S, add, model, plan, play


def test_one_site_plays_two_runs_at_once(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.member("a")
    deployed.member("b")
    for run in ("one", "two"):
        deployed.create(run, plan(rounds=2))

    sites = [
        pool.submit(play, deployed.site(name, run), model(0), add(step))
        for run, step in (("one", 1), ("two", 10))
        for name in ("a", "b")
    ]

    assert [site.result(WAIT_S)["w"].tolist() for site in sites] == [
        [2],
        [2],
        [20],
        [20],
    ]
    assert deployed.ended("one").state == deployed.ended("two").state == "finished"


def test_a_server_may_listen_at_an_ipv6_address(pool: ThreadPoolExecutor) -> None:
    with deployment(listen="tcp://[::1]:0") as deployed:
        deployed.member("a")
        deployed.create("one", plan(sites=1))

        site = pool.submit(play, deployed.site("a", "one"), model(0), add(1))

        assert site.result(WAIT_S)["w"].tolist() == [1]
        assert deployed.endpoint.startswith("tcp://[::1]:")


def test_a_run_that_ends_leaves_the_others_alone(
    deployed: Deployment,
    beside: Beside,
    pool: ThreadPoolExecutor,
    undisturbed: str,
) -> None:
    deployed.member("a")
    deployed.create("other", plan(rounds=2))
    joining = pool.submit(play, deployed.site("a", "other"), model(0), add(1))
    deployed.audited("joined", run="other")

    deployed.end("other")

    with pytest.raises(flare.RunAbortedError, match="stopped by admin: enough"):
        joining.result(WAIT_S)
    assert deployed.ended("other").state == "stopped"
    assert beside.blake3() == undisturbed


def test_a_run_whose_folder_is_lost_waits_again_and_the_others_go_on(
    deployed: Deployment,
    beside: Beside,
    pool: ThreadPoolExecutor,
    undisturbed: str,
) -> None:
    deployed.member("a")
    deployed.create("other", plan(sites=1))
    spool = deployed.folder.runs / "other" / "spool"
    shutil.rmtree(spool)  # as a careless hand does, on a running server

    site = deployed.site("a", "other")
    with pytest.raises(flare.RunAbortedError, match="the run's folder was lost"):
        pool.submit(play, site, model(0), add(1)).result(WAIT_S)

    assert pool.submit(play, site, model(0), add(1)).result(WAIT_S)["w"].tolist() == [1]
    assert deployed.ended("other").state == "finished"
    assert beside.blake3() == undisturbed


def test_a_site_that_two_runs_await_is_asked_which(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.member("a")
    deployed.create("one", plan())
    deployed.create("two", plan())

    with pytest.raises(flare.RunAbortedError, match="await site 'a': one, two"):
        pool.submit(play, deployed.site("a", ""), model(0), add(1)).result(WAIT_S)


def test_a_site_that_no_run_awaits_is_told_so(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.member("a")

    with pytest.raises(flare.RunAbortedError, match="no run awaits site 'a'"):
        pool.submit(play, deployed.site("a", ""), model(0), add(1)).result(WAIT_S)


def test_a_name_is_for_ever(deployed: Deployment) -> None:
    deployed.create("one", plan())
    deployed.create("one", plan())  # asked twice, as after a break
    deployed.end("one")

    with pytest.raises(flare.RequestDeniedError, match="a name is for ever"):
        deployed.create("one", plan(rounds=7))
    with pytest.raises(flare.RequestDeniedError, match="is called 'one' already"):
        deployed.create("ONE", plan())


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("strategy.name=magic", "is called 'magic'; installed: "),
        (
            "strategy={name='fedadam', settings={tau=0}}",
            r"'fedadam': .*> 0.0 - at `strategy.settings.tau`; its settings are learn",
        ),
        ("aggregation.name=median", "'median' needs at least 3 updates in each round"),
    ],
)
def test_a_plan_that_cannot_be_played_makes_no_run(
    setting: str, complaint: str, deployed: Deployment
) -> None:
    strange = flare.Plan(rounds=1).with_setting(setting)

    with pytest.raises(flare.RequestDeniedError, match=complaint):
        deployed.create("one", strange)

    with deployed.admin() as admin:
        assert admin.ask(ListRuns(), list[RunInfo]) == []
    deployed.create("one", plan())  # the name was not used up


def test_a_run_that_waited_waits_again_after_a_restart(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.member("a")
    deployed.create("one", plan(sites=1))

    deployed.stop()
    deployed.start()
    final = pool.submit(play, deployed.site("a", "one"), model(0), add(1)).result(
        WAIT_S
    )

    assert final["w"].tolist() == [1]
    assert deployed.ended("one").state == "finished"


def test_what_a_crash_left_is_not_in_the_way_of_a_restart(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.member("a")
    deployed.create("one", plan(sites=1))
    spool = deployed.folder.runs / "one" / "spool"

    deployed.stop()
    (spool / "one" / "models" / "model.unfinished").write_bytes(b"half of it")
    (spool / "one" / "updates" / "a.safetensors").write_bytes(b"nobody knows it")
    deployed.start()
    site = pool.submit(play, deployed.site("a", "one"), model(0), add(1))

    assert site.result(WAIT_S)["w"].tolist() == [1]
    deployed.stop()  # which ends with what is left of the run
    assert not spool.exists()
    deployed.start()


def test_a_run_that_is_played_goes_on_after_a_restart(
    deployed: Deployment, beside: Beside, undisturbed: str
) -> None:
    deployed.stop()
    deployed.start()

    assert deployed.info("beside").state == "playing"
    assert beside.blake3() == undisturbed


def test_a_folder_has_one_server(deployed: Deployment) -> None:
    with pytest.raises(flare.ConfigurationError, match="another server"):
        Service(deployed.folder)


def test_a_run_is_made_by_somebody_who_may(deployed: Deployment) -> None:
    deployed.member("olga", role="observer")

    with (
        deployed.account("olga").control() as control,
        pytest.raises(flare.RequestDeniedError, match="may not create and stop runs"),
    ):
        control.ask(CreateRun(name="one", plan=plan()), Done)

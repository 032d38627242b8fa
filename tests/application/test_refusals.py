import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pytest

import flare_core as flare
from flare_core.application import Published, SiteJoined, SiteRefused, Updated
from flare_core.communication import (
    PROTOCOL,
    Aborted,
    Hello,
    Leave,
    Ping,
    Pong,
    Refused,
    Start,
    Welcome,
    pack,
)
from site_scripts import (
    WAIT_S,
    Local,
    Stranger,
    Train,
    Watch,
    add,
    hello,
    model,
    plan,
    play,
    stream_id,
)
from support import RunServer, SiteFile

_MODEL: Mapping[str, npt.ArrayLike] = {
    "fc.weight": np.zeros((2, 3), np.float32),
    "fc.bias": np.zeros(2, np.float32),
}


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            {**_MODEL, "fc.weight": np.zeros((2, 4), np.float32)},
            "tensor 'fc.weight': expected F32 (2, 3) as at site 'a', got F32 (2, 4)",
        ),
        (
            {**_MODEL, "fc.bias": np.zeros(2, np.float16)},
            "tensor 'fc.bias': expected F32 (2,) as at site 'a', got F16 (2,)",
        ),
        (
            {"fc.weight": _MODEL["fc.weight"]},
            "tensor 'fc.bias': expected F32 (2,) as at site 'a', got no such tensor",
        ),
        (
            {**_MODEL, "head": np.zeros((), np.float32)},
            "tensor 'head': expected no such tensor as at site 'a', got F32 ()",
        ),
    ],
    ids=["shape", "dtype", "key missing", "one key more"],
)
def test_a_model_that_differs_ends_the_run_and_is_named_at_both_sites(
    other: Mapping[str, npt.ArrayLike],
    sentence: str,
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(plan())
    a = pool.submit(play, site_file("a", server.endpoint), _MODEL, add(1))
    b = pool.submit(play, site_file("b", server.endpoint), other, add(1))

    at_b, at_a = b.exception(WAIT_S), a.exception(WAIT_S)

    assert isinstance(at_b, flare.LayoutError)
    assert f"site 'b': {sentence}" in str(at_b)
    assert isinstance(at_a, flare.RunAbortedError)
    assert f"site 'b': {sentence}" in str(at_a)
    result = server.result()
    assert result.failed_site == "b"
    assert sentence in result.error
    assert not server.told(Published)


def _propose(path: str, proposal: flare.Proposal) -> None:
    flare.connect(flare.site(path)).join(proposal)


@pytest.mark.parametrize(
    ("reference", "other", "error", "sentence"),
    [
        (
            {"base": "0" * 64},
            {"base": "1" * 64},
            flare.BaseModelError,
            (
                "frozen base model: expected fingerprint 000000000000 as at site 'a', "
                "got fingerprint 111111111111"
            ),
        ),
        (
            {"schedule": flare.Schedule(every_n_steps=5)},
            {"schedule": flare.Schedule(every_n_epochs=1)},
            flare.ScheduleError,
            (
                "schedule: expected every_n_steps = 5 as at site 'a', "
                "got every_n_epochs = 1"
            ),
        ),
        (
            {"schedule": flare.Schedule(every_n_steps=5)},
            {},
            flare.ScheduleError,
            "got rounds of the script's own",
        ),
    ],
    ids=["base", "schedule", "no schedule"],
)
def test_another_base_or_schedule_is_named_at_both_sites(
    *,
    reference: dict[str, object],
    other: dict[str, object],
    error: type[flare.RefusedError],
    sentence: str,
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(plan())
    weights = flare.ModelState(model(1))
    fits, differs = (
        flare.Proposal(weights=weights, **brought)  # type: ignore[arg-type]  # by name
        for brought in (reference, other)
    )
    a = pool.submit(_propose, str(site_file("a", server.endpoint)), fits)
    b = pool.submit(_propose, str(site_file("b", server.endpoint)), differs)

    at_b, at_a = b.exception(WAIT_S), a.exception(WAIT_S)

    assert type(at_b) is error
    assert sentence in str(at_b)
    assert isinstance(at_a, flare.RunAbortedError)
    assert sentence in str(at_a)


def _diverge(current: flare.ClientRound) -> Local:
    weights = current.weights["w"].copy()
    weights[1] = np.nan
    return {"w": weights}, 5


def _without_examples(current: flare.ClientRound) -> Local:
    return current.weights, 0


def _grow(_: flare.ClientRound) -> Local:
    return {"w": np.zeros(3, np.float32)}, 1


def _reshape(current: flare.ClientRound) -> Local:
    return {"w": current.weights["w"].reshape(1, 2)}, 1


def _rename(current: flare.ClientRound) -> Local:
    return {"v": current.weights["w"]}, 1


def _count(current: flare.ClientRound) -> Local:
    return {"w": current.weights["w"].astype(np.int32)}, 1


def _widen(current: flare.ClientRound) -> Local:
    return {"w": current.weights["w"].astype(np.float64)}, 1


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (_diverge, "tensor 'w': expected finite values, got NaN or infinity"),
        (_without_examples, "num_examples: expected at least 1, got 0"),
        (_grow, "tensor 'w': expected F32 (2,), got F32 (3,)"),
        (_reshape, "tensor 'w': expected F32 (2,), got F32 (1, 2)"),
        (_rename, "tensor 'v': expected no such tensor, got F32 (2,)"),
        (_count, "tensor 'w': expected F32 (2,), got I32 (2,)"),
        (_widen, "tensor 'w': expected F32 (2,), got F64 (2,)"),
    ],
    ids=["nan", "examples", "size", "shape", "name", "dtype", "wider dtype"],
)
def test_an_update_that_cannot_be_averaged_ends_a_run_that_needs_it(
    train: Train,
    sentence: str,
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(plan(rounds=2))
    a = pool.submit(play, site_file("a", server.endpoint), model(1, 1), add(1))
    b = pool.submit(play, site_file("b", server.endpoint), model(1, 1), train)

    at_b, at_a = b.exception(WAIT_S), a.exception(WAIT_S)

    assert type(at_b) is flare.UpdateError
    assert f"site 'b': {sentence}" in str(at_b)
    assert isinstance(at_a, flare.RunAbortedError)
    assert f"round 0: site 'b': {sentence}" in str(at_a)
    assert "set selection.quorum" in str(at_a)
    published = [e.round_number for e in server.told(Published)]
    assert published == [0]
    assert server.result().failed_site == "b"


def test_a_run_with_a_quorum_goes_on_without_a_diverged_site(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2, quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(1, 1), add(1))
    b = pool.submit(play, site_file("b", server.endpoint), model(1, 1), _diverge)

    assert isinstance(b.exception(WAIT_S), flare.UpdateError)
    assert a.result(WAIT_S)["w"].tolist() == [3, 3]  # as if there had been no b

    assert server.result().error == ""
    assert [e.site for e in server.told(Updated)] == ["a", "a"]
    refused = [e.refusal.site for e in server.told(SiteRefused)]
    assert refused == ["b"]


def test_initial_weights_that_are_not_finite_are_refused(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan())
    a = pool.submit(play, site_file("a", server.endpoint), model(np.nan), add(1))
    b = pool.submit(play, site_file("b", server.endpoint), model(1), add(1))

    assert isinstance(a.exception(WAIT_S), flare.UpdateError)
    assert isinstance(b.exception(WAIT_S), flare.RunAbortedError)
    assert "site 'a': tensor 'w': expected finite values" in str(b.exception())


def test_a_second_site_of_the_same_name_is_turned_away(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan())
    path = site_file("a", server.endpoint)
    twins = [pool.submit(play, path, model(1), add(1)) for _ in range(2)]
    done, still_there = wait(twins, WAIT_S, FIRST_COMPLETED)
    pool.submit(play, site_file("b", server.endpoint), model(1), add(1))

    (turned_away,), (other,) = done, still_there

    assert isinstance(turned_away.exception(), flare.RunAbortedError)
    assert "same name" in str(turned_away.exception()) or (
        "names must be unique" in str(turned_away.exception())
    )
    assert other.result(WAIT_S)["w"].tolist() == [2]


def test_a_name_that_is_taken_is_refused(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    watch = Watch()
    server = run_server(plan(), observer=watch)
    path = site_file("a", server.endpoint)
    pool.submit(play, path, model(1), add(1))
    watch.until(SiteJoined)

    with pytest.raises(flare.RunAbortedError, match="'a' is connected; names must be"):
        flare.join(model(1), site=path)


@pytest.mark.parametrize("ends", ["answers", "hangs up", "is silent"])
def test_of_two_processes_of_one_name_the_one_that_is_there_has_it(
    ends: str, run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    server = run_server(plan(quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    with closing(Stranger(server.endpoint)) as first:
        first.join("b", flare.ModelState(model(0)).layout)
        assert isinstance(first.hear(), Start)

        second = pool.submit(play, site_file("b", server.endpoint), model(0), add(3))

        assert isinstance(first.hear(), Ping)  # is it there?
        if ends == "answers":
            first.say(Pong())
            error = second.exception(WAIT_S)
            assert isinstance(error, flare.RunAbortedError)
            assert "a site called 'b' is connected; names must be unique" in str(error)
            first.say(Leave(metrics={}, reason="enough", failed=True))
            assert a.result(WAIT_S)["w"].tolist() == [1]
            return
        if ends == "hangs up":
            first.close()
        assert second.result(WAIT_S)["w"].tolist() == [2]
        assert a.result(WAIT_S)["w"].tolist() == [2]


def test_one_site_too_many_is_turned_away(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))

    def train(current: flare.ClientRound) -> Local:
        with pytest.raises(
            flare.RunAbortedError, match="started with a and takes no site 'c'"
        ):
            flare.join(model(1), site=site_file("c", server.endpoint))
        return current.weights, 1

    pool.submit(play, site_file("a", server.endpoint), model(1), train).result(WAIT_S)


def test_one_site_too_many_is_turned_away_even_if_it_said_hello_first(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))
    early = Stranger(server.endpoint)
    early.say(hello("Z"))  # before "a" by name, too
    early.hear()

    def train(current: flare.ClientRound) -> Local:
        early.propose(flare.ModelState(model(1)).layout)
        answer = early.hear()
        assert isinstance(answer, Aborted)
        assert "takes no site 'Z'" in answer.reason
        return add(1)(current)

    a = pool.submit(play, site_file("a", server.endpoint), model(1), train)

    assert a.result(WAIT_S)["w"].tolist() == [2]
    joined = [e.site for e in server.told(SiteJoined)]
    assert joined == ["a"]
    early.close()


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
def test_another_version_of_the_protocol_is_named(
    protocol: int, run_server: RunServer
) -> None:
    server = run_server(plan())
    site = Stranger(server.endpoint)

    site.say(Hello(site="old", session=bytes(16), protocol=protocol))

    answer = site.hear()
    assert isinstance(answer, Aborted)
    assert f"'old' speaks protocol {protocol}, this server {PROTOCOL}" in answer.reason
    site.close()


def test_a_strategy_that_is_not_installed_is_named_before_anyone_joins() -> None:
    settings = flare.Plan(rounds=1, strategy=flare.StrategySettings(name="fedsgd"))

    with pytest.raises(
        flare.ConfigurationError, match=r"'fedsgd'; installed: .*fedavg"
    ):
        flare.Server(settings)


def test_a_refusal_that_was_lost_with_the_connection_is_said_again(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(rounds=2, quorum=1))
    session, heard = stream_id(), threading.Event()

    def wait_in_the_last_round(current: flare.ClientRound) -> Local:
        assert current.number == 0 or heard.wait(WAIT_S)
        return add(1)(current)

    site = site_file("a", server.endpoint)
    a = pool.submit(play, site, model(1), wait_in_the_last_round)
    with closing(Stranger(server.endpoint)) as b:
        b.say(hello("b", session=session))
        b.hear()
        b.propose(flare.ModelState(model(1)).layout)
        assert isinstance(b.hear(), Start)
        b.hand_in(pack(flare.ModelState(model(np.nan))))

    with closing(Stranger(server.endpoint)) as again:
        again.say(hello("b", session=session))
        assert isinstance(again.hear(), Welcome)
        answer = again.hear()
    heard.set()

    assert isinstance(answer, Refused)
    assert a.result(WAIT_S)["w"].tolist() == [3]

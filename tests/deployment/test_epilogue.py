"""Sites that come when their run is over: they get its final model all the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

import flare_core as flare
from deployed import Deployment
from flare_core.communication import (
    Bye,
    Commit,
    Hello,
    Leave,
    Offer,
    Ping,
    Pong,
    Start,
    Want,
    Welcome,
)
from site_scripts import Local, add, model, plan, play, stream_id

_SHORT = model(1.0, 2.0)
_LONG: dict[str, npt.ArrayLike] = {"w": np.arange(500_000, dtype=np.float32)}


def _play(deployed: Deployment, weights: dict[str, npt.ArrayLike]) -> flare.ModelState:
    """Play a run of a and b to its end; return its final model."""
    for site in "ab":
        deployed.member(site)
    deployed.create("demo", plan(rounds=2))
    with ThreadPoolExecutor() as pool:
        both = [
            pool.submit(play, deployed.site(site, "demo"), weights, add(1.0))
            for site in "ab"
        ]
        final, _ = [one.result() for one in both]
    deployed.ended("demo")
    return final


@pytest.mark.parametrize("weights", [_SHORT, _LONG], ids=["short", "long"])
def test_a_site_that_is_started_again_gets_the_final_model(
    weights: dict[str, npt.ArrayLike], deployed: Deployment
) -> None:
    final = _play(deployed, weights)
    again = play(deployed.site("a", "demo"), weights, add(7.0))
    np.testing.assert_array_equal(again["w"], final["w"])
    np.testing.assert_array_equal(final["w"], np.asarray(weights["w"]) + 2)


def test_so_it_does_when_the_server_was_started_again(deployed: Deployment) -> None:
    final = _play(deployed, _SHORT)
    deployed.stop()
    deployed.start()
    again = play(deployed.site("b", "demo"), _SHORT, add(7.0))
    np.testing.assert_array_equal(again["w"], final["w"])


def test_that_it_came_is_in_the_audit(deployed: Deployment) -> None:
    _play(deployed, _SHORT)
    play(deployed.site("a", "demo"), _SHORT, add(1.0))
    deployed.audited("downloaded", run="demo", site="a", user="a")


def test_who_was_in_no_round_is_told_that_the_run_is_over(deployed: Deployment) -> None:
    _play(deployed, _SHORT)
    deployed.member("c")
    with pytest.raises(flare.RunAbortedError, match=r"'c' takes part .* that is over"):
        play(deployed.site("c", "demo"), _SHORT, add(1.0))


def test_the_run_has_to_have_gone_well(deployed: Deployment) -> None:
    deployed.member("a")
    deployed.create("demo", plan(sites=1, rounds=2))

    def end(current: flare.ClientRound) -> Local:
        deployed.end("demo")
        return current.weights, 1

    with pytest.raises(flare.RunAbortedError, match="stopped by"):
        play(deployed.site("a", "demo"), _SHORT, end)
    with pytest.raises(flare.RunAbortedError, match="that is over"):
        play(deployed.site("a", "demo"), _SHORT, add(1.0))


def test_a_final_model_that_is_gone_is_missed_by_name(deployed: Deployment) -> None:
    _play(deployed, _SHORT)
    file = deployed.folder.runs / "demo" / "global.safetensors"
    file.unlink()
    with pytest.raises(flare.RunAbortedError, match=r"global\.safetensors: No such"):
        play(deployed.site("a", "demo"), _SHORT, add(1.0))


def test_who_was_cut_off_while_it_waited_is_answered_where_it_was(
    deployed: Deployment,
) -> None:
    """Its connection is a new one, and says hello and what is open once more."""
    _play(deployed, _LONG)
    late = deployed.peer("a")
    late.say(Hello(site="a", session=stream_id(), run="demo", connection=2))
    assert isinstance(late.hear(), Welcome)
    late.say(Offer(stream=stream_id(), num_bytes=2_000_100, round_number=1))
    start = late.hear()
    assert isinstance(start, Start)
    assert (start.round_number, start.final) == (2, True)
    late.say(Commit(stream=stream_id(), digest=bytes(16)))  # was on its way
    late.say(Want(stream=stream_id(), start=0, stop=10))  # an earlier model
    assert late.hear() == start
    late.say(Ping())
    assert isinstance(late.hear(), Pong)
    late.say(Leave(metrics={}))
    assert isinstance(late.hear(), Bye)
    late.close()

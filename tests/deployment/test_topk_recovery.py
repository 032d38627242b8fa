"""Error feedback goes on where it was, whenever a site was killed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

import flare_core as flare
from deployed import Deployment
from flare_core.application._zmq_link import ZmqLink
from site_scripts import WAIT_S, Local, model, plan, play, wander

_INITIAL = model(*range(10_000))
_TOPK = flare.Encoding(up="topk")
_PROPOSAL = flare.Proposal(weights=flare.ModelState(_INITIAL))


def _trained(current: flare.GlobalModel) -> flare.Update:
    rng = np.random.default_rng(current.round_number)
    step = rng.standard_normal(10_000, np.float32)
    return flare.Update(
        site="a",
        round_number=current.round_number,
        weights=flare.ModelState({"w": current.weights["w"] + step}),
        num_examples=1,
    )


def _final(
    deployed: Deployment, pool: ThreadPoolExecutor, run: str, *, dies: bool
) -> str:
    """Play a run, and return the hash of its final model."""
    deployed.create(run, msgspec.structs.replace(plan(rounds=2), encoding=_TOPK))
    may_go, in_round_1 = threading.Event(), threading.Event()

    def train(current: flare.ClientRound) -> Local:
        if current.number == 1:
            in_round_1.set()
        assert may_go.wait(WAIT_S)
        return wander("b")(current)

    b = pool.submit(play, deployed.site("b", run), _INITIAL, train)
    site = flare.site(deployed.site("a", run))
    link = ZmqLink(site)
    first = _trained(link.join(_PROPOSAL))
    if dies:
        exchanging = pool.submit(link.exchange, first)
        deployed.said(run, "a round 0: ")
        link.close()
        assert isinstance(exchanging.exception(WAIT_S), flare.RunAbortedError)
        may_go.set()
        assert in_round_1.wait(WAIT_S)
        link = ZmqLink(site)
        second = _trained(link.resume(_PROPOSAL, first))
    else:
        may_go.set()
        second = _trained(link.exchange(first))
    assert second.round_number == 1
    assert link.exchange(second).final
    link.leave({})
    b.result(WAIT_S)
    return deployed.ended(run).blake3


def test_a_site_that_dies_before_it_knows_that_its_update_is_in_goes_on_as_if_it_had(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "ab":
        deployed.member(name)

    undisturbed = _final(deployed, pool, "undisturbed", dies=False)

    assert _final(deployed, pool, "disturbed", dies=True) == undisturbed


def test_runs_that_a_site_plays_at_once_do_not_share_what_was_not_sent(
    deployed: Deployment,
) -> None:
    home = deployed.member("a")
    topk = msgspec.structs.replace(plan(rounds=3, sites=1), encoding=_TOPK)
    for run in ("one", "two", "alone"):
        deployed.create(run, topk)

    for runs in (("one", "two"), ("alone",)):
        links = [ZmqLink(flare.site(deployed.site("a", run))) for run in runs]
        models = [link.join(_PROPOSAL) for link in links]
        while not models[0].final:
            trained = [_trained(current) for current in models]
            models = [
                link.exchange(update)
                for link, update in zip(links, trained, strict=True)
            ]
        for link in links:
            link.leave({})

    hashes = {deployed.ended(run).blake3 for run in ("one", "two", "alone")}
    assert len(hashes) == 1
    assert not list(home.glob("*residual*"))

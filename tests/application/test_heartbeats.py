from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np

import flare_core as flare
from flare_core.application import SiteLeft, Updated
from site_scripts import WAIT_S, Local, Stranger, Watch, add, hello, model, plan, play
from support import RunServer, SiteFile

_PATIENCE_S = 2.0


def test_a_site_that_says_nothing_any_more_is_given_up_and_the_run_goes_on(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    watch = Watch()
    server = run_server(plan(quorum=1), observer=watch, patience_s=_PATIENCE_S)
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))

    with closing(Stranger(server.endpoint)) as silent:
        silent.say(hello("b"))
        silent.hear()
        silent.propose(flare.ModelState(model(0)).layout)

        left = watch.until(SiteLeft)

    assert (left.site, left.reason) == ("b", "nothing was heard of it for 2 s")
    assert a.result(WAIT_S)["w"].tolist() == [2]
    assert server.result().error == ""


def test_a_site_that_trains_longer_than_the_patience_answers_for_itself(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    watch = Watch()
    server = run_server(plan(quorum=1), observer=watch, patience_s=_PATIENCE_S)

    def until_the_silent_one_is_lost(current: flare.ClientRound) -> Local:
        assert watch.until(SiteLeft).site == "b"
        return add(1)(current)

    with closing(Stranger(server.endpoint)) as silent:
        silent.say(hello("b"))
        silent.hear()
        silent.propose(flare.ModelState(model(0)).layout)
        trains = site_file("a", server.endpoint)
        a = pool.submit(play, trains, model(1), until_the_silent_one_is_lost)

        assert a.result(WAIT_S)["w"].tolist() == [2]

    left = [e.site for e in server.told(SiteLeft)]
    assert left == ["b", "a"]
    updated = [e.site for e in server.told(Updated)]
    assert updated == ["a"]


def test_a_model_of_very_many_tensors_joins_in_several_frames(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))
    many = {f"layers.{i}.experts.{i}.{'x' * 90}": np.ones(1) for i in range(12_000)}

    final = play(site_file("a", server.endpoint), many, add(1))

    assert set(final) == set(many)
    assert server.result().error == ""

"""One site that has joined, and means ill, ends nobody else's run."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import flare_core as flare
from flare_core.application import Event, RunOpened, SiteRefused, Updated
from flare_core.communication import (
    Aborted,
    Offer,
    Ping,
    Pong,
    Refused,
    Start,
    pack,
)
from site_scripts import (
    WAIT_S,
    Stranger,
    Watch,
    add,
    hello,
    model,
    plan,
    play,
    stream_id,
)
from support import RunningServer, RunServer, SiteFile

_LAYOUT = flare.ModelState(model(0)).layout


@pytest.fixture
def server(run_server: RunServer) -> RunningServer:
    return run_server(plan(rounds=2, quorum=1))


@pytest.fixture
def hostile(server: RunningServer) -> Iterator[Stranger]:
    with closing(Stranger(server.endpoint)) as hostile:
        hostile.say(hello("b"))
        hostile.hear()
        hostile.propose(_LAYOUT)
        yield hostile


def test_an_offer_that_only_says_its_layout_again_is_refused(
    server: RunningServer,
    hostile: Stranger,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    assert isinstance(hostile.hear(), Start)

    hostile.say(
        Offer(stream=stream_id(), num_bytes=2**61, round_number=0, layout=_LAYOUT)
    )

    assert isinstance(hostile.hear(), Refused)
    assert a.result(WAIT_S)["w"].tolist() == [3]


@pytest.mark.parametrize("extent", [2**61, 10**4_000])
def test_a_header_of_absurd_numbers_is_refused(
    extent: int,
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    many = {f"tensor {i}": np.zeros(1, np.float32) for i in range(200)}
    server = run_server(plan(quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), many, add(1))
    with closing(Stranger(server.endpoint)) as b:
        b.say(hello("b"))
        b.hear()
        b.propose(flare.ModelState(many).layout)
        assert isinstance(b.hear(), Start)
        honest, *bodies = pack(flare.ModelState(many))
        entry = f'{{"dtype":"F32","shape":[{extent},{extent}],"data_offsets":[0,4]}}'
        text = f'{{"w":{entry}}}'
        forged = bytes(honest[:8]) + text.encode().ljust(len(honest) - 8)

        assert isinstance(b.hand_in([forged, *bodies]), Refused)
    assert a.result(WAIT_S)["tensor 7"].tolist() == [1]
    assert [e.refusal.site for e in server.told(SiteRefused)] == ["b"]


def test_names_that_differ_by_case_only_are_not_taken_together(
    server: RunningServer,
) -> None:
    with closing(Stranger(server.endpoint)) as lower:
        lower.say(hello("site"))
        lower.hear()
        lower.propose(_LAYOUT)
        lower.say(Ping())
        assert isinstance(lower.hear(), Pong)
        with closing(Stranger(server.endpoint)) as upper:
            upper.say(hello("SITE"))
            answer = upper.hear()

    assert isinstance(answer, Aborted)
    assert "where case does not count" in answer.reason


def test_a_second_name_on_one_connection_is_turned_away(
    server: RunningServer, hostile: Stranger
) -> None:
    hostile.say(hello("c"))

    answer = hostile.hear()

    assert isinstance(answer, Aborted)
    assert "this connection is that of site 'b' already" in answer.reason
    server.server.stop("the test is over")


def test_a_server_whose_folder_is_in_use_leaves_the_other_ones_files(
    tmp_path: Path, run_server: RunServer
) -> None:
    watch = Watch()
    run_server(plan(), observer=watch, folder=tmp_path)
    watch.until(RunOpened)

    with pytest.raises(flare.ConfigurationError, match="cannot make the folder"):
        flare.Server(plan(), folder=tmp_path).run()

    assert (tmp_path / "spool").is_dir()


def test_a_server_that_was_held_up_itself_gives_nobody_up(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    held_up = threading.Event()

    def slow(event: Event) -> None:
        if isinstance(event, Updated) and not held_up.is_set():
            held_up.set()
            threading.Event().wait(3)  # as a stalled disk, or a laptop's sleep

    server = run_server(plan(rounds=3), observer=slow, patience_s=2)
    sites = [
        pool.submit(play, site_file(name, server.endpoint), model(1), add(1))
        for name in "ab"
    ]

    assert [site.result(WAIT_S)["w"].tolist() for site in sites] == [[4], [4]]
    assert server.result().error == ""

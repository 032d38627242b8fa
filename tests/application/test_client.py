import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import flare_core as flare
from flare_core.communication import Frame, Pong, Welcome, ZmqRouter, encode
from site_scripts import WAIT_S, add, model, plan, play
from support import RunServer, SiteFile

_ANY_PORT = "tcp://127.0.0.1:0"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_no_server_at_the_address_is_said_with_the_address_and_the_wait(
    site_file: SiteFile,
) -> None:
    address = f"tcp://127.0.0.1:{_free_port()}"
    path = site_file("a", address, patience_s=0.2)

    with pytest.raises(flare.ServerUnreachableError, match=address) as error:
        play(path, model(1), add(1))

    assert (error.value.address, error.value.waited_s) == (address, 0.2)
    assert "waited 0.2 s" in str(error.value)


def test_a_server_that_says_nothing_is_not_waited_for_without_end(
    site_file: SiteFile,
) -> None:
    with (
        ZmqRouter(_ANY_PORT) as silent,
        pytest.raises(flare.ServerUnreachableError),
    ):
        flare.join(model(1), site=site_file("a", silent.endpoint, patience_s=0.2))


def test_a_server_that_answers_pings_is_waited_for(
    pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    with ZmqRouter(_ANY_PORT) as server:
        path = site_file("a", server.endpoint, patience_s=0.3)
        link = flare.connect(flare.site(path))
        plan_of_the_run = pool.submit(link.plan)
        hello = server.receive(timeout_s=WAIT_S)
        assert hello is not None
        for _ in range(8):  # a ping comes each tenth of a second
            assert server.receive(timeout_s=WAIT_S) is not None
            server.send(hello.peer, encode(Pong()))

        server.send(hello.peer, encode(Welcome(plan=plan(rounds=5), run="r")))

        assert plan_of_the_run.result(WAIT_S).rounds == 5


@pytest.mark.parametrize("answer", [[b"garbage"], [b""]])
def test_an_answer_that_makes_no_sense_is_a_protocol_error(
    answer: list[Frame], pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    with ZmqRouter(_ANY_PORT) as server:
        link = flare.connect(flare.site(site_file("a", server.endpoint)))
        asking = pool.submit(link.plan)
        hello = server.receive(timeout_s=WAIT_S)
        assert hello is not None

        server.send(hello.peer, answer)

        assert isinstance(asking.exception(WAIT_S), flare.ProtocolError)


def test_a_script_outside_a_federation_is_told_how_to_get_into_one() -> None:
    with pytest.raises(flare.ConfigurationError, match="FLARE_SITE is not set"):
        flare.join(model(1))


def test_a_script_with_the_federation_off_is_told_that_it_has_no_rounds() -> None:
    with pytest.raises(flare.ConfigurationError, match=r"flare simulate SCRIPT\.py"):
        flare.join(model(1), site="off")


def test_the_site_file_is_found_by_the_environment(
    run_server: RunServer,
    site_file: SiteFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = run_server(plan(sites=1))
    monkeypatch.setenv("FLARE_SITE", str(site_file("a", server.endpoint)))

    with flare.join(model(1)) as client:
        for current in client:
            current.submit(current.weights, num_examples=1)

    assert server.result().sites == {"a": {}}


def test_a_model_that_cannot_travel_is_named_before_the_server_is_asked(
    site_file: SiteFile,
) -> None:
    path = site_file("a", f"tcp://127.0.0.1:{_free_port()}")

    with pytest.raises(TypeError, match="tensor 'w': no tensor can travel as complex"):
        flare.join({"w": np.zeros(2, np.complex128)}, site=path)


def test_an_address_that_is_none_is_named(site_file: SiteFile) -> None:
    with pytest.raises(flare.ConfigurationError, match="'localhost:5555'"):
        flare.join(model(1), site=site_file("a", "localhost:5555"))


def test_a_link_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('name = "a"\nserver = "grpc://x"\nlink = "grpc"\n')

    with pytest.raises(flare.ConfigurationError, match="'grpc'; installed: zmq"):
        flare.join(model(1), site=path)


def test_a_site_without_a_server_has_no_link() -> None:
    with pytest.raises(flare.ConfigurationError, match="site 'alone' has no server"):
        flare.connect(flare.site("off"))


def test_a_link_that_was_never_used_says_nothing_when_it_leaves(
    site_file: SiteFile,
) -> None:
    with ZmqRouter(_ANY_PORT) as server:
        link = flare.connect(flare.site(site_file("a", server.endpoint)))

        link.leave({})

        assert server.receive(timeout_s=0) is None

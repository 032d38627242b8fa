"""What goes wrong at a site of MONAI or Ignite reaches the server and the user."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from adapters.ignite_runs import engine, linear, loss_on, net, play, rows, sgd, whole
from adapters.sites import models, records, together
from flare_adapters.monai import FLHandler
from flare_core import (
    BaseModelError,
    ConfigurationError,
    LayoutError,
    Plan,
    PreflightPassed,
    RunAbortedError,
    Schedule,
    Selection,
    ServerUnreachableError,
    UpdateError,
)
from flare_core.application import Event, SiteJoined, SiteLeft
from support import PATIENCE_S, RunningServer, RunServer, SiteFile


def stop_early(trainer: Engine) -> None:
    """Let an epoch's end stop the run, as EarlyStopping does."""

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def stop(engine: Engine) -> None:
        engine.terminate()


def reasons(server: RunningServer) -> dict[str, str]:
    return {e.site: e.reason for e in server.told(SiteLeft)}


def test_an_early_stop_tells_the_server_instead_of_hanging_it(pair: Any) -> None:
    _, files = pair(Plan(rounds=9, selection=Selection(sites=2)))

    raised = together(
        lambda: play(linear(), whole(rows(0)), files[0], prepare=stop_early),
        lambda: play(linear(), whole(rows(1)), files[1]),
    )

    assert raised[0] is None
    assert isinstance(raised[1], RunAbortedError)
    assert "site 'a' left: its run was stopped (EarlyStopping" in str(raised[1])
    assert "selection.quorum" in str(raised[1])


def test_a_run_with_a_quorum_goes_on_without_the_site_that_stopped(pair: Any) -> None:
    server, files = pair(Plan(rounds=4, selection=Selection(sites=2, quorum=1)))

    raised = together(
        lambda: play(linear(), whole(rows(0)), files[0], prepare=stop_early),
        lambda: play(linear(), whole(rows(1)), files[1]),
    )

    assert raised == [None, None]
    assert server.result().rounds == 4
    assert list(records(server)[-1].sites) == ["b"]
    assert "in round 2" in reasons(server)["a"]


@pytest.mark.parametrize("skip", [False, True])
def test_a_stop_in_the_last_round_is_none(
    skip: bool,  # noqa: FBT001 - a parameter of the test
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=2))

    def prepare(trainer: Engine) -> None:
        @trainer.on(Events.EPOCH_COMPLETED(once=2))
        def stop(engine: Engine) -> None:
            engine.terminate(skip_completed=skip)

    play(linear(), whole(rows()), site_file("a", server.endpoint), prepare=prepare)

    assert server.result().rounds == 2
    assert reasons(server) == {"a": ""}


def test_a_stop_between_two_optimizer_steps_leaves_too(pair: Any) -> None:
    plan = Plan(
        rounds=2, schedule=Schedule(every_n_steps=3), selection=Selection(sites=2)
    )
    server, files = pair(plan)

    def prepare(trainer: Engine) -> None:
        @trainer.on(Events.ITERATION_COMPLETED(once=2))
        def stop(engine: Engine) -> None:
            engine.terminate(skip_completed=True)

    loader = DataLoader(rows(0), batch_size=4)
    raised = together(
        lambda: play(linear(), loader, files[0], prepare=prepare),
        lambda: play(linear(), loader, files[1]),
    )

    assert raised[0] is None
    assert "stopped" in reasons(server)["a"]
    assert isinstance(raised[1], RunAbortedError)


class Other:
    """Tells when the other site waits for this one."""

    def __init__(self) -> None:
        self.joined = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, SiteJoined):
            self.joined.set()


def log_and_raise(_: Engine, error: Exception) -> None:
    """Do as MONAI's StatsHandler: no handler behind this one is called."""
    raise error


@pytest.mark.parametrize("handlers", [0, 1])
@pytest.mark.parametrize("event", [None, "STARTED", "EPOCH_COMPLETED", "COMPLETED"])
def test_what_breaks_at_a_site_is_told_to_the_others(
    event: str | None, handlers: int, pair: Any
) -> None:
    other = Other()
    server, files = pair(observer=other)

    def breaks(*_: Any) -> None:
        other.joined.wait(PATIENCE_S)
        msg = "no such organ"
        raise RuntimeError(msg)

    def broken() -> None:
        network = linear()
        optimizer = sgd(network)
        trainer = Engine(breaks) if event is None else engine(network, optimizer)
        for _ in range(handlers):
            trainer.add_event_handler(Events.EXCEPTION_RAISED, log_and_raise)
        FLHandler(files[1], network=network, optimizer=optimizer).attach(trainer)
        if event is not None:
            trainer.add_event_handler(Events[event], breaks)
        trainer.run(whole(rows(1)))

    raised = together(lambda: play(linear(), whole(rows(0)), files[0]), broken)

    assert str(raised[1]) == "no such organ"
    if event == "COMPLETED":
        assert raised[0] is None
        assert server.result().rounds == 2
    else:
        assert isinstance(raised[0], RunAbortedError)
        assert "RuntimeError: no such organ" in str(raised[0])


def test_a_site_without_data_is_told_to_the_others(pair: Any) -> None:
    other = Other()
    _, files = pair(observer=other)

    def prepare(trainer: Engine) -> None:
        # as MONAI's, where nothing is to be done
        trainer.run = lambda *_, **__: other.joined.wait(PATIENCE_S)

    raised = together(
        lambda: play(linear(), whole(rows(0)), files[0]),
        lambda: play(linear(), [], files[1], prepare=prepare),
    )

    assert raised[1] is None
    assert "site 'b' left before round 0: its run ended before it" in str(raised[0])


def test_an_error_that_a_handler_swallows_is_the_users_affair(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3))
    network = linear()
    optimizer = sgd(network)
    swallowed: list[Exception] = []

    def step(engine: Engine, batch: Any) -> None:
        if engine.state.iteration == 3:
            msg = "a scan is broken"
            raise RuntimeError(msg)
        optimizer.zero_grad()
        loss_on(network, batch).backward()
        optimizer.step()

    trainer = Engine(step)
    trainer.add_event_handler(
        Events.EXCEPTION_RAISED, lambda _, error: swallowed.append(error)
    )
    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer).attach(trainer)
    trainer.run(DataLoader(rows(), batch_size=8))

    assert len(swallowed) == 1
    assert server.result().rounds == 3
    assert [one.num_examples for one in records(server)] == [16, 22, 22]


def test_the_interrupt_of_a_user_is_told_too(pair: Any) -> None:
    _, files = pair()

    def prepare(trainer: Engine) -> None:
        @trainer.on(Events.ITERATION_STARTED)
        def interrupt(_: Engine) -> None:
            raise KeyboardInterrupt

    raised = together(
        lambda: play(linear(), whole(rows(0)), files[0]),
        lambda: play(linear(), whole(rows(1)), files[1], prepare=prepare),
    )

    assert isinstance(raised[1], KeyboardInterrupt)
    assert "site 'b' failed: KeyboardInterrupt" in str(raised[0])


def test_a_nan_is_refused_by_name(run_server: RunServer, site_file: SiteFile) -> None:
    server = run_server(Plan(rounds=1))
    network = linear()
    optimizer = sgd(network, float("nan"))
    file = site_file("a", server.endpoint)

    with pytest.raises(UpdateError, match=r"site 'a': tensor '.*finite.*NaN"):
        play(network, whole(rows()), file, optimizer=optimizer)


def test_a_layout_that_differs_names_the_tensor_and_both_shapes(pair: Any) -> None:
    _, files = pair()

    raised = together(
        lambda: play(net(width=8), whole(rows(0)), files[0]),
        lambda: play(net(width=6), whole(rows(1)), files[1]),
    )

    assert isinstance(raised[0], RunAbortedError)
    assert isinstance(raised[1], LayoutError)
    for error in raised:
        assert "tensor '0.bias'" in str(error)
        assert "F32 (8,) as at site 'a', got F32 (6,)" in str(error)


def test_another_frozen_base_is_refused(pair: Any) -> None:
    _, files = pair()

    raised = together(
        lambda: play(net(seed=0, frozen=True), whole(rows(0)), files[0]),
        lambda: play(net(seed=1, frozen=True), whole(rows(1)), files[1]),
    )

    assert isinstance(raised[1], BaseModelError)
    assert "frozen base model" in str(raised[0])


def test_no_server_is_said_with_its_address(site_file: SiteFile) -> None:
    file = site_file("a", "tcp://127.0.0.1:9", patience_s=0.3)

    with pytest.raises(ServerUnreachableError, match=r"tcp://127\.0\.0\.1:9"):
        play(linear(), whole(rows()), file)


def test_a_preflight_compares_and_trains_nothing(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1), preflight=True)
    network = linear(3)

    with pytest.raises(PreflightPassed):
        play(network, whole(rows()), site_file("a", server.endpoint))

    assert network.bias.tolist() == [3.0]
    assert not models(server)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({}, r"no 'network'.*ModuleDict.*FLHandler\(network=\.\.\.\)"),
        ({"network": linear()}, r"no 'optimizer'.*FLHandler\(optimizer=\.\.\.\)"),
    ],
)
def test_what_an_engine_does_not_have_must_be_passed(
    given: dict[str, Any], advice: str, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    network = linear()
    trainer = engine(network, sgd(network))
    FLHandler(site_file("a", server.endpoint), **given).attach(trainer)

    with pytest.raises(ConfigurationError, match=advice):
        trainer.run(whole(rows()))

    assert "site 'a' left before round 0" in server.result().error


def test_without_a_federation_the_handler_says_how_to_get_one() -> None:
    with pytest.raises(ConfigurationError, match="FLARE_SITE is not set"):
        FLHandler(every_n_epochs=1)


def test_two_schedules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        FLHandler(tmp_path / "a.toml", every_n_epochs=1, every_n_steps=1)


def test_the_weights_are_those_of_before_if_the_run_breaks_at_once(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1, selection=Selection(sites=2)))
    network = linear(5)
    server.server.stop("nobody else came")

    with pytest.raises((RunAbortedError, ServerUnreachableError)):
        play(
            network,
            whole(rows()),
            site_file("a", server.endpoint, patience_s=1.0),
        )

    torch.testing.assert_close(network.bias, torch.tensor([5.0]))

"""A signal is heard whichever thread it comes to, and whatever the main one does."""

import signal
import threading

import pytest

from flare_core.management._signals import interrupts


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_another_thread_is_heard_while_the_main_one_sleeps(
    signum: signal.Signals,
) -> None:
    assert threading.current_thread() is threading.main_thread()
    heard = threading.Event()
    before = signal.getsignal(signum)

    in_time: list[bool] = []

    def is_told() -> None:
        for _ in range(10):  # the first may find the main one still awake
            heard.clear()
            signal.pthread_kill(threading.get_ident(), signum)
            in_time.append(heard.wait(timeout=2))

    with interrupts(heard.set):
        other = threading.Thread(target=is_told)
        other.start()
        other.join()  # the main thread runs no Python until then

    assert in_time == [True] * 10
    assert signal.getsignal(signum) is before


def test_signals_before_and_after_are_the_users_own() -> None:
    users: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: users.append(signum))
    ours: list[str] = []
    try:
        with interrupts(lambda: ours.append("asked")):
            pass
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert users == [signal.SIGTERM]
    assert ours == []

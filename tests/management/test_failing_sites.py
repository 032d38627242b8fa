"""A site that fails: said once, by name, and nothing is left behind."""

from pathlib import Path

import pytest

from flare_core.management import SiteFailedError, plan_of, simulate
from simulated import LEARNS, NOTES_PIDS, Flare, WriteScript, left_alive

CRASHES = (
    NOTES_PIDS
    + """
with flare.join({"w": np.zeros(3)}) as run:
    for round in run:
        if me.index == 1:
            raise ValueError("the data of [site-2] is odd")
        round.submit(round.weights, num_examples=1)
"""
)
DIES = """
with flare.join({"w": np.zeros(3)}) as run:
    for round in run:
        if me.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        round.submit(round.weights, num_examples=1)
"""
TRACEBACK = "Traceback (most recent call last):"


def test_a_traceback_is_shown_once_with_the_name_of_its_site(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    done = flare("simulate", script(CRASHES), "--sites", "3", "--run-dir", "r")

    assert done.returncode == 1
    assert done.stderr.count(TRACEBACK) == 1
    assert "site-2 said last" in done.stderr
    assert "ValueError: the data of [site-2] is odd" in done.stderr
    assert "RunAbortedError" not in done.stderr + done.stdout
    assert left_alive(tmp_path) == []


def test_a_chain_of_exceptions_is_shown_from_its_start(
    script: WriteScript, tmp_path: Path
) -> None:
    body = """
try:
    {}["first"]
except KeyError as exc:
    raise RuntimeError("second") from exc
"""

    with pytest.raises(SiteFailedError) as failure:
        simulate(script(body), plan=plan_of(None, sites=1), run_dir=tmp_path / "r")

    assert failure.value.last_words.startswith(TRACEBACK)
    assert "KeyError: 'first'" in failure.value.last_words
    assert failure.value.last_words.endswith("RuntimeError: second")


def test_what_a_script_leaves_behind_is_ended_though_the_script_is_gone(
    script: WriteScript, tmp_path: Path
) -> None:
    in_its_group = NOTES_PIDS.replace("True", "False")

    with pytest.raises(SiteFailedError, match="ended with code 3"):
        simulate(
            script(in_its_group + "sys.exit(3)\n"),
            plan=plan_of(None, sites=1),
            run_dir=tmp_path / "r",
        )

    assert left_alive(tmp_path) == []


def test_of_a_long_log_only_the_end_is_read(
    script: WriteScript, tmp_path: Path
) -> None:
    body = """
print("é" * 3_000_000)
print("epoch 1\\repoch 2", end="\\r\\n")
sys.exit(3)
"""

    with pytest.raises(SiteFailedError) as failure:
        simulate(script(body), plan=plan_of(None, sites=1), run_dir=tmp_path / "r")

    first, last = failure.value.last_words.split("\n")
    assert 0 < len(first) < 1_000_000
    assert last == "epoch 2"


def test_a_script_that_never_joins_ends_the_run_with_advice(
    flare: Flare, script: WriteScript
) -> None:
    done = flare("simulate", script("print('trained alone')\n"), "--sites", "2")

    assert done.returncode == 1
    assert "ended without joining: does it train with Lightning" in done.stderr


def test_a_site_that_is_killed_is_lost_at_once(
    script: WriteScript, tmp_path: Path
) -> None:
    with pytest.raises(SiteFailedError) as failure:
        simulate(script(DIES), plan=plan_of(None), run_dir=tmp_path / "r")

    assert failure.value.site == "site-2"
    assert "its process was killed by SIGKILL" in failure.value.reason


def test_with_a_quorum_the_run_goes_on_without_a_killed_site(
    flare: Flare, script: WriteScript
) -> None:
    done = flare("simulate", script(DIES), "--set", "selection.quorum=1")

    assert done.returncode == 0, done.stderr
    assert "site 'site-2': its process was killed by SIGKILL" in done.stderr
    assert "3 rounds in" in done.stdout


def test_a_script_that_fails_after_the_run_is_not_passed_over(
    script: WriteScript, tmp_path: Path
) -> None:
    body = LEARNS + "if me.index == 0:\n    raise OSError('cannot save')\n"

    with pytest.raises(SiteFailedError, match="OSError: cannot save"):
        simulate(script(body), plan=plan_of(None), run_dir=tmp_path / "r")

    assert (tmp_path / "r" / "global.safetensors").exists()


def test_a_refused_update_is_explained_without_a_traceback(
    flare: Flare, script: WriteScript
) -> None:
    body = LEARNS.replace("step = ", "step = np.nan if me.index else ")

    done = flare("simulate", script(body))

    assert done.returncode == 1
    assert "site 'site-2': tensor 'bias': expected finite values" in done.stderr
    assert TRACEBACK not in done.stderr


def test_what_an_observer_raises_ends_the_run_and_every_process(
    script: WriteScript, tmp_path: Path
) -> None:
    def broken(event: object) -> None:
        if type(event).__name__ == "Updated":
            msg = "the display is broken"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="the display is broken"):
        simulate(
            script(NOTES_PIDS + LEARNS),
            plan=plan_of(None),
            run_dir=tmp_path / "r",
            observer=broken,
        )

    assert left_alive(tmp_path) == []

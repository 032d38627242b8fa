"""The pre-flight compares and trains nothing."""

from pathlib import Path

import pytest

from simulated import LEARNS, Flare, WriteScript

BOTH = "sites 'site-1', 'site-2': horizon: expected 6 steps as planned (rounds = 3, "
SECOND = "site 'site-2': horizon: expected 6 epochs as planned (rounds = 3, "


def test_shows_what_would_travel_and_trains_nothing(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    body = LEARNS.replace("step =", "raise AssertionError #")

    done = flare("check", script(body), "--sites", "3", "--run-dir", "r")

    assert done.returncode == 0, done.stderr
    assert "2 tensors, 40 bytes" in done.stdout
    assert "weight" in done.stdout
    assert "2 x 3" in done.stdout
    assert "site-3" in done.stdout
    assert "all 3 sites agree" in done.stdout
    assert not list((tmp_path / "r").glob("manifest-*"))
    assert not (tmp_path / "runs").exists()


def test_names_the_tensor_and_both_shapes_where_models_differ(
    flare: Flare, script: WriteScript
) -> None:
    body = LEARNS.replace("(2, 3)", "(2, 3 + me.index)")

    done = flare("check", script(body), "--sites", "3")

    message = (
        "site 'site-{}': tensor 'weight': expected F32 (2, 3) as at site 'site-1', "
        "got F32 (2, {});"
    )
    assert done.returncode == 1
    assert done.stderr.count(message.format(2, 4)) == 1
    assert done.stderr.count(message.format(3, 5)) == 1
    assert "Traceback" not in done.stderr
    assert "agree" not in done.stdout


def test_says_what_the_plan_encodes(flare: Flare, script: WriteScript) -> None:
    plain = flare("check", script(LEARNS), "--sites", "2")
    encoded = flare(
        "check", script(LEARNS), "--sites", "2", "--set", "encoding.up=int8"
    )

    assert "sends less" not in plain.stdout
    assert "the plan sends less than that: updates as int8\n" in encoded.stdout


def test_abbreviates_a_long_list_of_tensors(flare: Flare, script: WriteScript) -> None:
    body = "flare.join({f't{i:03}': np.zeros(2) for i in range(100)})\n"

    done = flare("check", script(body), "--sites", "1")

    assert "100 tensors, 1.6 kB" in done.stdout
    assert "60 more" in done.stdout
    assert "t019" in done.stdout
    assert "t020" not in done.stdout
    assert "t080" in done.stdout


def test_a_script_that_fails_before_joining_is_shown(
    flare: Flare, script: WriteScript
) -> None:
    done = flare("check", script("raise OSError('no data')\n"), "--sites", "1")

    assert done.returncode == 1
    assert "OSError: no data" in done.stderr


def _loop_of(horizon: str, schedule: str = "") -> str:
    """Return a script whose own loop has a horizon, perhaps one per site."""
    return f"""\
link = flare.connect(me)
link.plan()
weights = flare.ModelState({{"weight": np.zeros(2)}})
horizon, schedule = f"{horizon}", flare.Schedule({schedule})
link.join(flare.Proposal(weights=weights, horizon=horizon, schedule=schedule))
"""


def test_names_the_site_whose_horizon_is_not_that_of_the_others(
    flare: Flare, script: WriteScript
) -> None:
    body = _loop_of("max_iters={4 if me.index == 0 else 3}")

    done = flare("check", script(body), "--sites", "3")

    (warning,) = _warnings(done.stdout)
    expected = "site 'site-1': horizon: expected max_iters=3 as at site 'site-2', got "
    assert done.returncode == 0, done.stderr
    assert warning.startswith(f"{expected}max_iters=4; the plan sets the length")


@pytest.mark.parametrize(
    ("horizon", "schedule", "expected"),
    [
        ("max_epochs=6, max_steps=-1", "every_n_epochs=2", []),
        ("num_train_epochs=3, max_steps=6", "every_n_steps=2", []),
        ("max_epochs={6 + me.index}", "every_n_epochs=2", [SECOND]),
        ("max_epochs=3, max_steps=9", "every_n_steps=2", [BOTH]),
        ("max_epochs=9, max_steps=4", "every_n_epochs=2", []),  # it cannot be told
        ("num_train_epochs=2.5", "every_n_epochs=2", []),
        ("", "every_n_epochs=2", []),
    ],
)
def test_a_horizon_that_tells_its_length_is_compared_with_the_plan(
    flare: Flare,
    script: WriteScript,
    horizon: str,
    schedule: str,
    expected: list[str],
) -> None:
    body = _loop_of(horizon, schedule)

    done = flare("check", script(body), "--sites", "2", "--rounds", "3")

    assert done.returncode == 0, done.stderr
    assert "all 2 sites agree" in done.stdout
    found = [line.partition("every_n")[0] for line in _warnings(done.stdout)]
    assert found == expected


def _warnings(said: str) -> list[str]:
    return [line for line in said.splitlines() if ": horizon: " in line]

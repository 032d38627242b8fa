"""The pre-flight compares and trains nothing."""

from pathlib import Path

from simulated import LEARNS, Flare, WriteScript


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


def test_names_the_site_whose_loop_has_another_length(
    flare: Flare, script: WriteScript
) -> None:
    body = """\
link = flare.connect(me)
link.plan()
weights = flare.ModelState({"weight": np.zeros(2)})
horizon = f"max_epochs={3 + me.index // 2}"
link.join(flare.Proposal(weights=weights, horizon=horizon))
"""

    done = flare("check", script(body), "--sites", "3")

    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stderr
    assert "site 'site-3': horizon: expected max_epochs=3 as at site 'site-1'" in said
    assert "site 'site-2': horizon" not in said

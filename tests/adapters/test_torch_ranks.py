"""What the first rank fails of, the others learn: nobody waits in a collective."""

import json
import subprocess
import sys
from typing import Any

import pytest

from adapters.scripts import ranks

pytestmark = pytest.mark.timeout(120)  # two processes import torch


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has noted."""
    folder = tmp_path_factory.mktemp("ranks")
    script, store = [sys.executable, ranks.__file__], folder / "store"
    outs = [folder / "first", folder / "second"]
    started = [
        subprocess.Popen(
            [*script, "--rank", str(rank), "--store", str(store), "--out", str(out)]
        )
        for rank, out in enumerate(outs)
    ]
    try:
        assert [one.wait(100) for one in started] == [0, 0]
    finally:
        for one in started:
            one.kill()
    return [json.loads(out.read_bytes()) for out in outs]


def test_an_error_that_cannot_travel_arrives_in_words(notes: Any) -> None:
    first, second = notes

    assert first["odd"] == "OddError: odd"
    assert second["odd"] == "RunAbortedError: the first rank failed: OddError: odd"


@pytest.mark.parametrize(
    ("name", "error"),
    [("ours", "ConfigurationError: no"), ("stop", "KeyboardInterrupt: stop")],
)
def test_our_errors_and_interrupts_are_the_same_on_all_ranks(
    name: str, error: str, notes: Any
) -> None:
    assert [one[name] for one in notes] == [error, error]


def test_a_global_model_that_does_not_fit_is_refused_on_all_ranks(notes: Any) -> None:
    first, second = (one["load"] for one in notes)

    assert first == second
    assert first.startswith("ConfigurationError: tensor 'weight'")


def test_a_tensor_that_cannot_travel_is_refused_on_all_ranks(notes: Any) -> None:
    first, second = (one["read"] for one in notes)

    assert first == second
    assert first.startswith("TypeError: tensor 'weight' (meta)")


def test_a_metric_that_only_one_rank_has_is_its_own(notes: Any) -> None:
    assert [one["mean"] for one in notes] == [0.0, 0.0]

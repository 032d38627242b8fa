"""What a run keeps outlives its server, whatever moment that is killed at."""

from pathlib import Path

import pytest

import flare_core as flare
from chaos import federation
from chaos.faults import SERVER, Fault

SITE = [str(Path(federation.__file__).with_name("numpy_site.py"))]


@pytest.mark.parametrize(
    ("point", "floats"),
    [
        ("before updates are kept", "100"),
        ("after updates are kept", "20000"),
        ("after publish", "20000"),
        ("before a model is kept", "100"),
    ],
)
def test_nothing_is_lost_or_twice_there_when_the_server_is_killed(
    point: str, floats: str
) -> None:
    plan = flare.Plan(
        rounds=federation.ROUNDS,
        selection=flare.Selection(sites=len(federation.SITES)),
        keep_updates=True,
    )
    killed = Fault(kind="kill at", party=SERVER, point=point, times=3)

    outcome = federation.play([*SITE, floats], plan, [killed], alone_s=0)

    assert not outcome.problems, outcome
    assert outcome.starts[SERVER] == 2

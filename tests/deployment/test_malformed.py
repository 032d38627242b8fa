"""Some thousand malformed inputs; `deployment.fuzz` sends as many as one likes."""

import pytest

from deployment.fuzz import fuzzed

_INPUTS = 3000
_MOST_MB = 64.0
"""More than the heap of a server comes and goes with; inputs add up to much more."""


@pytest.mark.timeout(300)
def test_malformed_inputs_leave_the_server_and_the_run_beside_as_they_were(
    undisturbed: str,
) -> None:
    with fuzzed(seed=7) as (fuzz, beside, _):
        accounts = list(fuzz.run(_INPUTS))

        assert beside.blake3() == undisturbed
    assert sum(one.inputs for one in accounts) == _INPUTS
    for one in accounts:
        assert one.after_mb - one.before_mb < _MOST_MB, one.kind

"""Malformed inputs leave a server, its memory, and the run beside them as they were."""

import pytest

from deployment.fuzz import fuzzed

_MOST_GROWN_MB = 25


@pytest.mark.parametrize("seed", [1, 2])
def test_malformed_inputs_disturb_nothing(seed: int, undisturbed: str) -> None:
    with fuzzed(seed) as (fuzz, beside, deployed):
        accounts = list(fuzz.run(2500))

        assert beside.blake3() == undisturbed
        failed = [line for line in deployed.audit() if "server failed" in str(line)]

    assert failed == []  # and nothing raised: the log has no traceback
    assert sum(one.inputs for one in accounts) == 2500
    assert {one.kind: one.after_mb - one.before_mb for one in accounts} == {
        one.kind: pytest.approx(0, abs=_MOST_GROWN_MB) for one in accounts
    }

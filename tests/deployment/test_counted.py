"""Which updates of a site counted is known to the next server, too."""

import numpy as np

import flare_core as flare
from deployed import Deployment
from site_scripts import plan

_WEIGHTS = flare.ModelState({"w": np.ones(3, np.float32)})


def test_a_server_that_is_started_again_knows_what_counted(
    deployed: Deployment,
) -> None:
    deployed.member("a")
    deployed.create("run", plan(rounds=3, sites=1))
    site = flare.site(deployed.site("a", "run"))
    proposal = flare.Proposal(weights=_WEIGHTS)
    update = flare.Update(site="a", round_number=0, weights=_WEIGHTS, num_examples=1)
    link = flare.connect(site)
    before = link.join(proposal).counted
    after = link.exchange(update).counted

    deployed.stop()
    deployed.start()

    again = flare.connect(site)
    model = again.resume(proposal, update)
    assert (before, after) == (-1, 0)
    assert (model.round_number, model.counted) == (1, 0)
    again.leave({})
    deployed.end("run")

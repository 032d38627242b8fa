"""What may leave a site, and the site's own record of what did.

In a deployment, that is where the site file names the server's key, the site has an
audit log of its own.  All is written down before it is done.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import final

from flare_core._errors import ConfigurationError, Violation
from flare_core._model import Layout
from flare_core._plan import Plan
from flare_core._site import Site
from flare_core.application._audit import AuditLog
from flare_core.application._manifest import Manifest
from flare_core.application._policy import check_bytes, check_plan, check_tensors
from flare_core.communication import Frame

_log = logging.getLogger(__name__)


@final
class Gate:
    """Everything that leaves a site passes here: its policy, its manifest, its audit.

    What the policy does not allow raises `PolicyError`; what cannot be recorded raises
    `ConfigurationError`, and must not leave either.

    Args:
        site: Whose gate it is.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._manifest = Manifest(site)
        deployed = bool(site.server_key)
        self._audit = AuditLog(Path(site.folder or ".")) if deployed else None
        self._run = self._plan = ""
        self._left = 0

    def take_part(self, run: str, plan: Plan) -> str:
        """Check a run before the site joins; return the plan's fingerprint."""
        self._run, self._plan = run, plan.fingerprint
        check_plan(self._site, run, plan)
        if self._site.policy.most_bytes is not None:
            self._left = self._manifest.left(run)
        return self._plan

    def join(self, layout: Layout) -> None:
        """Check what the site would exchange, and note that it joins."""
        check_tensors(self._site, layout)
        self._note("joined", plan=self._plan)

    def leaving(
        self, round_number: int, layout: Layout, bodies: Mapping[str, Frame]
    ) -> None:
        """Check an update, and record it.

        Args:
            round_number: The round it leaves in.
            layout: Of the model.
            bodies: The bytes of each tensor as they go over the wire, by name.
        """
        check_tensors(self._site, layout)
        num_bytes = sum(len(body) for body in bodies.values())
        check_bytes(self._site, self._left, num_bytes)
        digest = self._manifest.note(self._run, round_number, layout, bodies)
        self._left += num_bytes
        if self._audit is not None:
            self._note("update", round=round_number, bytes=num_bytes, manifest=digest)
            self._audit.sign()

    def refused(self, violation: Violation) -> None:
        """Note what the policy did not allow."""
        self._note("policy", rule=violation.rule, words=str(violation))

    def told(self, failure: str) -> str:
        """Return what the server may hear of a failure: in a deployment, its kind.

        What an error says behind that may quote the data that a script was reading,
        and would be in the audit log of the server and in the logs of other sites.

        Args:
            failure: ``"KIND: WORDS"``, or words of ours.
        """
        return failure if self._audit is None else failure.partition(": ")[0]

    def ended(self, reason: str, *, failed: bool = False) -> None:
        """Note that the site's part in the run is over; it is, noted or not."""
        try:
            self._note("ended", reason=reason, failed=failed)
        except ConfigurationError as exc:
            _log.warning(
                "site %r: the end is not in its audit: %s", self._site.name, exc
            )

    def _note(self, event: str, **facts: str | float | bool) -> None:
        if self._audit is not None:
            self._audit.note(event, run=self._run, site=self._site.name, **facts)

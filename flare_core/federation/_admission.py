"""What is looked at before anything of a site counts."""

import math
from collections.abc import Iterator, Mapping

from flare_core._errors import Refusal
from flare_core._model import Layout, ModelState, TensorSpec, Update, all_finite

_MOST_EXAMPLES = 2**53
_SAME_MODEL = "do all sites run the same model, of the same version?"


def differing_layouts(layouts: Mapping[str, Layout]) -> Iterator[Refusal]:
    """Yield each site whose model differs from that of the first one by name.

    Args:
        layouts: What each site would exchange, by site.

    Yields:
        The first tensor that differs, with what the first site has.
    """
    reference_site = min(layouts)
    reference = layouts[reference_site]
    for site in sorted(layouts):
        if layouts[site].hash != reference.hash:
            yield _layout_refusal(site, layouts[site], reference_site, reference)


def differing_bases(bases: Mapping[str, str]) -> Iterator[Refusal]:
    """Yield each site whose frozen base differs from that of the first one by name.

    Args:
        bases: Fingerprint of what is frozen and stays behind, by site; empty where
            nothing is.
    """
    reference = min(bases)
    for site in sorted(bases):
        if bases[site] != bases[reference]:
            yield Refusal(
                reason="base",
                site=site,
                what="frozen base model",
                expected=f"{_short(bases[reference])} as at site {reference!r}",
                got=_short(bases[site]),
                advice="do all sites load the same pretrained weights, in the same "
                "type? averaging on top of different ones means nothing",
            )


def differing_schedules(schedules: Mapping[str, str]) -> Iterator[Refusal]:
    """Yield each site that cuts its rounds otherwise than the first one by name."""
    reference = min(schedules)
    for site in sorted(schedules):
        if schedules[site] != schedules[reference]:
            yield Refusal(
                reason="schedule",
                site=site,
                what="schedule",
                expected=f"{schedules[reference]} as at site {reference!r}",
                got=schedules[site],
                advice="set it in the plan, under [schedule], for all",
            )


def inadmissible(update: Update, layout: Layout) -> Refusal | None:
    """Return why an update cannot be averaged, or None if it can.

    Args:
        update: What a site sent.
        layout: Layout of the global model.
    """
    if not 1 <= update.num_examples < _MOST_EXAMPLES:
        few = update.num_examples < 1
        return _update_refusal(
            update.site,
            "num_examples",
            "at least 1" if few else f"less than {_MOST_EXAMPLES:,}",
            str(update.num_examples),
            "a site with no data should not train" if few else "is that a count?",
        )
    return unfit(update.site, update.weights, layout)


def unfit(site: str, weights: ModelState, layout: Layout) -> Refusal | None:
    """Return why weights cannot be those of a global model, or None if they can.

    Args:
        site: Where they come from.
        weights: What came.
        layout: What they must look like.
    """
    refusal = misfit(site, weights.layout, layout)
    if refusal is not None:
        return refusal
    for name, array in weights.items():
        if not all_finite(array):
            return diverged(site, name)
    return None


def misfit(site: str, layout: Layout, expected: Layout) -> Refusal | None:
    """Return in which tensor a layout is not the expected one, or None if it is."""
    if layout.tensors == expected.tensors:
        return None
    return _layout_refusal(site, layout, "", expected)


def diverged(site: str, name: str) -> Refusal:
    """Return the refusal of a tensor that is not finite."""
    return _update_refusal(
        site,
        f"tensor {name!r}",
        "finite values",
        "NaN or infinity",
        "its local training diverged: lower the learning rate or look at its data",
    )


def weighted_mean(
    metrics: Mapping[str, Mapping[str, float]], weights: Mapping[str, int]
) -> dict[str, float]:
    """Return each metric's mean over the sites that report it.

    Args:
        metrics: Scalars by site.
        weights: Examples by site.
    """
    names = sorted({name for of_site in metrics.values() for name in of_site})
    means: dict[str, float] = {}
    for name in names:
        sites = sorted(site for site in metrics if name in metrics[site])
        total = sum(weights[site] for site in sites)
        terms = (metrics[site][name] * weights[site] for site in sites)
        # Not fsum: a run may not end with the infinite loss of two of its sites.
        means[name] = sum(terms) / total if total else math.nan
    return means


def _layout_refusal(
    site: str, layout: Layout, reference_site: str, reference: Layout
) -> Refusal:
    theirs = {spec.name: spec for spec in layout.tensors}
    ours = {spec.name: spec for spec in reference.tensors}
    name = next(n for n in sorted(theirs | ours) if theirs.get(n) != ours.get(n))
    where = f" as at site {reference_site!r}" if reference_site else ""
    return Refusal(
        reason="layout" if reference_site else "update",
        site=site,
        what=f"tensor {name!r}",
        expected=_described(ours.get(name), theirs.get(name)) + where,
        got=_described(theirs.get(name), ours.get(name)),
        advice=_SAME_MODEL,
    )


def _described(spec: TensorSpec | None, other: TensorSpec | None) -> str:
    if spec is None:
        return "no such tensor"
    same = other and (spec.dtype, spec.shape) == (other.dtype, other.shape)
    return f"{spec} ({spec.kind})" if same else str(spec)


def _update_refusal(
    site: str, what: str, expected: str, got: str, advice: str
) -> Refusal:
    return Refusal(
        reason="update",
        site=site,
        what=what,
        expected=expected,
        got=got,
        advice=advice,
    )


def _short(fingerprint: str) -> str:
    return f"fingerprint {fingerprint[:12]}" if fingerprint else "nothing frozen"

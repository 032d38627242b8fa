"""What is looked at before anything of a site counts."""

import math
from collections.abc import Callable, Iterator, Mapping

from flare_core._errors import Refusal
from flare_core._model import (
    Layout,
    ModelState,
    TensorClass,
    TensorSpec,
    Update,
    all_finite,
    squared_distance,
)
from flare_core._plan import Admission

_MOST_EXAMPLES = 2**53
_SAME_MODEL = "do all sites run the same model, of the same version?"


def differing_layouts(
    layouts: Mapping[str, Layout], reference: str = ""
) -> Iterator[Refusal]:
    """Yield each site whose model differs from that of a reference.

    Args:
        layouts: What each site would exchange, by site.
        reference: A site; by default the first one by name.

    Yields:
        The first tensor that differs, with what the reference has.
    """
    reference = reference or min(layouts)
    expected = layouts[reference]
    for site in sorted(layouts):
        if layouts[site].hash != expected.hash:
            yield _layout_refusal(site, layouts[site], reference, expected)


def differing_bases(bases: Mapping[str, str], reference: str = "") -> Iterator[Refusal]:
    """Yield each site whose frozen base differs from that of a reference.

    Args:
        bases: Fingerprint of what is frozen and stays behind, by site; empty where
            nothing is.
        reference: A site; by default the first one by name.
    """
    for site, expected, got in _differing(bases, reference, _short):
        yield Refusal(
            reason="base",
            site=site,
            what="frozen base model",
            expected=expected,
            got=got,
            advice="do all sites load the same pretrained weights, in the same type? "
            "averaging on top of different ones means nothing",
        )


def differing_scales(
    scales: Mapping[str, Mapping[str, float]], reference: str = ""
) -> Iterator[Refusal]:
    """Yield each site whose LoRA weights are multiplied by another number.

    Args:
        scales: Of each site, by the name of the second factor; not all sites know them.
        reference: A site; by default the first one by name.
    """
    reference = reference or min(scales)
    expected = scales[reference]
    for site in sorted(scales):
        both = sorted(scales[site].keys() & expected.keys())
        differing = (name for name in both if scales[site][name] != expected[name])
        if name := next(differing, ""):
            yield Refusal(
                reason="layout",
                site=site,
                what=f"scale of the LoRA weights {name!r}",
                expected=f"{expected[name]:g} as at site {reference!r}",
                got=f"{scales[site][name]:g}",
                advice="give all sites the same lora_alpha, r, alpha_pattern and "
                "use_rslora, or set lora.rank in the plan, which lets them differ",
            )


def differing_seals(seals: Mapping[str, str], reference: str = "") -> Iterator[Refusal]:
    """Yield each site whose sealed model has another layout than a reference's.

    Args:
        seals: Hash of the layout, by site; empty where nothing is sealed.
        reference: A site; by default the first one by name.
    """
    for site, expected, got in _differing(seals, reference, _hash):
        yield Refusal(
            reason="layout",
            site=site,
            what="layout of the sealed model",
            expected=expected,
            got=got,
            advice="do all sites exchange the same tensors of the same model? the "
            "server cannot see which of them differ",
        )


def differing_schedules(
    schedules: Mapping[str, str], reference: str = ""
) -> Iterator[Refusal]:
    """Yield each site that cuts its rounds otherwise than a reference.

    Args:
        schedules: In words, by site.
        reference: A site; by default the first one by name.
    """
    for site, expected, got in _differing(schedules, reference, str):
        yield Refusal(
            reason="schedule",
            site=site,
            what="schedule",
            expected=expected,
            got=got,
            advice="set it in the plan, under [schedule], for all",
        )


def inadmissible(
    update: Update, current: ModelState, admission: Admission | None = None
) -> Refusal | None:
    """Return why an update cannot be averaged, or None if it can.

    Args:
        update: What a site sent.
        current: The global model that the round started from.
        admission: What the plan says that it must keep to.
    """
    admission = admission or Admission()
    return (
        implausible(update.site, update.num_examples, update.num_steps, admission)
        or unfit(update.site, update.weights, current.layout)
        or _too_far(
            update, current, TensorClass.PARAMETER, "most_norm", admission.most_norm
        )
        or _too_far(
            update, current, TensorClass.CONTROL, "most_control", admission.most_control
        )
    )


def implausible(
    site: str, num_examples: int, num_steps: int, admission: Admission
) -> Refusal | None:
    """Return why these are no counts of a site's local training, or None if they are.

    Args:
        site: Whose.
        num_examples: Examples seen.
        num_steps: Optimizer steps taken.
        admission: What the plan says that they must keep to.
    """
    if not 0 <= num_steps < _MOST_EXAMPLES:
        return _update_refusal(
            site,
            "num_steps",
            "at least 0, and a count of optimizer steps",
            f"{num_steps:,}",
            "say nothing where nobody counts them",
        )
    most = admission.most_examples or _MOST_EXAMPLES - 1
    if 1 <= num_examples <= most:
        return None
    few = num_examples < 1
    return _update_refusal(
        site,
        "num_examples",
        "at least 1" if few else f"at most {most:,}",
        f"{num_examples:,}",
        "a site with no data should not train" if few else "is that a count?",
    )


def _too_far(
    update: Update,
    current: ModelState,
    kind: TensorClass,
    setting: str,
    most: float | None,
) -> Refusal | None:
    if most is None:
        return None
    names = [spec.name for spec in current.layout.tensors if spec.kind is kind]
    squares = {
        name: squared_distance(update.weights[name], current[name]) for name in names
    }
    norm = math.sqrt(math.fsum(squares.values()))
    if norm <= most:
        return None
    longest = max(squares, key=lambda name: squares[name])
    return _update_refusal(
        update.site,
        f"L2 norm of the update, most of it in tensor {longest!r}",
        f"at most {most:g} (admission.{setting} in the plan)",
        f"{norm:g}",
        "its local training went astray: lower the learning rate, or raise the bound",
    )


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
            return _diverged(site, name)
    return None


def misfit(site: str, layout: Layout, expected: Layout) -> Refusal | None:
    """Return in which tensor a layout is not the expected one, or None if it is."""
    if layout.tensors == expected.tensors:
        return None
    return _layout_refusal(site, layout, "", expected)


def _diverged(site: str, name: str) -> Refusal:
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


def _differing(
    said: Mapping[str, str], reference: str, words: Callable[[str], str]
) -> Iterator[tuple[str, str, str]]:
    """Yield each site that says something else, with what was expected and said."""
    reference = reference or min(said)
    expected = f"{words(said[reference])} as at site {reference!r}"
    for site in sorted(said):
        if said[site] != said[reference]:
            yield site, expected, words(said[site])


def _hash(layout: str) -> str:
    return f"hash {layout[:12]}" if layout else "nothing sealed"


def _short(fingerprint: str) -> str:
    return f"fingerprint {fingerprint[:12]}" if fingerprint else "nothing frozen"

"""Slices of a brain, as one hospital's scanner shows them."""

from importlib.metadata import distribution
from typing import Any

import nibabel as nib
import numpy as np
import torch

PLANES = ("sagittal", "coronal", "axial")  # cut across axis 0, 1, 2 of the volume
CONTRASTS = (0.6, 1.6, 1.0)
LEAST_TISSUE = 0.08  # of a slice; there is little to learn at the ends


def volume(kind: str) -> torch.Tensor:
    """Return a map of the template at 4 mm, values from 0 to 1."""
    package = distribution("nilearn")  # we read files of it, and import nothing
    name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    image: Any = nib.load(str(package.locate_file(f"nilearn/datasets/data/{name}")))
    return torch.from_numpy(np.asarray(image.dataobj, np.float32)[::4, ::4, ::4] / 255)


def slices(part: int, parts: int) -> list[dict[str, torch.Tensor]]:
    """Return slices with tissue labels, in the planes that belong to a part."""
    head, grey, white = volume("t1"), volume("gm"), volume("wm")
    tissue = (grey > 0.5).long() + 2 * (white > 0.5).long()
    found = []
    for axis in range(len(PLANES))[part::parts]:
        cuts = zip(head.unbind(axis), tissue.unbind(axis), strict=True)
        found += [
            {"image": image[None] ** CONTRASTS[axis], "label": label[None]}
            for image, label in cuts
            if (label > 0).float().mean() > LEAST_TISSUE
        ]
    return found

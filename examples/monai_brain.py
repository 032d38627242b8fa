"""Three hospitals learn to tell grey from white matter: MONAI and one handler.

Each site sees brains in a plane and with a contrast of its own.  Honestly: no package
ships scans of many people with labels, so this is one average brain (the MNI ICBM152
template of 152 people), cut into sagittal, coronal and axial slices, and the scanners'
contrast, shading and noise are simulated.  The tissue labels are the template's own.

Data: ICBM 2009a symmetric, T1 with grey and white matter maps (MNI's permissive
licence), read from the package `nilearn` (BSD-3).

    pip install --no-deps -r examples/requirements.txt
    flare simulate examples/monai_brain.py --sites 3 --rounds 10 --baselines
    FLARE_SITE=off python examples/monai_brain.py       # all slices in one place
"""

import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import DataLoader, Dataset, set_track_meta
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, NormalizeIntensity, ResizeWithPadOrCrop
from monai.utils import set_determinism

import flare_core
from flare_adapters.monai import FLHandler

ROUNDS, STEPS = 10, 10
PLANES = ("sagittal", "coronal", "axial")  # cut across axis 0, 1, 2 of the volume
SIZE = (96, 112)
LEAST_TISSUE = 0.08  # of a slice; there is little to learn at the ends
Slices = list[dict[str, Any]]
Volume = npt.NDArray[Any]


def volume(kind: str) -> Volume:
    """Return a map of the template at 2 mm, values from 0 to 1."""
    package = distribution("nilearn")  # we read files of it, and import nothing
    name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    image: Any = nib.load(str(package.locate_file(f"nilearn/datasets/data/{name}")))
    return np.asarray(image.dataobj)[::2, ::2, ::2].astype(np.float32) / 255


def scanner(plane: str, image: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Return a slice as a hospital's scanner would show it."""
    across, along = torch.linspace(1.2, 0.8, SIZE[0]), torch.linspace(0.7, 1.3, SIZE[1])
    if plane == "sagittal":
        image = image**0.6 * across[:, None] + 0.02 * torch.randn(SIZE, generator=noise)
    elif plane == "coronal":
        image = image**1.6 * along + 0.03 * torch.randn(SIZE, generator=noise)
    else:
        image = image + 0.01 * torch.randn(SIZE, generator=noise)
    return NormalizeIntensity()(image)


def slices(plane: str, t1: Volume, tissue: Volume) -> tuple[Slices, Slices]:
    """Return the training and the test slices of a plane, with their tissue labels.

    Neighbours look alike: every fourth slab of 6 slices is for testing.
    """
    frame, noise = ResizeWithPadOrCrop(SIZE), torch.Generator().manual_seed(0)
    train: Slices = []
    test: Slices = []
    axis = PLANES.index(plane)
    for place in range(t1.shape[axis]):
        image, label = t1.take(place, axis)[None], tissue.take(place, axis)[None]
        if (label > 0).mean() > LEAST_TISSUE:
            shown = scanner(plane, frame(image), noise)
            sample = {"image": shown, "label": frame(label)}
            (test if place // 6 % 4 == 3 else train).append(sample)
    return train, test


def load(index: int, count: int) -> tuple[Slices, Slices]:
    """Return the slices a site trains on, and those all sites are scored on.

    A site keeps its own slices to itself.  But in a simulation we may look at
    everybody's test slices, so that the model of one site, the federation's and that of
    all data together are scored on the same thing.
    """
    t1, grey, white = volume("t1"), volume("gm"), volume("wm")
    tissue = np.where(grey >= white, 1, 2) * (np.maximum(grey, white) > 0.5) * (t1 > 0)
    data = {plane: slices(plane, t1, tissue) for plane in PLANES}
    mine = PLANES[index::count]  # count is 1 where there is no federation
    if not mine:
        sys.exit(f"there are slices for {len(PLANES)} sites, not for {count}")
    train = [sample for plane in mine for sample in data[plane][0]]
    return train, [sample for _, test in data.values() for sample in test]


def tissue_network() -> UNet:
    """Return a network of 12,253 weights: one channel in, three kinds of tissue out.

    It has instance normalisation, no BatchNorm: there are no running statistics of
    one site's scanner to average.
    """
    return UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=3,
        channels=(8, 16, 32),
        strides=(2, 2),
    )


def main() -> None:
    """Train at one site."""
    site = flare_core.site()
    set_determinism(seed=0)
    set_track_meta(False)  # plain tensors will do
    train, test = load(site.index, site.count)
    network = tissue_network()
    one_hot = AsDiscreted(("pred", "label"), argmax=(True, False), to_onehot=3)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(test), batch_size=16),
        network=network,
        postprocessing=one_hot,
        key_val_metric={
            "val_mean_dice": MeanDice(
                include_background=False,
                output_transform=from_engine(["pred", "label"]),
            )
        },
    )
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=ROUNDS,
        epoch_length=STEPS,
        train_data_loader=DataLoader(Dataset(train), batch_size=8, shuffle=True),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-2),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        train_handlers=[
            FLHandler(evaluator=evaluator, every_n_steps=STEPS),
            ValidationHandler(interval=1, validator=evaluator),
        ],
    )
    trainer.run()
    print(f"mean Dice {evaluator.state.metrics['val_mean_dice']:.3f}")
    path = Path(site.folder) / f"model-{site.name}.pt"
    torch.save(network.state_dict(), path)
    print(f"tissue_network().load_state_dict(torch.load({str(path)!r}))")


if __name__ == "__main__":
    main()

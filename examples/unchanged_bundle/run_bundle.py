"""A MONAI Bundle as anybody writes it, and federated without changing a word.

It learns to tell grey from white matter.  A hospital is a plane that it cuts brains in,
with a contrast of its own: ``--part 1 --parts 3`` trains on the second of three; by
default it trains on all of them.  This script is ``python -m monai.bundle run``, for
those who start scripts rather than modules.

Data: the average brain ICBM 2009a symmetric, T1 with grey and white matter maps (MNI's
permissive licence), read from the package `nilearn` (BSD-3).

    pip install --no-deps -r examples/requirements.txt
    cd examples/unchanged_bundle
    python -m monai.bundle run --config_file configs/train.json     # all in one place
    flare simulate run_bundle.py --sites 3 --rounds 8 \
        -- --config_file configs/train.json --part {index} --parts {count}
"""

from fire import Fire
from monai.bundle import run

if __name__ == "__main__":
    Fire(run)

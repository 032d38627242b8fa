"""The job for NVIDIA FLARE, by its recipe for FedAvg."""

import argparse

from initial import InitialModel
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe import ProdEnv, SimEnv
from nvflare.recipe.fedavg import FedAvgRecipe


def main() -> None:
    """Run the job in the simulator, or submit it with an admin's start-up kit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder")
    parser.add_argument("--kit")
    for name in ("sites", "rounds", "tensors", "rows", "columns"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    recipe = FedAvgRecipe(
        name="peers",
        model_persistor=InitialModel(
            options.folder, options.tensors, options.rows, options.columns
        ),
        framework=FrameworkType.NUMPY,
        min_clients=options.sites,
        num_rounds=options.rounds,
        train_script="client.py",
        train_args=f"--folder {options.folder}",
        server_memory_gc_rounds=5,  # what its guide to memory recommends
    )
    environment = (
        ProdEnv(startup_kit_location=options.kit, login_timeout=30)
        if options.kit
        else SimEnv(num_clients=options.sites, workspace_root=f"{options.folder}/ws")
    )
    recipe.execute(environment).get_result()


if __name__ == "__main__":
    main()

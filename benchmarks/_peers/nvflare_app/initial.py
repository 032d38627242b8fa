"""The server's initial model for NVIDIA FLARE, and no saving of later ones.

Its own persistor for NumPy knows models of one array only.
"""

import os
from pathlib import Path

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor


class InitialModel(ModelPersistor):
    """Makes a model of random numbers, and notes the number of the server's process.

    Args:
        folder: Where it is noted.
        tensors: Tensors of the model.
        rows: Rows of each.
        columns: Columns of each.
    """

    def __init__(self, folder: str, tensors: int, rows: int, columns: int) -> None:
        super().__init__()
        self.folder = folder
        self.tensors = tensors
        self.rows = rows
        self.columns = columns

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """Return the model."""
        del fl_ctx
        Path(self.folder, "server.pid").write_text(str(os.getpid()))
        rng = np.random.default_rng(0)
        weights = {
            f"tensor_{index}": rng.random((self.rows, self.columns), np.float32)
            for index in range(self.tensors)
        }
        weights["tensor_0"][0, 0] = 0
        return make_model_learnable(weights, {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Save nothing: the other frameworks do not either, between rounds."""

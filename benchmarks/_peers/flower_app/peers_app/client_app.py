"""A client of Flower: adds its number to the global model in each round."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the model after training."""
    round_number = int(message.content["config"]["server-round"]) - 1
    weights = {name: a.numpy() for name, a in message.content["arrays"].items()}
    index = int(context.node_config["partition-id"])
    notes = Path(context.run_config["folder"], f"site-{index}.rounds")
    with notes.open("a") as file:
        element = weights["tensor_0"][0, 0]
        file.write(f"{round_number} {time.monotonic_ns()} {element}\n")
    number = np.float32(index + 1)
    trained = {name: Array(array + number) for name, array in weights.items()}
    content = RecordDict(
        {"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content=content, reply_to=message)

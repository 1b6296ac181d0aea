"""The ClientApp, as Flower's quickstart for PyTorch writes it."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from task import Net, load_data, train

app = ClientApp()


@app.train()
def train_on_node(message: Message, context: Context) -> Message:
    """Train the model of a message on the node's rows, and answer with it."""
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    folder, size = str(context.node_config["data-folder"]), int(context.run_config["batch-size"])
    batches = load_data(folder, size)
    loss = train(model, batches, float(context.run_config["learning-rate"]))
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(batches.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)

"""The client as a Flower ClientApp: what runs where the data is, or in Flower's simulation."""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from omegaconf import OmegaConf

from heliotrope.config import Run, from_yaml
from heliotrope.data import load
from heliotrope.tasks import task_of

from .client import Clients, evaluate_client, train_client
from .messages import content_of, evaluate_reply, train_reply
from .setup import assemble, divide

__all__ = ["client_app"]


def client_app(run: Run) -> ClientApp:
    """Return the app of every client of `run`.

    Which client a node is, is its `node_config["partition-id"]`. Replies are those of the
    simulation, so any Flower strategy aggregates them.
    """
    text = OmegaConf.to_yaml(OmegaConf.structured(run))
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        weights, order = content_of(message)
        stack = train_client(_clients(text), weights, order, _client(context))
        return train_reply(stack.rows()[0], message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        weights, _ = content_of(message)
        return evaluate_reply(evaluate_client(_clients(text), weights, _client(context)), message)

    return app


def _client(context: Context) -> int:
    return int(context.node_config["partition-id"])


@lru_cache(maxsize=1)  # a process serves many messages of one run
def _clients(text: str) -> Clients:
    run = from_yaml(text)
    dataset = load(run.data, run.seed)
    task = task_of(dataset, run.loss.label_smoothing)
    return assemble(run, task, dataset.train, divide(run, dataset))

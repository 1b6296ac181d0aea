"""The client as a Flower ClientApp: what runs where the data is, or in Flower's simulation."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from omegaconf import OmegaConf

from heliotrope.config import Run, from_yaml
from heliotrope.data import load
from heliotrope.errors import ConfigError, MessageError
from heliotrope.tasks import task_of

from ..attacks.kinds import Collusion
from ..attacks.names import attack_of
from ..client_state import ClientStates
from ..engine.client_updates import ClientUpdates
from ..engine.context import TrainingContext, assemble, divide, poisoned, prepared_for
from ..engine.sequential import evaluate_client, train_client
from ..engine.start_loss import start_loss
from ..privacy.canaries import with_canary_clients
from ..privacy.names import record_of
from ..secure_aggregation.names import secure_aggregation_of
from .local_guard import LEDGER, SERVERS_NOISE, LocalGuard, local_of
from .messages import content_of, evaluate_reply, read_arrays, to_record, train_reply
from .secure_client import secure_aggregation_mod

__all__ = ["client_app"]

_STATE = "heliotrope.client-state"  # in a node's own context, which Flower keeps there
_PRIVACY = "privacy"  # in a reply: what the client says of its noise


def client_app(run: Run) -> ClientApp:
    """Return the app of every client of `run`.

    Which client a node is, is its `node_config["partition-id"]`. Replies are those of the
    simulation, so any Flower strategy aggregates them. Under secure aggregation they are masked,
    for a `SecureGrid` of the server.

    With `federated/privacy=local` a client adds noise by itself, from the operating system's
    cryptographic generator, and tells nothing else; what it has spent over all runs is in the file
    `node_config["privacy-ledger"]`. With the other kinds that protect clients, the server adds
    noise. What a reply's record `privacy` says.

    Raises `ConfigError` for attackers who know the updates of others, and for a local noise that
    follows from a target: a deployed client knows neither those nor how many rounds there will be;
    and for clients that protect each example, whose accounts and noise are a simulation's.
    """
    if record_of(run.federated) is not None:
        raise ConfigError(
            "federated/privacy=record keeps the clients' accounts, and draws their noise from a "
            "seed, in a simulation: a deployed client cannot do so yet. Simulate it with python -m "
            "federated, or set federated/privacy=none."
        )
    attack = attack_of(run.federated)
    if isinstance(attack, Collusion):
        raise ConfigError(
            f"federated/attack={attack.name} needs attackers who know what the other clients of a "
            "round send, and a deployed client does not. Simulate it with python -m federated, or "
            "set federated/attack=sign_flip, scaling, label_flip, backdoor or none."
        )
    local = local_of(run.federated)
    text = OmegaConf.to_yaml(OmegaConf.structured(run))
    secure = secure_aggregation_of(run.federated) is not None
    app = ClientApp(mods=[secure_aggregation_mod] if secure else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        weights, instruction = content_of(message)
        training, client = _training_context(text), _client(context)
        guard = None
        if local is not None:
            clients = len(training.population.training())
            guard = LocalGuard(local, clients, context.state, _ledger(context))
            instruction = guard.admit(instruction)
        instruction = replace(instruction, states=_states(context))
        stack = train_client(training, weights, instruction, client)
        updates = ClientUpdates.of(training, deployed=True)
        stack = updates(stack, weights, instruction, rounded=True)
        loss = (
            start_loss(training, weights, instruction, client) if instruction.start_loss else None
        )
        if stack.states:
            context.state[_STATE] = to_record({n: v[0] for n, v in stack.states.items()})
        (update,) = stack.rows()
        if guard is not None:
            update = replace(update, numbers={})
        reply = train_reply(update, message, loss, tells_loss=guard is None)
        if run.federated.privacy.name != "none":
            theirs = ConfigRecord({"noise-source": SERVERS_NOISE})
            reply.content[_PRIVACY] = theirs if guard is None else guard.told()
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        if local is not None:
            raise MessageError(
                "the server asks for an evaluation, which federated/privacy=local would have to "
                "tell without noise"
            )
        weights, _ = content_of(message)
        training, client = _training_context(text), _client(context)
        model = training.fresh_model(weights, _states(context), client)
        metrics = evaluate_client(training, model, client)
        return evaluate_reply(metrics, message)

    return app


def _client(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _ledger(context: Context) -> Path | None:
    """Return where the client counts what it spends over runs; None if its node names no file."""
    named = context.node_config.get(LEDGER)
    return None if named is None else Path(str(named))


def _states(context: Context) -> ClientStates | None:
    """Return what the client has kept; None if it keeps nothing yet, or at all."""
    if _STATE not in context.state:
        return None
    kept = read_arrays(context.state.array_records[_STATE])
    return ClientStates((_client(context),), {name: v[None] for name, v in kept.items()})


@lru_cache(maxsize=1)  # a process serves many messages of one run
def _training_context(text: str) -> TrainingContext:
    run = from_yaml(text)
    if run.data.fit == "private":
        raise ConfigError(
            "data.fit=private needs the sums of all clients' data, which deployed clients do not "
            "tell yet. Set data.fit=none."
        )
    dataset = load(run.data, run.seed, task=run.task_name)
    task = task_of(dataset, run)
    partition = divide(run, dataset)
    clients = with_canary_clients(partition, run.audit.canaries, run.seed)
    context = assemble(run, task, prepared_for(partition, dataset), clients)
    return poisoned(context, dataset)

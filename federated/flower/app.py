"""The client as a Flower ClientApp: what runs where the data is, or in Flower's simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from omegaconf import OmegaConf
from torch import Tensor

from heliotrope.config import Run, from_yaml
from heliotrope.data import load
from heliotrope.errors import ConfigError, DataError, MessageError
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
from ..updates import Instruction, Stack, Update, Weights
from .local_guard import LEDGER, SERVERS_NOISE, LocalGuard, local_of
from .messages import (
    TRAINING,
    content_of,
    evaluate_reply,
    read_arrays,
    to_record,
    train_reply,
    training_record,
)
from .node_data import FOLDER, node_context
from .node_state import RUN, NodeState
from .secure_client import secure_aggregation_mod

__all__ = ["client_app"]

_STATE = "heliotrope.client-state"  # in a node's own context, which Flower keeps there
_PRIVACY = "privacy"  # in a reply: what the client says of its noise


def client_app(run: Run, preparation: str | None = None) -> ClientApp:
    """Return the app of every client of `run`.

    With a `preparation`, the JSON of `Preparation.to_json`, a node has only its own rows: those of
    the folder `node_config["data-folder"]`, where its state is kept, too. Without it each node
    loads all data, and which client it is, is its `node_config["partition-id"]`.

    Replies are those of the simulation, so any Flower strategy aggregates them. Under secure
    aggregation they are masked, for a `SecureGrid` of the server.

    With `federated/privacy=local` a client adds noise by itself, from the operating system's
    cryptographic generator, and tells nothing else; what it has spent over all runs is in the file
    `node_config["privacy-ledger"]`. With the other kinds that protect clients, the server adds
    noise. What a reply's record `privacy` says.

    Raises `ConfigError` for attackers who know the updates of others, and for a local noise that
    follows from a target: a deployed client knows neither those nor how many rounds there will be;
    and for clients that protect each example, whose accounts and noise are a simulation's.
    """
    _check_deployable(run)
    client = _Client(run, preparation)
    app = ClientApp(mods=[secure_aggregation_mod] if client.masked else [])
    app.train()(client.train)
    app.evaluate()(client.evaluate)
    return app


class _Client:
    """What a client does with the messages of one run; see `client_app`."""

    def __init__(self, run: Run, preparation: str | None) -> None:
        self._private = run.federated.privacy.name != "none"
        self._local = local_of(run.federated)
        self._text = OmegaConf.to_yaml(OmegaConf.structured(run))
        self._preparation = preparation
        self.masked = secure_aggregation_of(run.federated) is not None

    def train(self, message: Message, context: Context) -> Message:
        """Train on the node's data as the message asks, and answer with the update."""
        weights, instruction = content_of(message)
        node = self._node(context)
        guard = None
        if self._local is not None:
            guard = LocalGuard(self._local, node.clients, context.state, _ledger(context, node))
            instruction = guard.admit(instruction)
        kept, server_round = node.state(message, context), instruction.server_round
        instruction = replace(instruction, states=_states(kept, server_round, node.client))
        stack = self._trained(node, weights, instruction)
        asked = instruction.start_loss
        loss = start_loss(node.training, weights, instruction, node.client) if asked else None
        if stack.states:
            kept.keep(server_round, {name: value[0] for name, value in stack.states.items()})
        (update,) = stack.rows()
        return self._reply(update, message, loss, guard)

    def _trained(self, node: _Node, weights: Weights, instruction: Instruction) -> Stack:
        """Return the client's update as it is sent, a stack of one."""
        stack = train_client(node.training, weights, instruction, node.client)
        if self.masked:  # what is masked is not rounded to the model's types before
            stack = replace(stack, arrays={n: _unrounded(v) for n, v in stack.arrays.items()})
        updates = ClientUpdates.of(node.training, deployed=True)
        return updates(stack, weights, instruction, rounded=True)

    def _reply(
        self, update: Update, message: Message, loss: float | None, guard: LocalGuard | None
    ) -> Message:
        """Return an update as a reply, with what its client may say beside it."""
        if guard is not None:
            update = replace(update, numbers={})
        reply = train_reply(update, message, loss, tells_loss=guard is None)
        if guard is None:
            reply.content[TRAINING] = training_record(update)
        if self._private:
            theirs = ConfigRecord({"noise-source": SERVERS_NOISE})
            reply.content[_PRIVACY] = theirs if guard is None else guard.told()
        return reply

    def evaluate(self, message: Message, context: Context) -> Message:
        """Evaluate the model of a message on the rows that the node holds out."""
        if self._local is not None:
            raise MessageError(
                "the server asks for an evaluation, which federated/privacy=local would have to "
                "tell without noise"
            )
        weights, instruction = content_of(message)
        node = self._node(context)
        # Of the round's state, too: an evaluation follows the training of its round.
        number, kept = instruction.server_round + 1, node.state(message, context)
        model = node.training.fresh_model(weights, _states(kept, number, node.client), node.client)
        metrics = evaluate_client(node.training, model, node.client)
        return evaluate_reply(metrics, message)

    def _node(self, context: Context) -> _Node:
        """Return what the node has: the rows of its folder alone, or all data."""
        if self._preparation is None:
            training = _training_context(self._text)
            client = int(context.node_config["partition-id"])
            return _Node(training, client, len(training.population.training()), None)
        folder = context.node_config.get(FOLDER)
        if folder is None:
            raise DataError(
                f"this node's config has no {FOLDER}. Start its SuperNode with --node-config "
                f"'{FOLDER}=\"/a/folder\"', which heliotrope deploy has written."
            )
        training, who = node_context(self._text, self._preparation, Path(str(folder)))
        return _Node(training, 0, who.clients, Path(str(folder)))


def _unrounded(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _check_deployable(run: Run) -> None:
    """Raise `ConfigError` for what clients cannot do where each is alone."""
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


@dataclass(frozen=True)
class _Node:
    """What a node trains with.

    Parameters
    ----------
    training, client
        The data that it has, and which client of those it is.
    clients
        How many train in all.
    folder
        Of its own data; None if it loads all.
    """

    training: TrainingContext
    client: int
    clients: int
    folder: Path | None

    def state(self, message: Message, context: Context) -> NodeState | _FlowersState:
        """Return where it keeps its state: in its folder, or else with its SuperNode."""
        (config,) = message.content.config_records.values()
        if self.folder is None or RUN not in config:
            return _FlowersState(context)
        every = self.training.federated.checkpoint_every
        return NodeState(self.folder, str(config[RUN]), every)


class _FlowersState:
    """A client's state in its node's context, which Flower keeps in memory for one run."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def before(self, server_round: int) -> dict[str, Tensor] | None:
        """Return what was kept last, whatever the round; None if nothing was."""
        del server_round
        if _STATE not in self._state:
            return None
        return read_arrays(self._state.array_records[_STATE])

    def keep(self, server_round: int, state: Mapping[str, Tensor]) -> None:
        """Keep what a round has left."""
        del server_round
        self._state[_STATE] = to_record(state)


def _states(kept: NodeState | _FlowersState, server_round: int, client: int) -> ClientStates | None:
    """Return what the client has kept before a round; None if it keeps nothing yet, or at all."""
    state = kept.before(server_round)
    if state is None:
        return None
    return ClientStates((client,), {name: value[None] for name, value in state.items()})


def _ledger(context: Context, node: _Node) -> Path | None:
    """Return where the client counts what it spends over runs.

    A file that its node names, or one in its data folder; None if it has neither.
    """
    named = context.node_config.get(LEDGER)
    if named is not None:
        return Path(str(named))
    return None if node.folder is None else node.folder / f"{LEDGER}.jsonl"


@lru_cache(maxsize=1)  # a process serves many messages of one run
def _training_context(text: str) -> TrainingContext:
    run = from_yaml(text)
    if run.data.fit == "private":
        raise ConfigError(
            "data.fit=private needs the sums of all clients' data, which deployed clients do not "
            "tell yet. Set data.fit=none."
        )
    dataset = load(run.data, run.seed, task=run.task_name, fold=run.data_fold)
    task = task_of(dataset, run)
    partition = divide(run, dataset)
    clients = with_canary_clients(partition, run.audit.canaries, run.seed)
    context = assemble(run, task, prepared_for(partition, dataset), clients)
    return poisoned(context, dataset)

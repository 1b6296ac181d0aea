"""NodePool: the clients of a round are trained on the SuperNodes that hold their data.

To the round loop it is one more pool. Which client a SuperNode is, says the name under which its
public key is registered with the SuperLink: nobody without the private key can answer for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from heliotrope.errors import MessageError
from heliotrope.metrics import GroupedMetrics, Metrics
from heliotrope.system.resources import available_cpus, threads_of

from ..aggregation import Reduction
from ..algorithms import ClientAlgorithm
from ..client_state import ClientStates
from ..engine.client_metrics import Evaluations
from ..engine.context import TrainingContext
from ..engine.execution import Decision, ExecutionPlan
from ..engine.thread_lane import Reply
from ..flower.messages import (
    START_LOSS,
    TRAINING,
    content_to_train,
    only,
    sums_of,
    with_training_record,
)
from ..flower.node_state import RUN
from ..flower.secure_play import SecurePlay
from ..flower.vetting import vetted_evaluations, vetted_updates
from ..pools.base import Pool
from ..pools.cohort_worker import CohortWorker
from ..secure_rounds import Opened, SecureRound
from ..updates import Failure, Instruction, Stack, Weights

__all__ = ["NodePool", "node_name"]

_log = logging.getLogger(__name__)
_POLL = 0.2  # seconds between two looks for replies


def node_name(client: int) -> str:
    """Return the name under which the SuperNode of a client is registered."""
    return f"client-{client}"


class NodePool(Pool):
    """Trains and evaluates clients on their nodes, and the central splits here.

    Parameters
    ----------
    context
        Of the run.
    grid
        Flower's, of a SuperLink.
    run_name
        By which nodes know the state that they keep.
    """

    keeps_states = True  # each node those of its client

    def __init__(self, context: TrainingContext, grid: Grid, run_name: str) -> None:
        self._context, self._grid, self._run_name = context, grid, run_name
        self._last_round = 0
        self._here = CohortWorker(context, threads_of(available_cpus()))

    def decide(self, cohort: int, algorithms: tuple[ClientAlgorithm, ...]) -> Decision:
        """Each node trains its own client: there is nothing to batch."""
        del cohort, algorithms
        asked = self._context.federated.client_training
        if asked not in ("auto", "sequential"):
            return Decision(None, {asked: "each node trains the one client whose data it has"})
        return Decision(ExecutionPlan("sequential", 1), {})

    def await_nodes(self, seconds: float, say: Callable[[str], None]) -> None:
        """Wait for the node of every client; after `seconds`, go on without those that lack."""
        wanted = {node_name(client): client for client in self._context.population.training()}
        deadline, said = time.monotonic() + seconds, False
        while lacking := sorted(wanted.keys() - self._nodes().keys()):
            if time.monotonic() > deadline:
                say(f"beginning without {', '.join(lacking)}")
                return
            if not said:
                say(f"waiting for {len(lacking)} of {len(wanted)} nodes")
                said = True
            time.sleep(_POLL)
        say(f"{len(wanted)} nodes are connected")

    def _nodes(self) -> dict[str, int]:
        """Return the ids of the nodes that are connected now, by name."""
        nodes: Any = self._grid
        return {node.name: node.node_id for node in nodes.get_nodes()}

    def train(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        reduce: bool,
    ) -> list[Reply]:
        del execution
        starts = instruction.starts(weights)
        contents = dict.fromkeys(cohort, self._content(weights, instruction))
        replies, clients, failures = self._ask(contents, MessageType.TRAIN)
        # Clients answer in the types of the model, whatever the strategy computes in.
        own = self._context.global_weights
        sent = {name: v.to(own[name].dtype) if name in own else v for name, v in starts.items()}
        good, rejected = vetted_updates(replies, lambda _: sent)
        failures += [replace(failure, client=clients[failure.client]) for failure in rejected]
        reduction = Reduction(starts, self._context.total_weight) if reduce else None
        updates, losses = [], {}
        for message, stack in sorted(good, key=lambda pair: clients[pair[1].clients[0]]):
            client = clients[stack.clients[0]]
            try:
                told = self._told(message, replace(stack, clients=(client,)), client)
            except MessageError as error:
                failures.append(Failure(client, f"update rejected: {error}"))
                continue
            metrics = only(message.content.metric_records, "metric")
            if START_LOSS in metrics:
                losses[client] = float(metrics[START_LOSS])  # type: ignore[arg-type]
            if reduction is None:
                updates += told.rows()
            else:
                failures += reduction.add(told)
        partial = None if reduction is None else reduction.partial()
        return [Reply(updates, _sorted(failures), partial, losses)]

    def train_secretly(
        self,
        secret: SecureRound,
        weights: Weights,
        instruction: Instruction,
        execution: ExecutionPlan,
    ) -> Opened:
        """Play the protocol with the nodes; those that fill up the cohort are sent no model."""
        del execution
        failures: list[Failure] = []

        def ask(contents: Mapping[int, RecordDict]) -> Iterator[tuple[int, Message | str]]:
            replies, clients, silent = self._ask(contents, MessageType.TRAIN)
            for failure in silent:
                yield failure.client, failure.reason
            for reply in replies:
                yield clients[reply.metadata.src_node_id], reply

        def lose(client: int, reason: str) -> None:
            failures.append(Failure(client, reason))

        content = self._content(weights, instruction)
        contents = {c: content if c in secret.cohort else RecordDict() for c in secret.clients}
        play = SecurePlay(secret.setup, secret.quantizer, secret.layout.told, ask, lose)
        total, included = play(contents)
        heard = [client for client in included if client in secret.cohort]
        return secret.opened(total, heard, failures, [])

    def _told(self, message: Message, stack: Stack, client: int) -> Stack:
        """Return an update with what the client says beside it; `MessageError` if it may not be.

        Nobody weighs more than its data do, as the server knows them.
        """
        (most,) = self._context.weights_of([client])
        if stack.weights[0] > max(1, most):
            raise MessageError(f"it weighs {stack.weights[0]}, and its data {most}")
        record = message.content.config_records.get(TRAINING)
        return stack if record is None else with_training_record(stack, record)

    def evaluate(
        self, weights: Weights, cohort: Sequence[int], states: ClientStates | None = None
    ) -> Evaluations:
        del states
        contents = dict.fromkeys(cohort, self._content(weights, Instruction(self._last_round)))
        replies, clients, failures = self._ask(contents, MessageType.EVALUATE)
        good, rejected = vetted_evaluations(replies)
        failures += [replace(failure, client=clients[failure.client]) for failure in rejected]
        metric_set, rows = self._context.task.metrics, {}
        for message in good:
            client = clients[message.metadata.src_node_id]
            record = only(message.content.metric_records, "metric")
            sums = sums_of(record)
            if sums.shape != (metric_set.size,):
                failures.append(Failure(client, "evaluation rejected: it has other sums"))
                continue
            rows[client] = sums
        if not rows:
            done = Evaluations.of_nobody(metric_set)
        else:
            order = sorted(rows)
            measured = GroupedMetrics(metric_set, np.stack([rows[client] for client in order]))
            done = Evaluations.of(order, measured)
        return replace(done, failures=_sorted([*done.failures, *failures]))

    def _content(self, weights: Weights, instruction: Instruction) -> RecordDict:
        """Return what nodes are sent, with the name of the run whose state is meant."""
        self._last_round = instruction.server_round
        # Where clients protect themselves, each adds noise of its own, which no server tells.
        content = content_to_train(weights, replace(instruction, noise=None))
        (config,) = content.config_records.values()
        config[RUN] = self._run_name
        return content

    def _ask(
        self, contents: Mapping[int, RecordDict], kind: str
    ) -> tuple[list[Message], Mapping[int, int], list[Failure]]:
        """Send the node of each client its content.

        Return what they answer, the client of each node id, and who has none or did not answer.
        """
        nodes = self._nodes()
        ids = {client: nodes.get(node_name(client)) for client in contents}
        failures = [
            Failure(client, f"its node {node_name(client)} is not connected")
            for client, node in ids.items()
            if node is None
        ]
        clients = {node: client for client, node in ids.items() if node is not None}
        group = str(self._last_round)
        messages = [
            Message(contents[client], dst_node_id=node, message_type=kind, group_id=group)
            for node, client in clients.items()
        ]
        replies = self._replies(messages)
        silent = set(clients) - {reply.metadata.src_node_id for reply in replies}
        failures += [Failure(clients[node], "its node did not answer", "late") for node in silent]
        return replies, clients, failures

    def _replies(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies of nodes that answer within `federated.client_timeout`.

        An error that the SuperLink gives in place of a node's reply is the node's.
        """
        if not messages:
            return []
        ids = self._grid.push_messages(messages)
        pairs = zip(ids, messages, strict=True)
        asked_by_id = {message_id: message for message_id, message in pairs if message_id}
        timeout = self._context.federated.client_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while asked_by_id and (deadline is None or time.monotonic() < deadline):
            for reply in self._grid.pull_messages(list(asked_by_id)):
                asked = asked_by_id.pop(reply.metadata.reply_to_message_id)
                failed = reply.has_error()
                replies.append(Message(reply.error, reply_to=asked) if failed else reply)
            time.sleep(_POLL if asked_by_id else 0)
        return replies

    def evaluate_splits_of(self, weights: Weights, states: ClientStates) -> dict[str, Metrics]:
        raise NotImplementedError("personal weights are refused before: see check_deployable")

    def evaluate_centrally(self, weights: Weights) -> dict[str, Metrics]:
        return self._here.evaluate_centrally(weights)

    def peak_rss_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """Leave the nodes as they are: they belong to others."""


def _sorted(failures: list[Failure]) -> list[Failure]:
    return sorted(failures, key=lambda failure: failure.client)

"""Seconds a round of secure aggregation takes, beside Flower's SecAgg+ workflow in the same run.

    python scripts/benchmarks/secure_aggregation.py --output secure_aggregation.json

All clients and the server take turns in this process, on one thread, over the same grid, which
hands messages on as Flower's records. Nobody trains: a client's update is made beforehand. Timed is
all that both sides do: keys, agreements, shares, masks, and taking them away again. Each pair of
clients agrees on its key twice, and makes its mask twice, once a side, as apart. `lost` clients do
not send their masked input. What comes out is compared with the plain mean.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import numpy as np
import record
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import FitIns, FitRes, Status, ndarrays_to_parameters
from flwr.common.typing import Code
from flwr.compat.common import recorddict_compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid
from heliotrope.federated.flower.messages import become_server, stamp, to_record
from heliotrope.federated.flower.secure_client import secure_aggregation_mod
from heliotrope.federated.flower.secure_grid import SecureGrid
from heliotrope.federated.secure_aggregation.settings import SecAgg
from numpy.typing import NDArray
from rich.table import Table
from running import wait_until_idle

Vector = NDArray[np.float32]
Answer = Callable[[Message, Context], Message]
_WEIGHT = 100  # examples of each client


class LocalGrid(Grid):
    """Hands messages to clients of this process; some are `lost` at a message that trains."""

    def __init__(self, answer: Answer, clients: Iterable[int], lost: int) -> None:
        self._answer = answer
        self._contexts = {c: Context(1, c, {}, RecordDict(), {}) for c in clients}
        self._lost = set(list(self._contexts)[:lost])

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - part of Flower's interface
    ) -> list[Message]:
        replies = []
        for message in messages:
            client = stamp(message).metadata.dst_node_id
            trains = len(message.content.array_records) > 0
            if client in self._lost and (trains or client not in self._contexts):
                replies.append(Message(Error(code=1, reason="lost"), reply_to=message))
                continue
            message.content = RecordDict(  # which several share, and clients change
                {name: _copied(each) for name, each in message.content.items()}
            )
            replies.append(self._answer(message, self._contexts[client]))
        return replies

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def _none(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    push_messages = pull_messages = create_message = set_run = run = _none  # type: ignore[assignment]


def _copied(part: Any) -> Any:
    return ConfigRecord(dict(part)) if isinstance(part, ConfigRecord) else part


def ours(updates: list[Vector], neighbours: int, threshold: int, lost: int) -> tuple[float, Vector]:
    """Return the seconds of a round of ours, and the mean that was opened."""
    clients, size = len(updates), len(updates[0])

    def train(message: Message, _: Context) -> Message:
        arrays = to_record({"w": torch.from_numpy(updates[message.metadata.dst_node_id])})
        metrics = MetricRecord({"num-examples": _WEIGHT})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    grid = LocalGrid(
        lambda message, context: secure_aggregation_mod(message, context, train),
        range(clients),
        lost,
    )
    secure = SecureGrid(
        grid,
        SecAgg(threshold, neighbours, 32, 8.0),
        _WEIGHT,
        told=(),
    )
    content = RecordDict(
        {"arrays": to_record({"w": torch.zeros(size)}), "config": ConfigRecord({"server-round": 1})}
    )
    messages = [
        Message(content, dst_node_id=client, message_type="train", group_id="1")
        for client in range(clients)
    ]
    started = time.perf_counter()
    first, *_ = secure.send_and_receive(messages)
    seconds = time.perf_counter() - started
    (arrays,) = first.content.array_records.values()
    return seconds, arrays["w"].numpy()


class _Strategy(FedAvg):
    """Asks all clients, without their properties, and keeps the mean."""

    proxies: list[GridClientProxy]

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        del server_round, client_manager
        return [(proxy, FitIns(parameters, {})) for proxy in self.proxies]


def flowers(
    updates: list[Vector], neighbours: int, threshold: int, lost: int
) -> tuple[float, Vector]:
    """Return the seconds of a round of Flower's workflow, and the mean that was opened."""
    clients, size = len(updates), len(updates[0])

    def train(message: Message, _: Context) -> Message:
        parameters = ndarrays_to_parameters([updates[message.metadata.dst_node_id]])
        done = FitRes(Status(Code.OK, ""), parameters, _WEIGHT, {})
        return Message(recorddict_compat.fitres_to_recorddict(done, False), reply_to=message)

    grid = LocalGrid(
        lambda message, context: secaggplus_mod(message, context, train), range(clients), lost
    )
    strategy = _Strategy()
    strategy.proxies = [GridClientProxy(client, grid, 1) for client in range(clients)]
    zeros = ndarrays_to_parameters([np.zeros(size, np.float32)])
    state = RecordDict(
        {
            MAIN_CONFIGS_RECORD: ConfigRecord({Key.CURRENT_ROUND: 1}),
            MAIN_PARAMS_RECORD: recorddict_compat.parameters_to_arrayrecord(zeros, False),
        }
    )
    context = LegacyContext(
        Context(1, 1, {}, state, {}), strategy=strategy, client_manager=SimpleClientManager()
    )
    workflow = SecAggPlusWorkflow(
        neighbours + 1 if neighbours < clients - 1 else 1.0,
        threshold,
        max_weight=_WEIGHT,
        clipping_range=8.0,
    )
    started = time.perf_counter()
    workflow(grid, context)
    seconds = time.perf_counter() - started
    opened: ArrayRecord = context.state.array_records[MAIN_PARAMS_RECORD]
    (array,) = opened.values()
    return seconds, array.numpy()


_PEERS = {"heliotrope": ours, "flower": flowers}


def main() -> int:
    """Measure, print a table, and store everything."""
    options = _options()
    become_server()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    given = {name: str(value) for name, value in vars(options).items()}
    said = record.begin() | {"options": given, "results": []}
    generator = np.random.default_rng(0)
    updates = [
        generator.normal(0, 0.1, options.parameters).astype(np.float32)
        for _ in range(options.clients)
    ]
    wait_until_idle(options.patience)
    for neighbours in options.neighbours:
        for lost in options.lost:
            _measure(options, updates, neighbours, lost, said["results"])
    record.console().print(_table(said["results"]))
    record.finish(said, options.output)
    return 0


def _measure(
    options: argparse.Namespace,
    updates: list[Vector],
    neighbours: int,
    lost: int,
    results: list[dict[str, Any]],
) -> None:
    degree = min(neighbours, options.clients - 1)
    threshold = (degree + 1) // 2 + 1  # shares that open a secret, of both
    wanted = np.mean(updates[lost:], axis=0)
    seconds: dict[str, list[float]] = {peer: [] for peer in options.peers}
    errors: dict[str, float] = {}
    for _ in range(options.repeats):
        for peer in options.peers:
            needed = options.clients // 2 + 1 if peer == "heliotrope" else threshold
            took, mean = _PEERS[peer](updates, degree, needed, lost)
            seconds[peer].append(took)
            errors[peer] = float(np.abs(mean - wanted).max())
    results += [
        {"peer": peer, "neighbours": degree, "lost": lost, "seconds": seconds[peer], "error": error}
        for peer, error in errors.items()
    ]


def _options() -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=200_000)
    parser.add_argument("--neighbours", type=_numbers, default=[30, 99])
    parser.add_argument("--lost", type=_numbers, default=[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peers", type=record.names(_PEERS), default=list(_PEERS))
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(title="Seconds a round, medians; both sides, one thread", title_justify="left")
    for column in ("peer", "neighbours", "lost", "seconds", "times ours", "error of the mean"):
        table.add_column(column, justify="left" if column == "peer" else "right")
    base = {
        (each["neighbours"], each["lost"]): median(each["seconds"])
        for each in results
        if each["peer"] == "heliotrope"
    }
    for each in results:
        took = median(each["seconds"])
        reference = base.get((each["neighbours"], each["lost"]))
        ratio = "" if reference is None else f"{took / reference:.1f}"
        numbers = (str(each["neighbours"]), str(each["lost"]), f"{took:.2f}", ratio)
        table.add_row(each["peer"], *numbers, f"{each['error']:.1e}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())

"""A node's own folder: its rows, its state, and what the two of a deployment tell each other."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from numpy.typing import NDArray

from federated.algorithms import ClientMomentum, ControlVariates, FedProx
from federated.components import build_components
from federated.engine.context import divide
from federated.engine.sequential import evaluate_client, train_client
from federated.flower.messages import become_server, content_of, content_to_train, stamp
from federated.flower.node_data import NodeData, node_context, write_node_data
from federated.flower.node_state import NodeState
from federated.updates import Instruction
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.data.columns import Items, Pieces, Raw, Strings, Texts, Values
from heliotrope.errors import DataError, RunFailedError
from tests.support import assert_same_tensors, compose, fresh_seed

_SMALL = ("federated.partition.clients=4", "federated.clients_per_round=3", "model.hidden=[4]")


def _written(run: Run, folder: Path, client: int) -> str:
    """Write the folder of a client as a deployment does; return the preparation."""
    dataset = load(run.data, run.seed, task=run.task_name)
    partition = divide(run, dataset)
    assert dataset.fitting is not None
    who = NodeData(client, int(partition.identities[client]), len(partition))
    write_node_data(folder, who, dataset.fitting.train.subset(partition[client]))
    return json.dumps(dataset.preparation.to_json())


@pytest.mark.parametrize(
    "settings",
    [
        ("experiment=quickstart", "federated.holdout_fraction=0.2"),
        ("experiment=quickstart", "data.fit=per_client", "model.dropout=0.3"),
        ("experiment=heart", "federated.holdout_fraction=0.2"),  # words and missing numbers
        ("experiment=spam",),  # texts
        ("experiment=shakespeare", "model.hidden=8"),  # pieces of one stream
    ],
    ids=["arrays", "per_client", "table", "texts", "stream"],
)
def test_a_node_trains_as_the_simulation_with_nothing_but_its_own_rows(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    run = compose("federated", *settings, f"seed={fresh_seed() % 1000}")
    everything = build_components(run).context
    client = len(everything.population) - 2
    preparation = _written(run, tmp_path / "node", client)
    mine, who = node_context(json.dumps(asdict(run)), preparation, tmp_path / "node")
    assert (who.client, len(mine.train)) == (client, everything.population.partition.sizes[client])
    weights, instruction = everything.global_weights, Instruction(3)
    assert_same_tensors(dict(mine.global_weights), dict(weights))
    here = train_client(mine, weights, instruction, 0)
    there = train_client(everything, weights, instruction, client)
    assert_same_tensors(dict(here.arrays), dict(there.arrays))
    assert (here.weights, here.seen, here.loss_sums) == (there.weights, there.seen, there.loss_sums)
    if run.federated.holdout_fraction:
        ours, theirs = (
            evaluate_client(c, c.fresh_model(weights), n)
            for c, n in ((mine, 0), (everything, client))
        )
        np.testing.assert_array_equal(ours.to_vector(), theirs.to_vector())


def test_a_folder_holds_no_row_of_another_client(tmp_path: Path) -> None:
    stream = np.arange(1, 41, dtype=np.uint8)  # each number is at one place
    pieces = Pieces(stream, np.array([0, 10, 20, 30]), np.array([9, 9, 9, 9]))
    names = ["Ann", "Bob", "Cyd", "Dan"]
    rows = Raw({"piece": pieces, "text": Texts(names), "n": Values(np.arange(4.0))})
    write_node_data(tmp_path, NodeData(0, 0, 2), rows.subset(np.array([1, 3])))
    with np.load(tmp_path / "rows.npz") as arrays:
        kept = {name: values.tolist() for name, values in arrays.items()}
    assert kept["stream/piece"] == [*range(11, 21), *range(31, 41)]
    assert kept["values/n"] == [1.0, 3.0]
    said = (tmp_path / "rows.json").read_text()
    assert [name in said for name in names] == [False, True, False, True]


def test_words_that_only_others_have_stay_with_them(tmp_path: Path) -> None:
    rows = Raw({"town": Strings.of(["Rome", "Oslo", None, "Rome"])})
    write_node_data(tmp_path, NodeData(0, 0, 2), rows.subset(np.array([0, 2])))
    said = (tmp_path / "rows.json").read_text()
    assert "Rome" in said
    assert "Oslo" not in said


def test_a_folder_without_rows_is_named(tmp_path: Path) -> None:
    run = compose("federated", *_SMALL)
    preparation = _written(run, tmp_path / "node", 1)
    text = json.dumps(asdict(run))
    with pytest.raises(DataError, match=r"data-folder=.*empty .*no rows of a client"):
        node_context(text, preparation, tmp_path / "empty")
    for left in (b"PK\x03\x04 cut off", b""):
        (tmp_path / "node" / "rows.npz").write_bytes(left)
        with pytest.raises(DataError, match="no rows of a client"):
            node_context(text, preparation, tmp_path / "node")


def test_data_that_is_read_on_demand_is_refused(tmp_path: Path) -> None:
    items = Items([], np.arange(0), (1,), np.dtype(np.float32))
    with pytest.raises(DataError, match=r"column image .*on demand"):
        write_node_data(tmp_path, NodeData(0, 0, 1), Raw({"image": items}))


def _state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


def test_a_server_that_goes_back_finds_the_state_of_before(tmp_path: Path) -> None:
    kept = NodeState(tmp_path, "ab12", rounds=2)
    assert kept.before(1) is None
    for server_round in range(1, 8):
        kept.keep(server_round, _state(server_round))
    again = NodeState(tmp_path, "ab12", rounds=2)  # the node was started again
    for server_round in (8, 7, 6, 5, 4):  # as far back as two checkpoints
        assert_same_tensors(again.before(server_round) or {}, _state(server_round - 1))
    again.keep(5, _state(50))  # the server does round 5 again: what followed is given up
    assert_same_tensors(again.before(9) or {}, _state(50))
    assert len(list((tmp_path / "state" / "ab12").iterdir())) <= 5
    assert NodeState(tmp_path, "cd34", rounds=2).before(9) is None  # of another run


def test_the_state_of_rounds_that_a_client_missed_is_the_last(tmp_path: Path) -> None:
    kept = NodeState(tmp_path, "ab", rounds=1)
    kept.keep(2, _state(2))
    kept.keep(40, _state(40))
    assert_same_tensors(kept.before(40) or {}, _state(2))


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name of a run"):
        NodeState(tmp_path, "../../etc", 1)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    kept = NodeState(tmp_path, "ab", 1)
    kept.keep(1, _state(1))
    (tmp_path / "state" / "ab" / "1.safetensors").write_bytes(b"cut")
    with pytest.raises(RunFailedError, match=r"1\.safetensors cannot be read"):
        kept.before(2)


def _instructions() -> list[Instruction]:
    plain = Instruction(4)
    controls = ControlVariates({"w": torch.tensor([0.5, -1.0])})
    return [
        plain,
        replace(plain, algorithms=(FedProx(0.25),), lr=0.125),
        replace(plain, algorithms=(ClientMomentum(0.5),), clip=2.0, equal_weights=True),
        replace(plain, algorithms=(controls,), start_loss=True),
    ]


@pytest.mark.parametrize("number", range(4))
def test_what_a_node_reads_is_what_the_server_asks(number: int) -> None:
    become_server()
    asked, weights = _instructions()[number], {"w": torch.tensor([1.0, 2.0])}
    content = content_to_train(weights, asked)
    back, read = content_of(stamp(Message(content, dst_node_id=5, message_type="train")))
    assert_same_tensors(back, weights)
    plain = replace(asked, algorithms=())
    assert replace(read, algorithms=()) == plain
    ours, theirs = (
        [(type(a).__name__, _listed(vars(a))) for a in each.algorithms] for each in (asked, read)
    )
    assert ours == theirs


def _listed(values: dict[str, object]) -> dict[str, object]:
    return {
        name: {key: _numbers(each) for key, each in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }


def _numbers(value: object) -> NDArray[np.float64] | list[float] | object:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def test_states_are_never_sent() -> None:
    from federated.client_state import ClientStates

    with pytest.raises(ValueError, match="not sent"):
        content_to_train({}, replace(Instruction(1), states=ClientStates((0,), {})))

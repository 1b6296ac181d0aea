"""Whatever a ledger's lines hold: entries that can be added up, or a named error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope.errors import LedgerError, RunFailedError
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.mechanisms import CorrelatedSums, Mechanism, fields_of
from heliotrope.privacy.project import Budget, Entry, People, ProjectLedger, Sweep
from heliotrope.privacy.totals import groups, sweeps_of
from tests.fuzzing import examples

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "poisson", "geometric", "correlated", "client"])
)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
_SPENT = ((Mechanism("poisson", 1.0, 10, 100), 3), (CorrelatedSums(2.0, 10, 100, 4, "s"), 5))
_ENTRY = Entry(
    "a",
    "/runs/a",
    "mine",
    "federated",
    "training",
    People("digits", "abc", "client"),
    1e-3,
    _SPENT,
    budget=Budget(8.0, 1e-3),
    sweep=Sweep("/sweep", "geometric", 4.0, 2),
    time=time.time(),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger") / "ledger.jsonl"


def _changed(data: st.DataObject, tree: Any) -> Any:
    """Return JSON of which one value, wherever it is, is another; or without it."""
    *parents, last = data.draw(st.sampled_from(list(_places(tree, ()))))
    node = tree
    for part in parents:
        node = node[part]
    if data.draw(st.booleans()) or isinstance(node, list):
        node[last] = data.draw(_JSON)
    else:
        del node[last]
    return tree


def _places(tree: Any, before: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*before, key))


@examples(150)
@given(st.data())
def test_a_projects_ledger(path: Path, data: st.DataObject) -> None:
    line = _changed(data, json.loads(_ENTRY.to_line()))
    path.write_text(json.dumps(line) + "\n")
    try:
        entries = ProjectLedger(path).entries()
    except LedgerError:
        return
    assert all(count >= 0 for entry in entries for _, count in entry.spent)
    for group in groups(entries):
        assert 0 <= group.delta <= 1
        assert {each.sweep for each in sweeps_of(group, 1e-3)} <= {e.sweep for e in entries}


@examples(150)
@given(st.data())
def test_a_runs_ledger(path: Path, data: st.DataObject) -> None:
    fields = {"release": "round 1", "count": 3, "clients": ["a", "b"]}
    line = _changed(data, {**fields, **fields_of(_SPENT[data.draw(st.integers(0, 1))][0])})
    path.write_text(json.dumps(line) + "\n")
    try:
        ledger = Ledger(path)
    except RunFailedError:
        return
    with closing(ledger):
        for client in (None, *ledger.clients):
            assert all(count > 0 for _, count in ledger.without((), client))

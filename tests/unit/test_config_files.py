"""A mistake in a user's own YAML file: one message with file, line and remedy, and exit 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import Started, type_command

HEADER = "# @package _global_\n"

# What the file holds -> what the message must hold; {file} is the file's path.
SLIPS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "bracket": (
        HEADER + "federated: {rounds: 3\nseed: 1\n",
        ("{file}, line 3, column 5", "flow mapping", "line 2"),
    ),
    "tab": (HEADER + "name: a\n\tseed: 1\n", ("{file}, line 3, column 1", "spaces")),
    "colon": (HEADER + "name: a: b\n", ("{file}, line 2, column 8",)),
    "quote": (HEADER + 'name: "a\nseed: 1\n', ("{file}, line 4", "quoted", "line 2")),
    "twice": (HEADER + "seed: 1\nseed: 2\n", ("{file}, line 3", "duplicate key seed")),
    "two documents": ("a: 1\n---\nb: 2\n", ("{file}, line 2", "document")),
    "latin-1": (HEADER.encode() + b"name: caf\xe9\n", ("{file}, line 2", "0xe9", "UTF-8")),
    "a list": (HEADER + "- a\n- b\n", ("{file}", "key: value")),
    "no header": ("name: a\nseed: 1\n", ("{file}, line 1", "'# @package _global_'")),
    "no header, with defaults": (
        "defaults:\n  - override /model: cnn\nname: a\n",
        ("{file}, line 1", "'# @package _global_'"),
    ),
    "empty": ("", ("{file}, line 1", "'# @package _global_'")),
    "another package": (
        "# @package global\nseed: 1\n",
        ("{file}, line 1", "'# @package _global_'"),
    ),
    "unknown key": (
        HEADER + "name: a\nfederated: {roundz: 3}\n",
        ("{file}, line 3", "federated.roundz", "'federated.rounds'"),
    ),
    "key with dots": (
        HEADER + "federated.rounds: 3\n",
        ("{file}", "federated.rounds", "federated: {rounds: VALUE}"),
    ),
    "wrong type": (
        HEADER + "federated:\n  rounds: x\n",
        ("{file}, line 3", "federated.rounds", "'x'", "whole number"),
    ),
    "no list": (HEADER + "model: {hidden: 3}\n", ("{file}, line 2", "model.hidden", "[128, 64]")),
    "nothing": (HEADER + "model:\n", ("{file}, line 2", "model", "Set a value")),
    "choice as a value": (
        HEADER + "name: a\nmodel: cnn\n",
        ("{file}, line 3", "model", "'- override /model: cnn'"),
    ),
    "strategy as a value": (
        HEADER + "federated: {strategy: fedadam}\n",
        ("{file}, line 2", "'- override /federated/strategy: fedadam'"),
    ),
    "defaults as keys": (
        HEADER + "defaults:\n  override /model: cnn\n",
        ("{file}", "defaults", "'- override /GROUP: CHOICE'"),
    ),
    "no override": (
        HEADER + "defaults:\n  - /model: cnn\n",
        ("{file}", "model", "'- override /model: CHOICE'"),
    ),
    "no slash": (
        HEADER + "defaults:\n  - override model: cnn\n",
        ("{file}", "'- override /model: CHOICE'"),
    ),
    "a dot for a slash": (
        HEADER + "defaults:\n  - override /federated.strategy: fedadam\n",
        ("{file}", "'- override /federated/strategy: CHOICE'"),
    ),
    "unknown group": (
        HEADER + "defaults:\n  - override /modle: cnn\n",
        ("{file}", "modle", "'model'"),
    ),
    "unknown choice": (
        HEADER + "defaults:\n  - override /model: cn\n",
        ("{file}", "model=cn", "char_lstm, cnn, embedding_bag", "'cnn'"),
    ),
}


@pytest.mark.parametrize(("content", "named"), SLIPS.values(), ids=SLIPS)
def test_one_message_names_file_line_and_remedy(
    content: str | bytes,
    named: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    job = Started()
    typed = ("--config-dir", "own", "experiment=mine")
    assert type_command(monkeypatch, "federated", *typed, job=job) == 2
    out, err = capsys.readouterr()
    assert (out, job.runs) == ("", [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for part in named:
        assert part.replace("{file}", "own/experiment/mine.yaml") in err

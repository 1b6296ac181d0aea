"""The Ray that a run starts: nobody else reaches it, and nobody else reads its token."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from heliotrope.cluster.own_ray import keep_token_private, seen_at_once
from tests.support import ROOT, environment

# Prints the local addresses that this process and those below it listen at.
_LOOK = """
import ipaddress, json, os
from pathlib import Path
import ray
from heliotrope.cluster.connection import session

def below(pid):
    yield pid
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid:
                    yield from below(int(entry.name))
        except OSError:
            pass

def sockets(pid):
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]

def address(text):
    words = [text[at:at + 8] for at in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(bytes.fromhex(word)[::-1] for word in words))

with session(ray):
    @ray.remote
    def work():
        return os.environ.get("RAY_AUTH_MODE"), ray.util.get_node_ip_address()

    mode, node = ray.get(work.remote())
    started = [pid for pid in below(os.getpid()) if pid != os.getpid()]
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in started]
    ours = {inode for pid in below(os.getpid()) for inode in sockets(pid)}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in ours:
                at = address(fields[1].partition(":")[0])
                found.append(str(getattr(at, "ipv4_mapped", None) or at))
    asked = [command for command in commands if "dashboard.py" in command]
    print(json.dumps({"listening": found, "mode": mode, "node": node, "dashboards": asked}))
"""


@pytest.fixture
def short() -> Iterator[str]:
    """A folder with a short path, such as Ray's sockets need."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        yield name


def test_a_ray_of_ours_listens_on_loopback_and_asks_for_a_token_that_is_ours(
    tmp_path: Path, short: str
) -> None:
    env = environment() | {"HOME": str(tmp_path), "RAY_TMPDIR": short}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)
    found = subprocess.run(
        [sys.executable, "-c", _LOOK],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    assert len(said["listening"]) >= 4, "Ray's own sockets were not seen"
    assert set(said["listening"]) == {"127.0.0.1"}
    assert said["node"] == "127.0.0.1"
    assert said["mode"] == "token"
    assert said["dashboards"] == []
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_a_token_that_others_could_read_is_kept_and_closed_to_them(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("mine")
    token.chmod(0o644)
    keep_token_private()
    assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == ("mine", 0o600)


def test_a_new_token_is_long_and_another_each_time(token: Path) -> None:
    keep_token_private()
    first = token.read_text()
    token.unlink()
    keep_token_private()
    assert len(first) == 64
    assert first != token.read_text()
    assert list(token.parent.iterdir()) == [token]


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x")],
)
def test_who_keeps_a_token_elsewhere_or_wants_none_is_left_alone(
    token: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert not token.exists()


class _Nodes:
    """Stands in for Ray's global state: the node is there when it is asked for the third time."""

    asked = 0

    def _initialize_global_state(self, options: str) -> None:
        assert options == "options of gcs"

    def node_table(self) -> list[dict[str, str]]:
        _Nodes.asked += 1
        return [{"NodeID": "other"}, *([{"NodeID": "ours"}] if _Nodes.asked > 2 else [])]


def test_a_node_is_asked_for_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    services, state = ModuleType("some_ray._private.services"), ModuleType("some_ray")
    answers: list[int] = []
    real = lambda _address, node: answers.append(_Nodes.asked) or node  # noqa: E731
    options_of = "options of {}".format
    vars(services).update(get_node=real, _get_gcs_client_options=options_of)
    vars(state).update(GlobalState=_Nodes)
    for name, module in (("services", services), ("state", state)):
        monkeypatch.setitem(sys.modules, f"some_ray._private.{name}", module)
    for package in ("some_ray", "some_ray._private"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    with seen_at_once(ModuleType("some_ray")):
        assert services.get_node("gcs", "ours") == "ours"
    assert answers == [3]
    assert services.get_node is real
    del services.get_node  # as a later Ray may have it
    with seen_at_once(ModuleType("some_ray")):
        assert not hasattr(services, "get_node")

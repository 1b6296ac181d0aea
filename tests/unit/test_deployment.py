"""What `heliotrope deploy` writes, and the certificates and keys that it refuses."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federated.deploy.certificates import (
    check_node_key,
    check_server_certificate,
    write_certificates,
    write_node_key,
)
from federated.deploy.flower_commands import (
    register_command,
    run_command,
    superlink_command,
    supernode_command,
)
from federated.deploy.layout import Layout
from federated.deploy.service_files import write_service_files
from federated.flower.node_data import read_rows
from heliotrope.config import from_yaml
from heliotrope.errors import ConfigError, RunDirectoryError
from tests.support import Command, compose

_CLIENTS = ("federated.partition.clients=3", "federated.clients_per_round=3")


def _private_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.key"))


def test_a_certificate_for_its_host_and_a_key_pair_pass(tmp_path: Path) -> None:
    write_certificates(tmp_path, ["example.org", "127.0.0.1", "::1"])
    for host in ("example.org", "127.0.0.1", "::1"):
        check_server_certificate(tmp_path, host)
    write_node_key(tmp_path, "client-0")
    check_node_key(tmp_path / "client-0.key")
    assert [stat.S_IMODE(path.stat().st_mode) for path in _private_files(tmp_path)] == [0o600] * 2


def test_a_certificate_for_a_domain_is_for_its_hosts_in_any_case(tmp_path: Path) -> None:
    write_certificates(tmp_path, ["*.example.org", "*"])
    for host in ("server.example.org", "Server.Example.ORG"):
        check_server_certificate(tmp_path, host)
    for host in ("example.org", "a.server.example.org", "localhost", "10.0.0.1"):
        with pytest.raises(ConfigError, match=f"not for {host}: .* hosts={host}"):
            check_server_certificate(tmp_path, host)


def test_openssl_trusts_what_is_written(tmp_path: Path) -> None:
    write_certificates(tmp_path, ["example.org"])
    command = ["openssl", "verify", "-x509_strict", "-verify_hostname", "example.org"]
    command += ["-CAfile", f"{tmp_path / 'ca.crt'}", f"{tmp_path / 'server.pem'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _expired(folder: Path) -> None:
    write_certificates(folder, ["example.org"], valid=timedelta(days=-1))


def _of_another_host(folder: Path) -> None:
    write_certificates(folder, ["elsewhere.org"])


def _of_another_authority(folder: Path) -> None:
    write_certificates(folder, ["example.org"])
    write_certificates(folder / "other", ["example.org"])
    (folder / "other" / "ca.crt").replace(folder / "ca.crt")


def _with_another_key(folder: Path) -> None:
    write_certificates(folder, ["example.org"])
    write_certificates(folder / "other", ["example.org"])
    (folder / "other" / "server.key").replace(folder / "server.key")


def _cut_off(folder: Path) -> None:
    write_certificates(folder, ["example.org"])
    path = folder / "server.pem"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_expired, r"ca\.crt has expired on \d{4}-.*Renew"),
        (_of_another_host, r"server\.pem is for elsewhere\.org, not for example\.org"),
        (_of_another_authority, r"server\.pem is not signed by the authority in .*ca\.crt"),
        (_with_another_key, r"server\.key is not the key of .*server\.pem"),
        (_cut_off, r"server\.pem is no certificate"),
        (lambda _: None, r"ca\.crt is no certificate"),
    ],
)
def test_a_certificate_that_nodes_would_refuse_is_refused_before(
    tmp_path: Path, write: Callable[[Path], None], said: str
) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match=said):
        check_server_certificate(tmp_path, "example.org")


def test_a_key_that_the_superlink_would_refuse_is_refused_before(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_node_key(tmp_path, name)
    with pytest.raises(RunDirectoryError, match=r"one\.key is there already"):
        write_node_key(tmp_path, "one")
    (tmp_path / "two.key").replace(tmp_path / "one.key")
    with pytest.raises(ConfigError, match=r"one\.key does not belong to .*one\.pub"):
        check_node_key(tmp_path / "one.key")
    weak = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "one.key").write_bytes(
        weak.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(ConfigError, match=r"one\.key is no ECDSA key on the curve P-384"):
        check_node_key(tmp_path / "one.key")


def test_a_deployment_has_what_flower_and_each_site_need(
    tmp_path: Path, heliotrope: Command
) -> None:
    typed = ("experiment=quickstart", *_CLIENTS, f"output={tmp_path / 'site'}")
    code, _, error = heliotrope("deploy", *typed, "hosts=example.org")
    assert code == 0, error
    site = tmp_path / "site"
    app = tomllib.loads((site / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    run = compose("federated", "experiment=quickstart", *_CLIENTS)
    assert from_yaml(app["config"]["run"]) == run
    check_server_certificate(site / "certificates", "example.org")
    for client in range(3):
        check_node_key(site / "keys" / f"client-{client}.key")
        assert (site / "nodes" / f"client-{client}" / "rows.npz").exists()
    _, held = read_rows(site / "server" / "test")
    assert 0 < len(held) < 400  # of digits, with their 1,797 images
    keys = _private_files(site)
    assert len(keys) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    before = [path.read_bytes() for path in keys]
    code, _, error = heliotrope("deploy", *typed)
    assert (code, "holds a deployment" in error) == (2, True)
    assert heliotrope("deploy", *typed, "hosts=example.org", "resume=true")[0] == 0
    assert [path.read_bytes() for path in keys] == before
    code, _, error = heliotrope("deploy", *typed, "hosts=elsewhere.org", "resume=true")
    assert (code, "not for elsewhere.org" in error) == (2, True)
    again = (*typed, "hosts=example.org", "resume=true")
    code, _, error = heliotrope("deploy", *again, "seed=999")
    assert (code, "client-0 holds other rows" in error) == (2, True), "of another partition"
    (site / "nodes" / "client-1" / "rows.json").unlink()  # as a command leaves it that was killed
    (site / "nodes" / "client-2" / "rows.npz").write_bytes(b"")
    code, _, error = heliotrope("deploy", *again)
    assert (code, "client-2 holds other rows" in error) == (2, True)
    assert (site / "nodes" / "client-1" / "rows.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trail",), "Did you mean 'trial'?"),
        (("output=/proc/none",), "output=/proc/none: /proc/none cannot be written"),
    ],
)
def test_what_deploy_cannot_use_is_named(
    words: tuple[str, ...], said: str, heliotrope: Command
) -> None:
    code, _, error = heliotrope("deploy", *words, "experiment=quickstart", *_CLIENTS)
    assert (code, said in error) == (2, True), error


def test_a_key_on_its_clients_machine_alone_stays_there_and_starts_no_trial(
    tmp_path: Path, heliotrope: Command
) -> None:
    typed = ("experiment=quickstart", *_CLIENTS, f"output={tmp_path / 'site'}", "hosts=127.0.0.1")
    assert heliotrope("deploy", *typed)[0] == 0
    key = tmp_path / "site" / "keys" / "client-1.key"
    public = key.with_suffix(".pub").read_bytes()
    key.unlink()
    assert heliotrope("deploy", *typed, "resume=true")[0] == 0
    assert (key.exists(), key.with_suffix(".pub").read_bytes()) == (False, public)
    code, _, error = heliotrope("deploy", "trial", *typed, "resume=true")
    assert (code, f"{key} is no private key of a SuperNode" in error) == (2, True), error
    assert not (tmp_path / "site" / "logs").exists()


_STUB = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done > "$SAID"
"""


def _said(folder: Path, *command: str) -> list[str]:
    """Run a script of a deployment; return the arguments that it gives to Flower's program."""
    programs, said = folder.with_name("programs"), folder.with_name("said")
    programs.mkdir(exist_ok=True)
    for name in ("flower-superlink", "flower-supernode", "flwr"):
        (programs / name).write_text(_STUB)
        (programs / name).chmod(0o755)
    env = {"PATH": f"{programs}:/usr/bin:/bin", "SAID": f"{said}"}
    subprocess.run([folder / command[0], *command[1:]], env=env, check=True)
    return said.read_text().splitlines()


def _site(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / 'a "site" of 100 %i, $HOME')
    layout.root.mkdir()
    write_service_files(layout, "example.org", clients=2)
    return layout


def test_an_address_of_version_6_is_told_from_its_port(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_service_files(layout, "2001:db8::5", clients=1)
    assert _said(tmp_path, "start-client.sh", "0")[:2] == ["--superlink", "[2001:db8::5]:9092"]
    assert _said(tmp_path, "start-superlink.sh")[:2] == ["--host", "::"]
    connection = tomllib.loads((layout.flower / "config.toml").read_text())["superlink"]
    assert connection["heliotrope"]["address"] == "[2001:db8::5]:9092"
    services = json.loads((tmp_path / "compose.yaml").read_text())["services"]
    assert "networks" not in services["superlink"]  # Docker has names for aliases only
    assert services["superlink"]["ports"] == ["9092:9092"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_containers_of_one_machine_have_its_network(host: str, tmp_path: Path) -> None:
    write_service_files(Layout(tmp_path), host, clients=1)
    services = json.loads((tmp_path / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["network_mode"] == "host"
        assert not {"ports", "networks"} & service.keys()


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("[a.org,b-1.org]", ["a.org", "b-1.org"]),
        ("[::1],2001:DB8::5", ["::1", "2001:db8::5"]),
        ("https://a.org", None),
        ("a.org:9092", None),
        ("a.org/x", None),
    ],
)
def test_hosts_are_names_and_addresses(
    typed: str, names: list[str] | None, tmp_path: Path, heliotrope: Command
) -> None:
    words = ("experiment=quickstart", *_CLIENTS, f"output={tmp_path / 'site'}", f"hosts={typed}")
    code, _, error = heliotrope("deploy", *words)
    if names is None:
        assert (code, "is no name or address of a machine" in error) == (2, True)
        return
    assert code == 0, error
    for name in names:
        check_server_certificate(tmp_path / "site/certificates", name)


def test_scripts_start_what_a_trial_starts(tmp_path: Path) -> None:
    layout = _site(tmp_path)
    root = layout.root
    node = supernode_command(
        "example.org:9092",
        certificate="certificates/ca.crt",
        key="keys/client-1.key",
        port="9094",
        folder=f"{layout.node(1)}",
    )
    assert _said(root, "start-client.sh", "1") == node[1:]
    link = superlink_command(layout, "0.0.0.0", 9092, relative=True)  # noqa: S104 - a server's
    assert _said(root, "start-superlink.sh") == link[1:]
    assert _said(root, "run.sh", "--run-config", "resume=true") == [
        *run_command("app")[1:],
        *("--run-config", "resume=true"),
    ]
    write_node_key(root / "keys", "client-0")
    assert _said(root, "register.sh") == register_command("keys/client-0.pub", "client-0")[1:]
    connection = tomllib.loads((layout.flower / "config.toml").read_text())["superlink"]
    assert connection["heliotrope"]["address"] == "example.org:9092"


def test_containers_see_their_own_key_and_rows_and_no_others(tmp_path: Path) -> None:
    layout = _site(tmp_path)
    services = json.loads((layout.root / "compose.yaml").read_text())["services"]
    assert set(services) == {"superlink", "client-0", "client-1"}
    assert services["superlink"]["networks"] == {"default": {"aliases": ["example.org"]}}
    for number in range(2):
        volumes = [volume.replace("$$", "$") for volume in services[f"client-{number}"]["volumes"]]
        assert f"{layout.key(number)}:{layout.key(number)}:ro" in volumes
        assert f"client-{1 - number}" not in " ".join(volumes)
        assert services[f"client-{number}"]["command"] == ["./start-client.sh", str(number)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    root = _site(tmp_path).root
    units = [f"./{path.name}" for path in sorted(root.glob("*.service"))]
    command = ["systemd-analyze", "verify", *units]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, len(units)) == (0, 2), done.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("federated/attack=sign_flip",), "federated/attack=sign_flip cannot be deployed"),
        (("audit.canaries=4",), "audit.canaries"),
        (("folds=5",), "folds=5 divides"),
        (("nodes=4", *_CLIENTS), "nodes=4, but the data is divided among 3 clients"),
        (("nodes=none",), "nodes=none is no number of nodes"),
        (("output=",), "output has no value"),
        (("optimizer.l=1",), "optimizer.l"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_any_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heliotrope: Command,
    typed: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = heliotrope("deploy", "trial", "experiment=quickstart", *typed)
    assert code == 2, error
    assert said in error
    assert list(tmp_path.rglob("*.key")) == []

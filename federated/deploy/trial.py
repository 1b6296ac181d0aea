"""A whole federation on this machine: one SuperLink, a SuperNode for each client, and their run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from heliotrope.commands.output import say
from heliotrope.errors import ConfigError, RunFailedError

from ..job import run_job
from .apps import FAILURE
from .comparison import Comparison, compare
from .deployment import Deployment
from .layout import Layout
from .node_pool import node_name
from .processes import Program, called, environment, free_port, wait_for_port

__all__ = ["Federation", "run_trial", "started"]

_CONNECTION = "trial"
_FLOWERS = ("\x1b[", "Successfully ", "Using SuperLink")  # in lines that are Flower's own
_START = 60.0  # seconds that a SuperLink has to listen


@dataclass
class Federation:
    """A running federation of Flower's programs.

    Parameters
    ----------
    deployment
        What they run.
    environment
        Of the programs.
    address
        Of the SuperLink, `host:port`.
    programs
        By name: `SuperLink` and `client-0`, `client-1`, ...
    """

    deployment: Deployment
    environment: Mapping[str, str]
    address: str
    programs: dict[str, Program]

    def start_link(self) -> None:
        """Start the SuperLink, with TLS and node authentication; it knows nodes from before."""
        layout = self.deployment.layout
        host, _, port = self.address.rpartition(":")
        folder = layout.certificates
        command = ["flower-superlink", "--host", host, "--port", port]
        command += ["--ssl-ca-certfile", f"{folder / 'ca.crt'}"]
        command += ["--ssl-certfile", f"{folder / 'server.pem'}"]
        command += ["--ssl-keyfile", f"{folder / 'server.key'}"]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        command += ["--database", f"{layout.flower / 'superlink.db'}"]
        self._start("SuperLink", command)
        wait_for_port(self.programs["SuperLink"], int(port), _START, host)

    def register(self, client: int) -> None:
        """Make the SuperLink know the public key of a client's node, and its name."""
        public = self.deployment.layout.key(client).with_suffix(".pub")
        command = ["flwr", "supernode", "register", f"{public}", _CONNECTION]
        called([*command, "--name", node_name(client)], self.environment)

    def start_node(self, client: int) -> None:
        """Start the SuperNode of a client, which sees its own data folder."""
        layout = self.deployment.layout
        command = ["flower-supernode", "--superlink", self.address]
        command += ["--root-certificates", f"{layout.certificates / 'ca.crt'}"]
        command += ["--auth-supernode-private-key", f"{layout.key(client)}"]
        command += ["--port", f"{free_port()}"]
        command += ["--node-config", f'data-folder="{layout.node(client)}"']
        self._start(node_name(client), command)

    def _start(self, name: str, command: list[str]) -> None:
        log = self.deployment.layout.logs / f"{name}.log"
        self.programs[name] = Program(name, command, self.environment, log)

    def stop(self) -> None:
        """Stop the programs, the SuperLink last."""
        for program in reversed(self.programs.values()):
            program.stop()

    def run(self) -> None:
        """Run the app, and show what it prints, until it ends.

        Raises `ConfigError` or `RunFailedError` with what the server app says of its end.
        """
        layout = self.deployment.layout
        command = ["flwr", "run", f"{layout.app}", _CONNECTION, "--stream"]
        layout.run.mkdir(exist_ok=True)
        (layout.run / FAILURE).unlink(missing_ok=True)
        with subprocess.Popen(
            command,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as stream:
            assert stream.stdout is not None
            try:
                with (layout.logs / "run.log").open("a") as log:
                    for line in stream.stdout:
                        log.write(line)
                        if _is_ours(line):
                            say(line.rstrip())
            finally:
                stream.terminate()
        _check_ended(layout)


def _is_ours(line: str) -> bool:
    """Return whether a line that is streamed is the run's, not one of Flower's own."""
    return bool(line.strip()) and not any(mark in line for mark in _FLOWERS)


def _check_ended(layout: Layout) -> None:
    if (layout.run / "result.json").exists():
        return
    failure = layout.run / FAILURE
    if failure.exists():
        code, _, said = failure.read_text().strip().partition(" ")
        raise ConfigError(said) if code == "2" else RunFailedError(said)
    raise RunFailedError(
        f"the server app has ended without a result. What Flower's programs said is in "
        f"{layout.logs}; go on with resume=true output={layout.root}."
    )


@contextmanager
def started(deployment: Deployment) -> Iterator[Federation]:
    """Give a federation whose programs are running; those that this has started are stopped."""
    layout = deployment.layout
    for folder in (layout.logs, layout.flower):
        folder.mkdir(exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    federation = Federation(deployment, environment(layout.flower), address, {})
    connection = {"address": address, "root-certificates": f"{layout.certificates / 'ca.crt'}"}
    config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
    (layout.flower / "config.toml").write_text(tomli_w.dumps(config))
    registered = (layout.flower / "superlink.db").exists()
    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.start_link()
        for client in range(deployment.clients):
            if not registered:
                federation.register(client)
            federation.start_node(client)
        yield federation


def run_trial(deployment: Deployment) -> Comparison | None:
    """Run the deployment on this machine, then simulate it, and say how far they are apart.

    Return None where the clients' noise is their own, which nobody can draw again. Raises
    `RunFailedError` if a result differs by more than rounding.
    """
    layout = deployment.layout
    say(
        f"a SuperLink and {deployment.clients} SuperNodes on this machine, each with its own rows "
        f"of {deployment.run.data.name}; files and logs in {layout.root}"
    )
    with started(deployment) as federation:
        federation.run()
    if deployment.run.federated.privacy.name == "local":
        say("not compared: each node has drawn its noise from its operating system's generator")
        return None
    _simulate(deployment, layout.simulation)
    found = compare(layout.run, layout.simulation)
    say(found.table())
    found.check()
    return found


def _simulate(deployment: Deployment, directory: Path) -> None:
    """Simulate the same run; what is there of it already is trained anew."""
    run = deployment.run
    # One client at a time, as each node does it: other ways round differently.
    cfg = replace(run.federated, pool="inprocess", workers=1, client_training="sequential")
    resume = (directory / "config.yaml").exists()
    run_job(replace(run, federated=cfg, resume=resume), directory)

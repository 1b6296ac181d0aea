"""A whole federation on this machine: one SuperLink, a SuperNode for each client, and their run."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from heliotrope.commands.output import say
from heliotrope.errors import ConfigError, RunFailedError, WorkerError
from heliotrope.system.resources import available_cpus, threads_of

from ..job import run_job
from .app_config import RESUME
from .certificates import CA_CERTIFICATE, check_node_key
from .comparison import Comparison, compare
from .deployment import Deployment
from .flower_commands import register_command, run_command, superlink_command, supernode_command
from .layout import Layout
from .node_pool import node_name
from .processes import Program, called, environment, free_port, wait_for_port
from .server_app import FAILURE
from .service_files import write_connection

__all__ = ["Federation", "run_trial", "simulate_again", "started"]

_FLOWERS = ("\x1b[", "Successfully ", "Using SuperLink")  # in lines that are Flower's own
_LET_IN = "SuperNode ID: "  # in a SuperNode's log, once it has been registered
_ANOTHER = "Failed to activate SuperNode"  # there: another seems connected, or its key is unknown
_REASON = re.compile(
    f"CERTIFICATE_VERIFY_FAILED|not registered|[Aa]uthenticat|PERMISSION|401|403|{_ANOTHER}"
)
_POLL = 0.1  # seconds between two looks at a log
_START = 60.0  # seconds that a SuperLink has to listen
_LET_IN_WITHIN, _RESTART = 120.0, 5.0  # seconds for a SuperNode, and between two tries


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
        host, _, port = self.address.rpartition(":")
        command = superlink_command(self.deployment.layout, host, int(port))
        self._start("SuperLink", command)
        wait_for_port(self.programs["SuperLink"], int(port), _START, host)

    def register(self, client: int) -> None:
        """Make the SuperLink know the public key of a client's node, and its name."""
        public = self.deployment.layout.key(client).with_suffix(".pub")
        called(register_command(f"{public}", node_name(client)), self.environment)

    def start_node(self, client: int) -> None:
        """Start the SuperNode of a client, which sees its own data folder.

        It has its share of this machine's CPUs, among those that train in a round: processes with
        threads for all would starve.
        """
        layout = self.deployment.layout
        beside = min(self.deployment.clients, self.deployment.run.federated.clients_per_round)
        threads = threads_of(max(1, available_cpus() // beside))
        command = supernode_command(
            self.address,
            certificate=f"{layout.certificates / CA_CERTIFICATE}",
            key=f"{layout.key(client)}",
            port=f"{free_port()}",
            folder=f"{layout.node(client)}",
        )
        self._start(node_name(client), command, {"OMP_NUM_THREADS": f"{threads}"})

    def _start(
        self, name: str, command: list[str], more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        log = self.deployment.layout.logs / f"{name}.log"
        self.programs[name] = Program(name, command, {**self.environment, **more}, log)

    def await_node(self, client: int) -> None:
        """Return when the SuperLink has let the SuperNode of a client in.

        The SuperLink takes one that was killed for connected for about a minute, and refuses
        another with its key until then: it is started again, as the systemd unit does. Raises
        `WorkerError` with the reason if it is refused otherwise, or refuses the SuperLink's
        certificate, and if it is not let in within two minutes.
        """
        name = node_name(client)
        deadline = time.monotonic() + _LET_IN_WITHIN
        while _LET_IN not in (said := self.programs[name].said()):
            ended, late = self.programs[name].ended() is not None, time.monotonic() > deadline
            if ended and _ANOTHER in said and self._is_known(client) and not late:
                time.sleep(_RESTART)
                self.start_node(client)
            elif ended or late:
                raise self._refusal(client, said, ended=ended)
            time.sleep(_POLL)

    def _is_known(self, client: int) -> bool:
        """Return whether the client's private key is that which is registered for it."""
        try:
            check_node_key(self.deployment.layout.key(client))
        except ConfigError:
            return False
        return True

    def _refusal(self, client: int, said: str, *, ended: bool) -> WorkerError:
        name, layout = node_name(client), self.deployment.layout
        program, lines = self.programs[name], [line.strip() for line in said.splitlines()]
        why = next((line for line in lines if _REASON.search(line)), program.tail(4))
        return WorkerError(
            f"the SuperNode of {name} {'has been refused' if ended else 'is not let in'}: {why}. "
            f"It needs the key that is registered for it, {layout.key(client)}, and the "
            "certificate of the authority that has signed the SuperLink's. Its log is "
            f"{program.log}."
        )

    def stop(self) -> None:
        """Stop the programs, the SuperLink last."""
        for program in reversed(self.programs.values()):
            program.stop()

    def run(self, *, resume: bool = False) -> None:
        """Run the app, and show what it prints, until it ends; `resume` goes on with the run.

        Raises `ConfigError` or `RunFailedError` with what the server app says of its end.
        """
        layout = self.deployment.layout
        command = run_command(f"{layout.app}")
        command += ["--run-config", f"{RESUME}=true"] if resume else []
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
    """Give a federation whose programs are running; those that this has started are stopped.

    Raises `ConfigError` before any is started if a client's private key is not here.
    """
    layout = deployment.layout
    for client in range(deployment.clients):
        check_node_key(layout.key(client))
    for folder in (layout.logs, layout.flower):
        folder.mkdir(exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    federation = Federation(deployment, environment(layout.flower), address, {})
    write_connection(layout, address)
    registered = (layout.flower / "superlink.db").exists()
    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.start_link()
        for client in range(deployment.clients):
            if not registered:
                federation.register(client)
            federation.start_node(client)
        for client in range(deployment.clients):
            federation.await_node(client)
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
    simulate_again(deployment)
    found = compare(layout.run, layout.simulation)
    say(found.table())
    found.check()
    return found


def simulate_again(deployment: Deployment) -> None:
    """Simulate the same run, with the same seeds; what is there of it already is gone on with."""
    run, directory = deployment.run, deployment.layout.simulation
    # One client at a time, as each node does it: other ways round differently.
    cfg = replace(run.federated, pool="inprocess", workers=1, client_training="sequential")
    resume = (directory / "config.yaml").exists()
    run_job(replace(run, federated=cfg, resume=resume), directory)

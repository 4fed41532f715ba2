"""The fork server: a process that has loaded TVM once and forks a worker in milliseconds.

`multiprocessing`'s own fork server is not used: it imports the user's main script again in every worker (a script
without a `__main__` guard would start tuning in each), and it is one per process, whatever the thread count.

It serves one runner over a SEQPACKET socket: `{"log": PATH}` with a socket attached forks a worker on that socket;
`{"reap": PID}` waits for a dead worker and answers how it ended. End of file ends the server and all workers.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from calumma.core import extensions
from calumma.core.errors import EnvironmentFault
from calumma.measure.messages import WorkerSettings

SPIN_COUNT = 20_000
"""Yields before an idle pool thread sleeps: some milliseconds, instead of TVM's 50 and more, in which the idle threads
of one worker would take cores from the worker being timed."""

_MESSAGE_BYTES = 4096
_MAIN = "from calumma.measure.server import main; main()"


class ForkServer:
    """The runner's handle on its fork server. Starts at once and does not wait."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.log = Path(settings.directory) / "server.log"
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "TVM_NUM_THREADS": str(settings.threads),
            "TVM_THREAD_POOL_SPIN_COUNT": str(SPIN_COUNT),
            "OPENBLAS_NUM_THREADS": "1",  # a process is forked safely only while it has a single thread
            "OMP_NUM_THREADS": "1",
        }
        with theirs, self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), settings.to_text()],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is the runner's to handle
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def spawn(self, log: Path) -> Connection:
        """Ask for a worker; returns the connection on which it will say that it is ready, or close."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._socket, [json.dumps({"log": str(log)}).encode()], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise self.failure(self.log) from error
        return Connection(ours.detach())

    def reap(self, pid: int) -> int:
        """Wait for a worker that is dead or dying; returns its exit status, negative for a signal."""
        self._socket.send(json.dumps({"reap": pid}).encode())
        return int(json.loads(self._socket.recv(_MESSAGE_BYTES))["status"])

    def failure(self, log: Path) -> EnvironmentFault:
        """What to raise when a worker did not start: the last line that it, or the server, wrote."""
        if log == self.log:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)  # its sockets close before it has written why it ends
        return EnvironmentFault(
            f"measuring workers cannot start: {last_line(log) or 'the fork server ended without a word'}; "
            "check the installation with `calumma --version`"
        )

    def close(self) -> None:
        """End the server and every worker it still has."""
        self._socket.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def last_line(log: Path, containing: str = "") -> str:
    """Return the last line in a log with some text (and with `containing`), or "" when there is none."""
    try:
        lines = [
            line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip() and containing in line
        ]
    except FileNotFoundError:
        return ""
    return lines[-1][:300] if lines else ""


def serve(control: socket.socket, settings: WorkerSettings) -> None:
    """Fork workers on request until the runner is gone."""
    # tvm_ffi imports torch when it is there, which costs a second and starts threads; no worker needs it.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from calumma.measure import worker

    extensions.load(settings.extensions)
    importlib.import_module(settings.space_entry.partition(":")[0])
    wake = worker.build_wake(settings)
    gc.freeze()  # what is loaded by now stays: no worker's collector need look at it
    children: set[int] = set()
    try:
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 1)
            if not data:
                return
            request = json.loads(data)
            if "reap" in request:
                _, status = os.waitpid(request["reap"], 0)
                children.discard(request["reap"])
                control.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
                continue
            pid = os.fork()
            if pid == 0:
                control.close()
                _become_worker(descriptors[0], request["log"], settings, wake)
            os.close(descriptors[0])
            children.add(pid)
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _become_worker(descriptor: int, log: str, settings: WorkerSettings, wake: object) -> None:
    """Run a worker in the forked child; never returns to the server's loop."""
    from calumma.measure import worker

    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        worker.Worker(settings, wake).serve(Connection(descriptor))
        status = 0
    finally:
        if status and sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Serve as the process that `ForkServer` starts: arguments are the socket's descriptor and the settings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = WorkerSettings.from_text(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control, settings)
    shutil.rmtree(settings.directory, ignore_errors=True)  # the runner does it too, unless it was killed

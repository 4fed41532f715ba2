"""The process of one runtime: `python -m calumma.peers.peer_worker` answers requests on stdin with replies on stdout.

Requests: `load` (runtime, job), `set_inputs` (names; arrays), `outputs`, `time` (warmup, runs).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from calumma.peers import protocol, runtimes
from calumma.peers.loading import Job, Runtime, Unavailable

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the pipe closes."""
    _die_with_parent()
    requests = os.dup(0)
    replies = os.dup(1)
    # Libraries print what they like: it must not end up between the replies.
    os.dup2(2, 1)
    runtime: Runtime | None = None
    while True:
        try:
            request, arrays = protocol.receive(requests)
        except EOFError:
            return
        try:
            if request["op"] == "load":
                runtime = runtimes.load(request["runtime"], Job(**request["job"]))
                protocol.send(replies, {"version": runtime.version})
            else:
                assert runtime is not None
                reply, outputs = _answer(runtime, request, arrays)
                protocol.send(replies, reply, outputs)
        except Exception as error:  # noqa: BLE001 -- a runtime's error is an answer: the comparison shows it
            reason = str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
            protocol.send(replies, {"error": " ".join(reason.split())[:300]})


def _answer(
    runtime: Runtime, request: dict[str, Any], arrays: Sequence[np.ndarray]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    if request["op"] == "set_inputs":
        runtime.set_inputs(dict(zip(request["names"], arrays, strict=True)))
        return {}, []
    if request["op"] == "outputs":
        return {}, [np.array(output) for output in runtime.run()]
    for _ in range(request["warmup"]):
        runtime.run()
    latencies_s = []
    for _ in range(request["runs"]):
        start = time.perf_counter()
        runtime.run()
        latencies_s.append(time.perf_counter() - start)
    return {"latencies_s": latencies_s}, []


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends: a stopped process would never see the pipe close."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()

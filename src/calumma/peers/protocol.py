"""Messages between the comparison and its runtime processes: JSON and arrays over a pipe.

A message is one frame of JSON followed by one frame of npy per array; a frame is its length (8 bytes, little endian)
and that many bytes. Nothing that is received can execute code.
"""

from __future__ import annotations

import io
import json
import os
import select
import struct
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 20


def send(fd: int, message: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a message to a pipe. Raises BrokenPipeError when the other side is gone."""
    _write(fd, json.dumps({**message, "arrays": len(arrays)}).encode())
    for array in arrays:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
        _write(fd, buffer.getvalue())


def receive(fd: int, timeout_s: float | None = None) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read a message from a pipe.

    Raises:
        EOFError: the other side closed the pipe.
        TimeoutError: the message was not complete within `timeout_s` seconds.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    message = json.loads(_read_frame(fd, deadline))
    payloads = [_read_frame(fd, deadline) for _ in range(message.pop("arrays"))]
    return message, [np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False) for payload in payloads]


def _write(fd: int, payload: bytes) -> None:
    view = memoryview(_LENGTH.pack(len(payload)) + payload)
    while view:
        view = view[os.write(fd, view) :]


def _read_frame(fd: int, deadline: float | None) -> bytes:
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size, deadline))
    return _read(fd, length, deadline)


def _read(fd: int, size: int, deadline: float | None) -> bytes:
    received = bytearray()
    while len(received) < size:
        wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([fd], [], [], wait_s)[0]:
            raise TimeoutError
        chunk = os.read(fd, min(_CHUNK, size - len(received)))
        if not chunk:
            raise EOFError
        received += chunk
    return bytes(received)

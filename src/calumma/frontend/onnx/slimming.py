"""onnxslim in a process of its own, with a limit on time and memory."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from calumma.core import hardware as host
from calumma.core.errors import reason
from calumma.frontend.onnx.repairs import prune

_log = logging.getLogger(__name__)
_SLIM_TIMEOUT_S = 60.0
_SLIM = """
import resource, runpy, sys
limit, (_, hard) = int(sys.argv.pop(1)), resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
runpy.run_module("onnxslim", run_name="__main__")
"""
"""onnxslim within limits: folding shape arithmetic takes no memory, unless a model is made to."""


def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold shape arithmetic with onnxslim in a process of its own; the model as it is where that does not work."""
    with tempfile.TemporaryDirectory(prefix="calumma-slim-") as folder:
        before, after = Path(folder, "model.onnx"), Path(folder, "slim.onnx")
        try:
            before.write_bytes(proto.SerializeToString())
            command = [sys.executable, "-c", _SLIM, str(host.memory_bytes()), str(before), str(after)]
            subprocess.run(command, check=True, capture_output=True, timeout=_SLIM_TIMEOUT_S, stdin=subprocess.DEVNULL)
            slimmed = onnx.load(after)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            _log.warning("onnxslim failed, the model is taken as it is: %s", lines[-1] if lines else error)
            return proto
        except subprocess.TimeoutExpired:
            _log.warning("onnxslim failed, the model is taken as it is: it took longer than %g s", _SLIM_TIMEOUT_S)
            return proto
        except (OSError, DecodeError, EncodeError, ValueError) as error:
            _log.warning("onnxslim failed, the model is taken as it is: %s", reason(error))
            return proto
    for field in ("input", "output"):
        old, new = ({value.name for value in getattr(p.graph, field)} for p in (proto, slimmed))
        if old != new:
            _log.warning(
                "onnxslim changed the model's %ss (%s), the model is taken as it is", field, sorted(old ^ new)[0]
            )
            return proto
    prune(slimmed)
    return slimmed

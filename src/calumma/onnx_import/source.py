"""The bytes of a model: read, hashed and parsed."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from calumma.core.errors import ModelError

_SIGNATURES = {
    b"PK": "a zip archive; a PyTorch checkpoint is loaded with torch and compiled as a module",
    b"version https://git-lfs": "a Git LFS pointer; fetch the model itself with git lfs pull",
    b"\x89HDF": "an HDF5 file; convert it with tf2onnx",
    b"<": "a text document; download the model itself",
}


@dataclass(frozen=True)
class Source:
    """The bytes of a model, what to call it in messages, and its path: its folder holds its external data."""

    where: str
    data: bytes
    path: Path | None

    @classmethod
    def of(cls, model: str | Path | bytes) -> Source:
        if isinstance(model, bytes):
            return cls("the model", model, None)
        path = Path(model)
        if path.is_dir():
            raise ModelError(f"{path}: a directory, expected an ONNX file; give the path of the file in it")
        try:
            return cls(str(path), path.read_bytes(), path)
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; give the path of an ONNX file") from None
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from error


class Fingerprint:
    """SHA-256 of everything added, in order, computed beside the work of the caller."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    def add(self, data: bytes | NDArray) -> None:
        self._thread.submit(self._digest.update, data if isinstance(data, bytes) else data.data)

    def hexdigest(self) -> str:
        return self._thread.submit(self._digest.hexdigest).result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def parse(source: Source) -> onnx.ModelProto:
    if not source.data:
        raise ModelError(f"{source.where}: empty, expected an ONNX model; export or download it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(source.data)
        complete = proto.ir_version > 0 and len(proto.opset_import) > 0 and len(proto.graph.output) > 0
    except DecodeError:
        complete = False
    if not complete:
        for signature, kind in _SIGNATURES.items():
            if source.data.lstrip().startswith(signature):
                raise ModelError(f"{source.where}: not an ONNX model but {kind}")
        raise ModelError(
            f"{source.where}: not a complete ONNX model ({len(source.data):,} bytes): "
            "cut off, damaged or another format; export or download it again"
        )
    return proto

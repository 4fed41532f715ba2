"""Where an artifact may be written: over nothing that calumma did not write, and never over the model itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from calumma.artifact.file_format import is_artifact
from calumma.core.outputs import FileKind, check_output

ARTIFACT = FileKind("an artifact of calumma", is_artifact)
_REMEDY = "name another file, or replace this one with --force (overwrite=True in Python)"


def check_destination(output: str | PathLike[str] | None, model: Any, overwrite: bool = False) -> Path | None:
    """The path that an artifact of a model goes to, checked before any work is done; None for no file.

    Args:
        output: as the user gave it.
        model: what is compiled; if that is a file, it and the files of its weights are never written to.
        overwrite: replace a regular file that is no artifact of calumma.

    Raises:
        InputError: there is no such folder, or something is there that is not to be replaced.
    """
    if output is None:
        return None
    path = Path(output)
    sources: list[Path] = []
    if isinstance(model, (str, PathLike)):
        sources.append(Path(model))
        # A model's weights are no artifact: only where those are replaced too, its files have to be known.
        if overwrite and path.is_file() and not is_artifact(path):
            sources += external_data(Path(model))
    return check_output(path, ARTIFACT, inputs=sources, force=overwrite, remedy=_REMEDY)


def external_data(model: Path) -> list[Path]:
    """The files that hold weights of an ONNX model; none if it cannot be read, which its import will say."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except (OSError, DecodeError):
        return []
    locations = {
        entry.value
        for tensor in _tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [Path(os.path.join(model.parent, location)) for location in sorted(locations)]


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors in a protobuf message of ONNX, those of nested graphs and of attributes included."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if isinstance(part, onnx.TensorProto):
                yield part
            else:
                yield from _tensors(part)

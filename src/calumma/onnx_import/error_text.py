"""What is said of a model that is refused: one short line that begins with its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError
from onnx.version_converter import ConvertError

from calumma.core.errors import ModelError

_WORD_CHARACTERS = 100
"""A message quotes names up to this length."""
_BEGINNING, _END = 700, 250
"""Of a message that is longer than both together, in characters: shapes may have thousands of dimensions."""


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put the name of the model before a message about it, and keep it a short line whatever names the model has."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{where}: {one_line(str(error))}") from error


def one_line(text: str) -> str:
    """A message as a short line, whatever names of the model it quotes."""
    words = (w if len(w) <= _WORD_CHARACTERS else f"{w[:_WORD_CHARACTERS]}..." for w in text.split())
    line = "".join(c if c.isprintable() else "?" for c in " ".join(words))  # a name may hold a terminal's commands
    return line if len(line) <= _BEGINNING + _END else f"{line[:_BEGINNING]} ... {line[-_END:]}"


@contextlib.contextmanager
def onnx_step(failure: str) -> Iterator[None]:
    """Translate what ONNX's own library raises; only some of its errors are what they are called."""
    try:
        yield
    except (EncodeError, RuntimeError, ValueError, ConvertError, InferenceError, ValidationError) as error:
        raise ModelError(f"{failure} ({first_line(error)}); export it again, or with opset 17") from error


def first_line(error: BaseException) -> str:
    """Where ONNX says what is wrong; the context follows."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

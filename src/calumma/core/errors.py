"""The error tree.

    CalummaError                 anything calumma raises on purpose
    ├── InputError               the user gave something that cannot work; exit status 2
    │   ├── ModelError           a model that cannot be imported
    │   ├── ArtifactError        an artifact that cannot be loaded or run here
    │   ├── DatabaseError        a database that cannot be opened or is damaged
    │   └── EnvironmentFault     a missing or mismatched tool (TVM pin, linker, peer runtime)
    └── InternalError            a fault of calumma itself; exit status 1

Every message names what failed with its values, what was expected, and what to do next, in one line.
"""

from __future__ import annotations


class CalummaError(Exception):
    """Base of everything calumma raises on purpose."""

    exit_status = 1


class InputError(CalummaError):
    """Wrong usage or bad input."""

    exit_status = 2


class ModelError(InputError):
    """A model that cannot be imported: names node, operator and what to do."""


class ArtifactError(InputError):
    """An artifact that is damaged, was built for another CPU, or got the wrong inputs."""


class DatabaseError(InputError):
    """A database that cannot be opened, is damaged, or comes from a newer version."""


class EnvironmentFault(InputError):
    """A tool this step needs is missing or has the wrong version."""


class InternalError(CalummaError):
    """A fault of calumma itself."""


def reason(error: BaseException) -> str:
    """The last line of an error's message, which is where TVM, ONNX and Python say what is wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__

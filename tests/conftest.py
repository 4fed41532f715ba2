"""What all tests need."""

import os
import signal
import tempfile

import pytest

# Failed assertions of the kit show their values, as those of a test do.
pytest.register_assert_rewrite("calumma.testing")

# A shell ignores Ctrl-C for what it starts in the background, and so would the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a test compiles is compiled, whatever another run has left; tests of the cache say so and have their own.
os.environ["CALUMMA_CACHE_MB"] = "0"

# What a test tunes may move a prior to this CPU, which is kept in the user's data directory.
_DATA = tempfile.TemporaryDirectory(prefix="calumma-tests-")
os.environ["XDG_DATA_HOME"] = _DATA.name

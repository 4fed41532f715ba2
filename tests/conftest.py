"""What all tests need."""

import os
import signal

import pytest

# Failed assertions of the kit show their values, as those of a test do.
pytest.register_assert_rewrite("calumma.testing")

# A shell ignores Ctrl-C for what it starts in the background, and so would the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a test compiles is compiled, whatever another run has left; tests of the cache say so and have their own.
os.environ["CALUMMA_CACHE_MB"] = "0"

"""What all tests need."""

import signal

import pytest

# Failed assertions of the kit show their values, as those of a test do.
pytest.register_assert_rewrite("calumma.testing")

# A shell ignores Ctrl-C for what it starts in the background, and so would the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

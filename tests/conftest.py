"""What all tests need."""

import signal

# A shell ignores Ctrl-C for what it starts in the background, and so would the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

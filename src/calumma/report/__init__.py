"""A tuning session as one HTML file.

`collect` reads a session and its records from a store, `render` makes the page, `write` puts it on disk. Names and
reasons are data from somewhere else: the page shows them as text, whatever they hold.
"""

from calumma.report.data import SessionReport, collect
from calumma.report.page import render, write
from calumma.report.peers import PeerComparison, read_comparison

__all__ = ["PeerComparison", "SessionReport", "collect", "read_comparison", "render", "write"]

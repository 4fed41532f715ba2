"""Other runtimes, for comparison: each in a process of its own, timed in alternation on the same inputs and threads."""

from calumma.peers.compare import PEERS, compare, peers
from calumma.peers.inputs import InputSpec, input_specs, random_inputs
from calumma.peers.race import Contestant, RaceResult, Row, Spread, max_relative_difference, race

__all__ = [
    "PEERS",
    "Contestant",
    "InputSpec",
    "RaceResult",
    "Row",
    "Spread",
    "compare",
    "input_specs",
    "max_relative_difference",
    "peers",
    "race",
    "random_inputs",
]

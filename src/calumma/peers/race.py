"""A fair comparison of runtimes: one process each, one turn at a time, medians of paired rounds.

A process whose turn it is not is stopped (SIGSTOP): thread pools that spin while they wait would otherwise take cores
from the one that computes. A turn begins with warm-up runs, which bring caches, clocks and thread pools back, and only
the runs after them count. Every second round goes in reverse order, so that a slow drift of the machine cancels out.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from calumma.core.errors import InputError
from calumma.peers import protocol
from calumma.peers.loading import Job

LOAD_TIMEOUT_S = 600.0
TURN_TIMEOUT_S = 300.0
_REFERENCES = ("onnxruntime", "torch-eager")
_WARMUP_S = 0.05
_MIN_WARMUP, _MIN_RUNS, _MAX_RUNS = 2, 5, 500
_VANISHING = 1e-5
"""Outputs smaller than this come from a saturated sigmoid or softmax."""


@dataclass(frozen=True)
class Contestant:
    """A runtime with the model it is to run."""

    label: str
    """Name in the table; unique in a race."""
    runtime: str
    """A key of `calumma.peers.runtimes.RUNTIMES`."""
    source: str = ""
    """Path of the artifact or ONNX file, or "module:function" for torch."""
    timed: bool = True
    """False: only its outputs are wanted."""
    excluded: str = ""
    """Why it cannot take part; it is listed and not started."""
    mcpu: str | None = None
    """The CPU it is to compute as, by LLVM's name; None: this machine's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its process, beside this one's."""
    note: str = ""
    """What a reader of its row has to know."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        lower, middle, upper = np.percentile(values, [25, 50, 75])
        return cls(float(middle), float(lower), float(upper))


@dataclass(frozen=True)
class Row:
    """What became of one contestant."""

    label: str
    version: str = ""
    latency_s: Spread | None = None
    """Over all timed runs; None when it was not timed or could not run."""
    rounds_s: tuple[float, ...] = ()
    """Median latency of each round."""
    difference: float | None = None
    """max|a-b| / max|b| against the reference's outputs, the worst of all outputs and inputs; None: no reference."""
    bit_equal: bool | None = None
    """Whether all outputs are the reference's to the last bit; None: no reference."""
    reason: str = ""
    """Why it could not run, one line; empty when it could."""
    note: str = ""
    """What else there is to know, one line."""


@dataclass(frozen=True)
class RaceResult:
    """Rows in the order of the contestants; a ratio is the first's latency over another's: below 1, it is faster."""

    threads: int
    rows: tuple[Row, ...]
    reference: str | None
    """Label of the contestant the outputs were compared with."""
    output_change: float | None
    """max|y1-y2| / max|y2| of the reference's outputs on the first two inputs: far above any row's `difference`, or the
    comparison of outputs says nothing. The least of all outputs."""
    output_size: float | None
    """max|y| of the reference's outputs. The least of all outputs that have elements."""

    def row(self, label: str) -> Row:
        """Return the row of a contestant. Raises InputError for a label that was not in the race."""
        for row in self.rows:
            if row.label == label:
                return row
        raise InputError(f"no contestant {label!r} in this race: one of {[row.label for row in self.rows]}")

    def ratio(self, label: str, other: str) -> Spread | None:
        """Latency of one over another's, round by round; None when either has no latency."""
        ours, theirs = self.row(label), self.row(other)
        if ours.latency_s is None or theirs.latency_s is None:
            return None
        return Spread.of([a / b for a, b in zip(ours.rounds_s, theirs.rounds_s, strict=True)])

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values; every row with its `ratio` to the first."""
        subject = self.rows[0].label
        rows = []
        for row in self.rows:
            ratio = self.ratio(subject, row.label)
            rows.append({**asdict(row), "ratio": asdict(ratio) if ratio else None})
        return {
            "threads": self.threads,
            "reference": self.reference,
            "output_change": self.output_change,
            "output_size": self.output_size,
            "rows": rows,
        }

    def table(self) -> str:
        """The result as lines of text."""
        subject = self.rows[0].label
        lines = [("runtime", "version", "median ms", "quartiles", f"{subject} / it", "quartiles", "difference")]
        notes = []
        for row in self.rows:
            ratio = None if row.label == subject else self.ratio(subject, row.label)
            if row.latency_s is None:
                time = ("n/a" if row.reason else "-", "")
            else:
                time = (
                    f"{row.latency_s.median * 1e3:.3f}",
                    f"{row.latency_s.lower * 1e3:.3f}-{row.latency_s.upper * 1e3:.3f}",
                )
            against = (f"{ratio.median:.3f}", f"{ratio.lower:.3f}-{ratio.upper:.3f}") if ratio else ("", "")
            difference = "" if row.difference is None else f"{row.difference:.1e}"
            lines.append((row.label, row.version, *time, *against, difference))
            notes += [f"{row.label}: {text}" for text in (row.reason or row.note,) if text]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        if self.output_size is not None and self.output_size < _VANISHING:
            notes.insert(
                0,
                f"the smallest output is {self.output_size:.0e} at most on random inputs: float32 rounds away more "
                "than that, so differences in it say nothing",
            )
        if self.output_change is not None:
            notes.insert(
                0,
                f"outputs compared with {self.reference}'s; between two inputs they change by {self.output_change:.1e}",
            )
        return "\n".join(text + notes)


def race(
    contestants: Sequence[Contestant],
    inputs: Sequence[Mapping[str, np.ndarray]],
    *,
    threads: int,
    rounds: int = 10,
    turn_s: float = 0.25,
    reference: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> RaceResult:
    """Run every contestant on every input and time them in alternation on the first.

    A contestant that cannot load or run, dies or hangs leaves the race; its row says why.

    Args:
        contestants: the first is the one that ratios are about.
        inputs: one or more, each name -> array in the model's order.
        threads: of every runtime.
        rounds: turns of each contestant.
        turn_s: timed seconds of one turn, at least 5 runs.
        reference: label of the contestant whose outputs the others' are compared with. If None, the first that runs
            onnxruntime, or, where there is none, torch as it is.
        progress: is told, in a few words, what is being done.

    Raises:
        InputError: no contestants, no inputs, no rounds, two contestants of one label, or a reference that is none.
    """
    labels = [contestant.label for contestant in contestants]
    if not labels or len(set(labels)) != len(labels) or not inputs or rounds < 1:
        raise InputError(
            f"a race needs distinct contestants (got {labels}), inputs ({len(inputs)}) and rounds ({rounds})"
        )
    if reference is not None and reference not in labels:
        raise InputError(f"no contestant {reference!r} to compare outputs with: one of {labels}")
    say = progress or (lambda _: None)
    lanes = [_Lane(contestant, threads) for contestant in contestants]
    try:
        for lane in lanes:
            say(f"loading {lane.contestant.label}")
            lane.prepare(inputs, turn_s)
        racing = [lane for lane in lanes if lane.contestant.timed]
        for index in range(rounds):
            say(f"round {index + 1}/{rounds}")
            for lane in racing if index % 2 == 0 else reversed(racing):
                lane.turn()
    finally:
        for lane in lanes:
            lane.close()
    return _result(lanes, threads, reference)


def _result(lanes: Sequence[_Lane], threads: int, label: str | None) -> RaceResult:
    """What the lanes have shown; a reference that left the race is none."""
    ran = [lane for lane in lanes if not lane.reason]
    if label is None:
        references = (lane for runtime in _REFERENCES for lane in ran if lane.contestant.runtime == runtime)
    else:
        references = (lane for lane in ran if lane.contestant.label == label)
    reference = next(references, None)
    several = reference is not None and len(reference.outputs) > 1
    return RaceResult(
        threads=threads,
        rows=tuple(lane.row(reference.outputs if reference else None) for lane in lanes),
        reference=reference.contestant.label if reference else None,
        output_change=_change(reference.outputs) if reference and several else None,
        output_size=_size(reference.outputs) if reference else None,
    )


def max_relative_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """max|a-b| / max|b|, the worst of the outputs; infinity where shapes disagree or a value is not a number."""
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return math.inf
    return max((_relative(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    if a.size == 0:
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    error, scale = np.abs(a - b).max(), np.abs(b).max()
    if scale == 0:
        return 0.0 if error == 0 else math.inf
    return float(error / scale)


def _same_bits(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in zip(ours, theirs, strict=True)
    )


def _change(outputs: Sequence[Sequence[np.ndarray]]) -> float:
    return min((max_relative_difference([a], [b]) for a, b in zip(outputs[0], outputs[1], strict=True)), default=0.0)


def _size(outputs: Sequence[Sequence[np.ndarray]]) -> float:
    return min((float(np.abs(y).max()) for of_input in outputs for y in of_input if y.size), default=0.0)


class _Lane:
    """A contestant's process and what it has shown so far."""

    def __init__(self, contestant: Contestant, threads: int) -> None:
        self.contestant = contestant
        self.reason = contestant.excluded
        self.version = ""
        self.outputs: list[list[np.ndarray]] = []
        self._threads = threads
        self._rounds: list[list[float]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._warmup, self._runs = _MIN_WARMUP, _MIN_RUNS

    def prepare(self, inputs: Sequence[Mapping[str, np.ndarray]], turn_s: float) -> None:
        """Start, load, compute the outputs of every input, and find how many runs make a turn."""
        if self.reason:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "calumma.peers.peer_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.contestant.environment},
            process_group=0,  # Ctrl-C is for the parent, which then ends this one
        )
        try:
            shapes = {name: list(array.shape) for name, array in inputs[0].items()}
            job = Job(self.contestant.source, shapes, self._threads, self.contestant.mcpu)
            load = {"op": "load", "runtime": self.contestant.runtime, "job": asdict(job)}
            reply, _ = self._request(load, timeout_s=LOAD_TIMEOUT_S)
            self.version = reply["version"]
            for values in reversed(inputs):  # so that the first stays set, the one that is timed
                self._request({"op": "set_inputs", "names": list(values)}, list(values.values()))
                self.outputs.insert(0, self._request({"op": "outputs"})[1])
            if self.contestant.timed:
                reply, _ = self._request({"op": "time", "warmup": _MIN_WARMUP, "runs": 3})
                latency_s = median(reply["latencies_s"])
                self._warmup = max(_MIN_WARMUP, math.ceil(_WARMUP_S / latency_s))
                self._runs = min(_MAX_RUNS, max(_MIN_RUNS, math.ceil(turn_s / latency_s)))
            self._stop()
        except _Lost as lost:
            self._leave(str(lost))

    def turn(self) -> None:
        """Time one round; the process runs only meanwhile."""
        if self._process is None:
            return
        try:
            self._process.send_signal(signal.SIGCONT)
            reply, _ = self._request({"op": "time", "warmup": self._warmup, "runs": self._runs})
            self._rounds.append(reply["latencies_s"])
            self._stop()
        except _Lost as lost:
            self._leave(str(lost))

    def row(self, reference: Sequence[Sequence[np.ndarray]] | None) -> Row:
        """The row of the result, outputs compared with the reference's."""
        if self.reason:
            return Row(self.contestant.label, self.version, reason=self.reason)
        difference = bit_equal = None
        if reference is not None:
            pairs = list(zip(self.outputs, reference, strict=True))
            difference = max(max_relative_difference(ours, theirs) for ours, theirs in pairs)
            bit_equal = all(_same_bits(ours, theirs) for ours, theirs in pairs)
        return Row(
            label=self.contestant.label,
            version=self.version,
            latency_s=Spread.of([run for runs in self._rounds for run in runs]) if self._rounds else None,
            rounds_s=tuple(median(runs) for runs in self._rounds),
            difference=difference,
            bit_equal=bit_equal,
            note=self.contestant.note,
        )

    def close(self) -> None:
        """End the process, and what it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def _stop(self) -> None:
        """Stop the process and wait until every thread of it stands still, or it has ended."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # Left waitable: an exit is for `Popen` to collect.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _leave(self, reason: str) -> None:
        self.reason = reason
        self.close()

    def _request(
        self, message: dict[str, Any], arrays: Sequence[np.ndarray] = (), timeout_s: float = TURN_TIMEOUT_S
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            protocol.send(process.stdin.fileno(), message, arrays)
            reply, results = protocol.receive(process.stdout.fileno(), timeout_s)
        except (BrokenPipeError, EOFError):
            process.wait()
            raise _Lost(f"its process ended during {message['op']} ({_ending(process.returncode)})") from None
        except TimeoutError:
            raise _Lost(f"no answer to {message['op']} within {timeout_s:.0f} s") from None
        if "error" in reply:
            raise _Lost(reply["error"])
        return reply, results


class _Lost(Exception):
    """A contestant that is out of the race; the message is the reason."""


def _ending(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

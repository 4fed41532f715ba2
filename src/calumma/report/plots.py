"""The plots of a report as Plotly figures, in JSON values.

A plot is a mapping from view to figure: what its controls choose, joined by "/"; a plot without controls has the one
view "". Colours of text, axes and background are the page's (`report.js`), for light and dark.

Plotly reads text as a subset of HTML, so every name from a record goes through `_text`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from calumma.core.values import KnobValue
from calumma.report.data import Measurement, Point, SessionReport, TaskReport
from calumma.report.peers import PeerComparison

Plot = dict[str, dict[str, Any]]
"""View -> figure: "data" and "layout"."""

MOST_BARS = 25
"""Tasks with a bar of their own; the others share one."""
_MOST_LINES = 8
"""Tasks whose convergence shows at first; the legend brings in the others."""
_COLOURS = (
    "#2a9d8f",
    "#e76f51",
    "#4a90c4",
    "#d99a2b",
    "#8e6bbf",
    "#6a994e",
    "#c45b8a",
    "#8a8f98",
    "#b5703c",
    "#3fa7d6",
)
_ACCENT, _WARN, _REST = _COLOURS[0], _COLOURS[1], "#b4bcb9"
_LEGEND = {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0}
_AXES = {"time": "seconds since the start", "trials": "trials"}


def figures(report: SessionReport, comparison: PeerComparison | None) -> dict[str, Plot]:
    """Return every plot that the report has data for, by name."""
    plots: dict[str, Plot] = {}
    if comparison and any(peer.latency_s is not None for peer in comparison.peers):
        plots["peers"] = {"": _peers(comparison)}
    if report.curve:
        plots["model"] = {axis: _model(report, axis) for axis in _AXES}
    known = [task for task in report.tasks if task.measurements]
    if known:
        plots["tasks"] = {f"all/{axis}": _all_tasks(report, known, axis) for axis in _AXES} | {
            f"{task.number}/{axis}": _one_task(report, task, axis) for task in known for axis in _AXES
        }
    if any(task.time_s for task in report.tasks):
        plots["time"] = {"": _time(report)}
    if report.phases_s:
        plots["phases"] = {"": _phases(report.phases_s)}
    return plots


def _peers(comparison: PeerComparison) -> dict[str, Any]:
    timed = [peer for peer in comparison.peers if peer.latency_s is not None]
    latencies = [(peer.latency_s or 0.0) * 1e3 for peer in timed]
    quartiles = [
        (ms, ms) if peer.quartiles_s is None else (peer.quartiles_s[0] * 1e3, peer.quartiles_s[1] * 1e3)
        for peer, ms in zip(timed, latencies, strict=True)
    ]
    bars = go.Bar(
        orientation="h",
        y=[_text(peer.label) for peer in timed],
        x=latencies,
        marker_color=[_ACCENT if peer is comparison.peers[0] else _REST for peer in timed],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, upper - ms) for ms, (_, upper) in zip(latencies, quartiles, strict=True)],
            "arrayminus": [max(0.0, ms - lower) for ms, (lower, _) in zip(latencies, quartiles, strict=True)],
            "color": "rgba(128,136,148,0.9)",
            "thickness": 1.2,
        },
        hovertemplate="%{y}: %{x:.4g} ms<extra></extra>",
    )
    return _bars([bars], len(timed), "median latency in ms, with quartiles")


def _model(report: SessionReport, axis: str) -> dict[str, Any]:
    x, y = _steps(report.curve, axis, report.seconds, report.trials)
    line = go.Scatter(
        x=x,
        y=[value * 1e3 for value in y],
        mode="lines",
        line={"shape": "hv", "width": 2.5, "color": _ACCENT},
        hovertemplate="%{y:.4g} ms<extra></extra>",
    )
    return _figure([line], axis, "sum of kernels in ms", height=320, hovermode="x")


def _all_tasks(report: SessionReport, tasks: Sequence[TaskReport], axis: str) -> dict[str, Any]:
    lines = []
    for i, task in enumerate(task for task in tasks if task.curve):
        end = task.measurements[-1].task_trial
        x, y = _steps(task.curve, axis, report.seconds, end)
        lines.append(
            go.Scatter(
                x=x,
                y=[value / y[0] for value in y],
                name=_text(task.label),
                mode="lines",
                line={"shape": "hv", "width": 2, "color": _COLOURS[i % len(_COLOURS)]},
                visible=True if i < _MOST_LINES else "legendonly",
                hovertemplate=f"{_text(task.label)}: %{{y:.3f}}<extra></extra>",
            )
        )
    # A legend of a hundred lines would leave no room for the plot: it scrolls.
    return _figure(lines, axis, "latency / first latency", height=400, legend={**_LEGEND, "maxheight": 110})


def _one_task(report: SessionReport, task: TaskReport, axis: str) -> dict[str, Any]:
    end = task.measurements[-1].task_trial
    worked = [m for m in task.measurements if m.latency_s is not None]
    failed = [m for m in task.measurements if m.latency_s is None]
    values_ms = [(m.latency_s or 0.0) * 1e3 for m in worked]
    top_ms = max(values_ms, default=1.0)
    traces = [
        go.Scatter(
            x=[_place(m, axis) for m in worked],
            y=values_ms,
            name="measured",
            mode="markers",
            marker={"size": 7, "color": _COLOURS[2], "opacity": 0.65},
            hovertext=[_hover(m) for m in worked],
            hoverinfo="text",
        )
    ]
    if task.curve:
        x, y = _steps(task.curve, axis, report.seconds, end)
        traces.append(
            go.Scatter(
                x=x,
                y=[value * 1e3 for value in y],
                name="best so far",
                mode="lines",
                line={"shape": "hv", "width": 2.5, "color": _ACCENT},
                hoverinfo="skip",
            )
        )
    if failed:
        traces.append(
            go.Scatter(
                x=[_place(m, axis) for m in failed],
                y=[top_ms] * len(failed),
                name="failed",
                mode="markers",
                marker={"size": 8, "symbol": "x", "color": _WARN},
                hovertext=[_hover(m) for m in failed],
                hoverinfo="text",
            )
        )
    if task.bound_s:
        span = [0, report.seconds if axis == "time" else max(end, 1)]
        traces.append(
            go.Scatter(
                x=span,
                y=[task.bound_s * 1e3] * 2,
                name="roofline bound",
                mode="lines",
                line={"dash": "dot", "width": 1.5, "color": _COLOURS[7]},
                hovertemplate="roofline bound %{y:.4g} ms<extra></extra>",
            )
        )
    lowest_ms = min([*values_ms, *([task.bound_s * 1e3] if task.bound_s else [])], default=1.0)
    scale = "log" if top_ms > 5 * lowest_ms else "linear"
    return _figure(traces, axis, "latency of one call in ms", height=400, legend=_LEGEND, yaxis_type=scale)


def _time(report: SessionReport) -> dict[str, Any]:
    tasks = [task for task in report.tasks if task.time_s]
    shown, others = tasks[:MOST_BARS], tasks[MOST_BARS:]
    names = [_text(task.label) for task in shown]
    at_bound = [min(task.weight * (task.bound_s or 0.0), task.time_s) * 1e3 for task in shown]
    above = [task.time_s * 1e3 - bound for task, bound in zip(shown, at_bound, strict=True)]
    hover = [_task_hover(report, task) for task in shown]
    if others:
        names.append(f"{len(others)} others")
        bound = sum(min(task.weight * (task.bound_s or 0.0), task.time_s) for task in others) * 1e3
        at_bound.append(bound)
        above.append(sum(task.time_s for task in others) * 1e3 - bound)
        hover.append(f"{len(others)} others: {at_bound[-1] + above[-1]:.4g} ms")
    common = {"orientation": "h", "y": names, "hovertext": hover, "hoverinfo": "text"}
    bars = [
        go.Bar(x=at_bound, name="roofline bound", marker_color=_ACCENT, **common),
        go.Bar(x=above, name="above the bound", marker_color=_REST, **common),
    ]
    return _bars(bars, len(names), "ms in one run of the model", legend=True)


def _phases(phases_s: Mapping[str, float]) -> dict[str, Any]:
    rows = sorted(phases_s.items(), key=lambda row: row[1], reverse=True)
    total = sum(phases_s.values()) or 1.0
    bars = go.Bar(
        orientation="h",
        y=[_text(name) for name, _ in rows],
        x=[seconds for _, seconds in rows],
        text=[f"{seconds:.1f} s · {seconds / total:.0%}" for _, seconds in rows],
        textposition="outside",
        cliponaxis=False,
        marker_color=_COLOURS[2],
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    return _bars([bars], len(rows), "seconds of the session", reach=1.3 * rows[0][1])


def _steps(curve: Sequence[Point], axis: str, seconds: float, trials: int) -> tuple[list[float], list[float]]:
    """Places and latencies of a curve's steps, drawn on to the end of the session."""
    x = [point.elapsed_s if axis == "time" else point.trial for point in curve]
    y = [point.latency_s for point in curve]
    return [*x, max(x[-1], seconds if axis == "time" else trials)], [*y, y[-1]]


def _place(measurement: Measurement, axis: str) -> float:
    return measurement.elapsed_s if axis == "time" else measurement.task_trial


def _figure(traces: Sequence[Any], axis: str, y_title: str, **layout: Any) -> dict[str, Any]:
    few = axis == "trials" and max((x for trace in traces for x in trace.x), default=0) <= 10
    figure = go.Figure(
        list(traces),
        {
            "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
            # What was clicked away in the legend stays away in another view; a zoom does not.
            "uirevision": "kept",
            "xaxis": {
                "title": _AXES[axis],
                "rangemode": "tozero",
                "uirevision": axis,
                "dtick": 1 if few else None,
            },
            "yaxis": {"title": y_title, "rangemode": "tozero", "automargin": True, "uirevision": y_title},
            "showlegend": len(traces) > 1,
            **layout,
        },
    )
    return _json(figure)


def _bars(
    bars: Sequence[Any], rows: int, title: str, *, legend: bool = False, reach: float | None = None
) -> dict[str, Any]:
    figure = go.Figure(
        list(bars),
        {
            "barmode": "stack",
            "bargap": 0.28,
            "height": 26 * rows + (130 if legend else 76),
            "margin": {"l": 8, "r": 16, "t": 34 if legend else 8, "b": 48},
            "xaxis": {"title": title, "rangemode": "tozero", "range": None if reach is None else [0, reach]},
            "yaxis": {"autorange": "reversed", "automargin": True, "type": "category", "ticksuffix": " "},
            "showlegend": legend,
            "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        },
    )
    return _json(figure)


def _json(figure: go.Figure) -> dict[str, Any]:
    values: dict[str, Any] = figure.to_plotly_json()
    values["layout"].pop("template", None)
    return values


def _hover(m: Measurement) -> str:
    outcome = f"{m.latency_s * 1e3:.4g} ms" if m.latency_s is not None else f"{m.status}: {_text(m.reason)}"
    return "<br>".join([f"<b>{outcome}</b>", f"trial {m.task_trial}, {_text(m.origin)}", *_config_lines(m.config)])


def _task_hover(report: SessionReport, task: TaskReport) -> str:
    share, roofline = report.share(task), task.roofline_share
    parts = [
        f"<b>{_text(task.name)}</b>",
        f"{task.time_s * 1e3:.4g} ms = {task.weight} × {(task.latency_s or 0.0) * 1e3:.4g} ms",
        f"{share:.1%} of the model's time" if share is not None else "",
        f"{task.flops_per_s / 1e9:.4g} GFLOP/s" if task.flops_per_s else "",
        f"{task.bytes_per_s / 1e9:.4g} GB/s" if task.bytes_per_s else "",
        f"{roofline:.0%} of the roofline" if roofline else "",
    ]
    return "<br>".join(part for part in parts if part)


def _config_lines(config: Mapping[str, KnobValue]) -> Iterable[str]:
    pairs = [_text(f"{knob} {value}") for knob, value in config.items()]
    for start in range(0, len(pairs), 3):
        yield ", ".join(pairs[start : start + 3])


def _text(text: str) -> str:
    """Text as Plotly shows it literally, at most 60 characters."""
    return html.escape(text if len(text) <= 60 else text[:57] + "...", quote=False)

"""A picture of a run: latency distributions, latency over time, throughput over time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from espalier_client.load.runner import Outcome


def write(path: Path, outcomes: Sequence[Outcome], duration_s: float, title: str) -> None:
    """Writes a PNG. Failed requests are left out of the latencies."""
    good = [o for o in outcomes if o.code == "OK"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    figure.suptitle(title)
    ttft_ms = [1e3 * (o.first_token_s - o.due_s) for o in good if o.first_token_s is not None]
    end_ms = [1e3 * (o.end_s - o.due_s) for o in good]
    _draw_cdf(axes[0, 0], {"first token": ttft_ms, "end to end": end_ms})
    _draw_cdf(axes[0, 1], {"between tokens": [1e3 * gap for o in good for gap in o.token_gaps_s]})
    _draw_over_time(axes[1, 0], good)
    _draw_throughput(axes[1, 1], outcomes, duration_s)
    figure.savefig(path, format="png", dpi=120)


def _draw_cdf(axes: Axes, series: dict[str, list[float]]) -> None:
    for label, values in series.items():
        if values:
            axes.ecdf(values, label=label)
    axes.set(xlabel="ms", ylabel="share of samples", title="Latency distribution")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def _draw_over_time(axes: Axes, good: Sequence[Outcome]) -> None:
    with_tokens = [o for o in good if o.first_token_s is not None]
    axes.scatter(
        [o.due_s for o in with_tokens],
        [1e3 * (o.first_token_s - o.due_s) for o in with_tokens],
        s=12,
        label="first token",
    )
    axes.scatter(
        [o.due_s for o in good], [1e3 * (o.end_s - o.due_s) for o in good], s=12, label="end to end"
    )
    axes.set(xlabel="due, s", ylabel="ms", title="Latency of each request")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_throughput(axes: Axes, outcomes: Sequence[Outcome], duration_s: float) -> None:
    times = [t for o in outcomes for t in o.token_times_s]
    edges = np.linspace(0, max(duration_s, 1e-3), 41)
    counts, _ = np.histogram(times, edges)
    axes.stairs(counts / np.diff(edges), edges, fill=True, alpha=0.6)
    axes.set(xlabel="s", ylabel="tokens/s", title="Throughput")
    axes.grid(alpha=0.3)

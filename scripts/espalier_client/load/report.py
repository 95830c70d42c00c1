"""What a run measured, as numbers (for JSON) and as a table (for a person)."""

import collections
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from espalier_client.load.runner import Outcome
from espalier_client.tree_render import sharing_ratio

_PERCENTILES = (50, 90, 99)


def summarize(outcomes: Sequence[Outcome], duration_s: float) -> dict:
    """Latencies are of requests that ended OK; tokens are everything that arrived."""
    good = [o for o in outcomes if o.code == "OK"]
    usages = [o.usage for o in outcomes if o.usage is not None]

    def total(field: str) -> int:
        return sum(getattr(usage, field) for usage in usages)

    received = sum(len(o.token_times_s) for o in outcomes)
    unique, logical = total("kv_tokens_read_unique"), total("kv_tokens_read_logical")
    return {
        "duration_s": duration_s,
        "requests": len(outcomes),
        "requests_by_code": dict(collections.Counter(o.code for o in outcomes)),
        "first_error": next((f"{o.code}: {o.details}" for o in outcomes if o.code != "OK"), None),
        "requests_per_s": len(good) / duration_s if duration_s > 0 else 0.0,
        "tokens": received,
        "tokens_per_s": received / duration_s if duration_s > 0 else 0.0,
        "prompt_tokens": total("prompt_tokens"),
        "cached_tokens": total("cached_tokens"),
        "computed_tokens": total("computed_tokens"),
        "cached_fraction": total("cached_tokens") / max(1, total("prompt_tokens")),
        "kv_tokens_read_unique": unique,
        "kv_tokens_read_logical": logical,
        "sharing_ratio": sharing_ratio(unique, logical),
        "ttft_ms": distribution(
            [1e3 * (o.first_token_s - o.due_s) for o in good if o.first_token_s is not None]
        ),
        "inter_token_ms": distribution([1e3 * gap for o in good for gap in o.token_gaps_s]),
        "end_to_end_ms": distribution([1e3 * (o.end_s - o.due_s) for o in good]),
    }


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles (linear between samples) and maximum; None without values."""
    if not values:
        return None
    found = np.percentile(values, _PERCENTILES)
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        **{f"p{p}": float(value) for p, value in zip(_PERCENTILES, found, strict=True)},
        "max": float(np.max(values)),
    }


def table(summary: dict) -> Table:
    """The summary for a terminal."""
    picture = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    codes = ", ".join(f"{count} {code}" for code, count in summary["requests_by_code"].items())
    picture.add_row("requests", f"{codes} in {summary['duration_s']:.1f} s")
    if summary["first_error"]:
        picture.add_row("first error", summary["first_error"])
    picture.add_row(
        "throughput",
        f"{summary['tokens_per_s']:.1f} tokens/s, {summary['requests_per_s']:.2f} requests/s",
    )
    picture.add_row(
        "prompt tokens",
        f"{summary['prompt_tokens']:,}, {100 * summary['cached_fraction']:.1f} % of them cached",
    )
    picture.add_row(
        "KV tokens read",
        f"{summary['kv_tokens_read_unique']:,} unique, "
        f"{summary['kv_tokens_read_logical']:,} logical: {summary['sharing_ratio']:.2f}x",
    )
    for name, key in (
        ("first token", "ttft_ms"),
        ("between tokens", "inter_token_ms"),
        ("end to end", "end_to_end_ms"),
    ):
        values = summary[key]
        if values:
            ranks = ", ".join(f"p{p} {values[f'p{p}']:.1f}" for p in _PERCENTILES)
            picture.add_row(name, f"{ranks}, max {values['max']:.1f} ms")
    return picture

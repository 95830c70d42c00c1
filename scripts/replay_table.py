#!/usr/bin/env python3
"""One table of `espalier-bench replay --json` results.

Usage: replay_table.py RESULT.json...     Markdown on standard output
"""

import json
import pathlib
import sys

def rows_of(result: dict) -> list[dict]:
    shared = {key: result[key] for key in ("device", "model", "attention", "max_steps")}
    return [{**shared, **line} for line in result["lines"]]


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    rows = []
    for path in sys.argv[1:]:
        rows += rows_of(json.loads(pathlib.Path(path).read_text()))
    print(
        "| trace | attention | steps | seconds | roofline s | ratio | KV read TB | logical TB "
        "| widest | ms a step | roofline ms | ratio |"
    )
    print("|" + "---|" * 12)
    for row in rows:
        ratio = row["seconds"] / row["roofline_s"] if row["roofline_s"] else float("nan")
        print(
            f"| {row['trace']} | {row['attention']} | {row['steps']} | {row['seconds']:.3f} "
            f"| {row['roofline_s']:.3f} | {ratio:.2f} | {row['kv_tb_read_unique']:.3f} "
            f"| {row['kv_tb_read_logical']:.3f} | {row['widest']} "
            f"| {row['widest_ms']:.2f} | {row['widest_roofline_ms']:.2f} "
            f"| {row['widest_ms'] / (row['widest_roofline_ms'] or float('nan')):.2f} |"
        )


if __name__ == "__main__":
    main()

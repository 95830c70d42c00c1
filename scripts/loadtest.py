#!/usr/bin/env python3
"""A load tester for an Espalier server; `loadtest.py --help` says what it can do."""

import sys

from espalier_client import environment

if __name__ == "__main__":
    try:
        environment.enter()
        from espalier_client.load import cli  # importable only now
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(cli.main())

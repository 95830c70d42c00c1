"""Moves a script into the environment that setup_python.sh made. Standard library only."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_VENV = _ROOT / "build/python/venv"
_STUBS = _ROOT / "build/python/stubs"


def enter() -> None:
    """Makes the packages of requirements.txt and the stubs importable.

    Runs the script again under the environment's interpreter if another one runs it now. Exits
    with a hint when there is no environment yet.
    """
    python = _VENV / "bin/python"
    if not python.exists() or not _STUBS.is_dir():
        sys.exit("The Python environment is missing: run scripts/setup_python.sh first.")
    if Path(sys.prefix).resolve() != _VENV.resolve():
        os.execv(python, [str(python), *sys.argv])
    sys.path.insert(0, str(_STUBS))

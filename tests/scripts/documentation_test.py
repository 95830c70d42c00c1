"""What the documentation says of the server's flags and configurations is what the server has.

Needs ESPALIER_SERVER, the server's binary; CMake sets it.
"""

import os
import re
import subprocess
import unittest
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def _server(*arguments: str) -> subprocess.CompletedProcess:
    command = [os.environ["ESPALIER_SERVER"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@unittest.skipUnless("ESPALIER_SERVER" in os.environ, "ESPALIER_SERVER is not set")
class DocumentationTest(unittest.TestCase):
    maxDiff = None

    def test_readme_lists_every_flag_and_no_other(self):
        flags = set(re.findall(r"^ +(--[a-z-]+)", _server("--help").stdout, re.MULTILINE))
        # The table's rows start with a flag.
        rows = re.findall(r"^\| `(--[a-z-]+)", (_ROOT / "README.md").read_text(), re.MULTILINE)
        self.assertEqual(sorted(rows), sorted(flags - {"--version"}))

    def test_every_configuration_is_accepted(self):
        configurations = list((_ROOT / "configs").glob("*.json"))
        self.assertTrue(configurations)
        for path in configurations:
            with self.subTest(path.name):
                # Read first, and found good; then the model is missing.
                self.assertIn("--model: not set", _server("--config", str(path)).stderr)


if __name__ == "__main__":
    unittest.main()

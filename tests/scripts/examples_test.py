"""The programs of scripts/examples as processes, against a server with canned answers."""

import subprocess
import sys
import unittest
from pathlib import Path

from fake_server import FakeServer

_EXAMPLES = Path(__file__).resolve().parents[2] / "scripts/examples"


class FewShotClassificationTest(unittest.TestCase):
    def test_scores_every_label_of_every_text_in_one_tree(self):
        with FakeServer() as server:
            done = subprocess.run(
                [
                    sys.executable,
                    str(_EXAMPLES / "few_shot_classification.py"),
                    "--address",
                    server.address,
                ],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(len(server.requests), 1)
            texts = server.requests[0].root.children
            self.assertEqual(len(texts), 6)
            for text in texts:
                self.assertEqual(
                    [label.text for label in text.children], [" recipe", " sports", " weather"]
                )
                self.assertTrue(all(label.score for label in text.children))
            self.assertIn("of 6 as expected", done.stdout)
            self.assertIn("KV tokens read", done.stdout)


if __name__ == "__main__":
    unittest.main()

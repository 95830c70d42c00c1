"""The programs of scripts/examples as processes, against a server with canned answers."""

import subprocess
import sys
import unittest
from pathlib import Path

from fake_server import FakeServer

_EXAMPLES = Path(__file__).resolve().parents[2] / "scripts/examples"


class ExamplesTest(unittest.TestCase):
    def run_example(self, name):
        """What the program sent, and what it printed."""
        with FakeServer() as server:
            done = subprocess.run(
                [sys.executable, str(_EXAMPLES / name), "--address", server.address],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(len(server.requests), 1)
            self.assertIn("KV tokens read", done.stdout)
            return server.requests[0], done.stdout

    def test_few_shot_scores_every_label_of_every_text_in_one_tree(self):
        request, printed = self.run_example("few_shot_classification.py")
        self.assertEqual(len(request.root.children), 6)
        for text in request.root.children:
            self.assertEqual(
                [label.text for label in text.children], [" recipe", " sports", " weather"]
            )
            self.assertTrue(all(label.score for label in text.children))
        self.assertIn("of 6 as expected", printed)

    def test_self_consistency_votes_by_a_pattern(self):
        request, _ = self.run_example("self_consistency.py")
        generation = request.root.generation
        self.assertEqual(generation.n, 12)
        self.assertRegex("The answer is 12.", generation.majority_vote.answer_pattern)

    def test_beam_search_asks_for_every_hypothesis(self):
        request, _ = self.run_example("beam_search.py")
        search = request.root.generation.beam_search
        self.assertEqual((search.width, search.num_return), (4, 4))


if __name__ == "__main__":
    unittest.main()

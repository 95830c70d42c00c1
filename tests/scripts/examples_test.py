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
            printed = self.run_against(server, name)
            self.assertEqual(len(server.requests), 1)
            return server.requests[0], printed

    def run_against(self, server, name, *options):
        done = subprocess.run(
            [sys.executable, str(_EXAMPLES / name), "--address", server.address, *options],
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("KV tokens read", done.stdout)
        return done.stdout

    def test_few_shot_scores_every_label_of_every_text_in_one_tree(self):
        request, printed = self.run_example("few_shot_classification.py")
        self.assertEqual(len(request.root.children), 6)
        for text in request.root.children:
            self.assertEqual(
                list(text.generation.choices.texts), [" recipe", " sports", " weather"]
            )
        self.assertIn("2 of 6 as expected", printed)  # the server finds everything sports

    def test_self_consistency_votes_by_a_pattern(self):
        request, _ = self.run_example("self_consistency.py")
        generation = request.root.generation
        self.assertEqual(generation.n, 12)
        self.assertRegex("The answer is 12.", generation.majority_vote.answer_pattern)

    def test_tree_of_thought_keeps_lists_of_the_numbers_and_prunes_the_rest(self):
        with FakeServer() as server:
            printed = self.run_against(
                server, "tree_of_thought.py", "--numbers", "2", "1", "--thoughts", "4", "--keep", "2"
            )
            kinds = [command.WhichOneof("command") for command in server.commands]
            self.assertEqual(
                kinds, ["open", "append", "generate", "prune", "generate", "prune"]
            )
            # Of 1 2 3 4 the lists 1 and 2 go on; of eight thoughts after them, 1 2 and 2 1.
            self.assertEqual(list(server.commands[3].prune.branch_ids), [3, 4])
            self.assertEqual(len(server.commands[5].prune.branch_ids), 6)
            self.assertIn("2 1 -> 1 2 (sorted)", printed)

    def test_beam_search_asks_for_every_hypothesis(self):
        request, _ = self.run_example("beam_search.py")
        search = request.root.generation.beam_search
        self.assertEqual((search.width, search.num_return), (4, 4))


if __name__ == "__main__":
    unittest.main()

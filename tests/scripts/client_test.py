"""client.py as a process, against a server with canned answers."""

import json
import subprocess
import sys
import unittest
from pathlib import Path

from fake_server import FakeServer

_CLIENT = Path(__file__).resolve().parents[2] / "scripts/client.py"


def _client(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(_CLIENT), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.server = self.enterContext(FakeServer())
        self.address = ("--address", self.server.address)

    def test_prints_the_tree_and_its_cost(self):
        done = _client(
            *("generate", *self.address, "--prompt", "Hello", "--question", "Why?"),
            *("--n", "2", "--temperature", "0", "--stop", "\n", "--seed", "9"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("#1 q1/1", done.stdout)
        self.assertIn("tree feed, seed 9", done.stdout)
        self.assertIn("4.00x", done.stdout)
        generation = self.server.requests[0].root.children[0].generation
        self.assertEqual((generation.n, generation.temperature, generation.stop), (2, 0, ["\n"]))
        # Unset and 0 differ: what the user did not say is not sent.
        self.assertTrue(generation.HasField("temperature"))
        self.assertFalse(generation.HasField("top_p"))

    def test_reads_a_prompt_from_standard_input(self):
        _client("generate", *self.address, "--prompt", "-", stdin="from a pipe")
        self.assertEqual(self.server.requests[0].root.text, "from a pipe")

    def test_json_is_one_event_a_line(self):
        done = _client("generate", *self.address, "--prompt", "Hello", "--json")
        events = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(next(iter(events[0])), "tree_started")
        self.assertEqual(events[-1]["tree_finished"]["usage"]["prompt_tokens"], "100")

    def test_a_refusal_is_explained(self):
        done = _client("generate", *self.address, "--prompt", "bad")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "")
        self.assertIn("INVALID_ARGUMENT: root.text: bad is not allowed", done.stderr)

    def test_bad_input_is_explained(self):
        for arguments in (
            ("--prompt", "x", "--n", str(1 << 40)),
            ("--prompt", "x", "--seed", "-1"),
            ("--file", "no/such/file"),
            ("--prompt", "x", "--system", "s"),
        ):
            with self.subTest(arguments):
                done = _client("generate", *self.address, *arguments)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertTrue(done.stderr.startswith("error: "), done.stderr)
        self.assertEqual(self.server.requests, [])

    def test_scores_are_ranked(self):
        arguments = ("--prompt", "p", "--continuation", "worse", "--continuation", "better")
        done = _client("score", *self.address, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(done.stdout.index("better"), done.stdout.index("worse"))

    def test_questions_print_fields(self):
        done = _client("info", *self.address)
        self.assertRegex(done.stdout, r"(?m)^vocab_size +100$")
        done = _client("info", *self.address, "--json")
        self.assertEqual(json.loads(done.stdout)["name"], "fake")
        done = _client("tokenize", *self.address, "AB")
        self.assertEqual(done.stdout, "65 66\n")


class UnreachableTest(unittest.TestCase):
    def test_has_a_status_of_its_own(self):
        # Port 1 is reserved and never listened on.
        done = _client("info", "--address", "127.0.0.1:1")
        self.assertEqual(done.returncode, 3)
        self.assertIn("no server answers at 127.0.0.1:1", done.stderr)


if __name__ == "__main__":
    unittest.main()

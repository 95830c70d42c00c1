"""client.py as a process, against a server with canned answers."""

import json
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

import fake_server
from fake_server import FakeServer

_CLIENT = Path(__file__).resolve().parents[2] / "scripts/client.py"
_ENDLESS = ("generate", "--prompt", "endless", "--n", "1", "--json")


def _client(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(_CLIENT), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _start_client(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(_CLIENT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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

    def test_a_closed_output_ends_it_without_a_word(self):
        for arguments in (
            ("generate", "--prompt", "Hello"),
            ("generate", "--prompt", "Hello", "--json"),
            ("score", "--prompt", "p", "--continuation", "c"),
            ("info",),
            ("tokenize", "AB"),
        ):
            with self.subTest(arguments):
                reading, writing = os.pipe()
                os.close(reading)
                done = subprocess.run(
                    [sys.executable, str(_CLIENT), *arguments, *self.address],
                    stdout=writing,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=60,
                )
                os.close(writing)
                self.assertEqual((done.returncode, done.stderr), (141, ""))

    def test_an_output_closed_on_the_way_cancels_the_tree(self):
        client = _start_client(*_ENDLESS, *self.address)
        client.stdout.readline()
        client.stdout.close()
        self.assertEqual(client.wait(timeout=60), 141)
        self.assertEqual(client.stderr.read(), "")
        client.stderr.close()
        self.assertTrue(self.server.abandoned.wait(timeout=60))

    def test_an_interrupt_cancels_the_tree(self):
        with _start_client(*_ENDLESS, *self.address) as client:
            client.stdout.readline()
            client.send_signal(signal.SIGINT)
            _, stderr = client.communicate(timeout=60)
        self.assertEqual((client.returncode, stderr), (130, "interrupted\n"))
        self.assertTrue(self.server.abandoned.wait(timeout=60))


class UnreachableTest(unittest.TestCase):
    def test_has_a_status_of_its_own(self):
        # Port 1 is reserved and never listened on.
        done = _client("info", "--address", "127.0.0.1:1")
        self.assertEqual(done.returncode, 3)
        self.assertIn("no server answers at 127.0.0.1:1", done.stderr)

    def test_so_has_a_server_that_goes_away(self):
        with subprocess.Popen(
            [sys.executable, fake_server.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            address = server.stdout.readline().strip()
            with _start_client(*_ENDLESS, "--address", address) as client:
                client.stdout.readline()
                server.kill()
                _, stderr = client.communicate(timeout=60)
        self.assertEqual(client.returncode, 3)
        self.assertRegex(stderr, rf"^error: the connection to {address} broke \(.+\)\n$")


if __name__ == "__main__":
    unittest.main()

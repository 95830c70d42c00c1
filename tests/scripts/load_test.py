"""The load tester: shapes, numbers, and a run against a server with canned answers."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from fake_server import FakeServer

from espalier.v1 import generate_pb2
from espalier_client.connection import InputError
from espalier_client.load import report, shapes
from espalier_client.load.runner import Outcome
from espalier_client.load.shapes import LengthTree, ShapeOptions, ShapeSource
from espalier_client.tree_request import nodes_with_ids

_LOADTEST = Path(__file__).resolve().parents[2] / "scripts/loadtest.py"


def _source(shape: str, seed: int = 5, traces=(), **options) -> ShapeSource:
    return ShapeSource(ShapeOptions(shape=shape, vocab_size=50, **options), seed, list(traces))


class ShapesTest(unittest.TestCase):
    def test_a_request_depends_on_seed_and_index_only(self):
        trace = LengthTree([-1, 0, 0], [9, 3, 4])
        for shape in shapes.NAMES:
            with self.subTest(shape):
                source = _source(shape, traces=[trace])
                later = source.request(3)
                self.assertEqual(_source(shape, traces=[trace]).request(3), later)
                self.assertNotEqual(source.request(4), later)
                self.assertNotEqual(_source(shape, seed=6, traces=[trace]).request(3), later)

    def test_few_shot_has_a_child_a_branch(self):
        root = _source("few-shot", prompt_tokens=40, width=6, output_tokens=7).request(0).root
        self.assertEqual(len(root.token_ids.ids), 40)
        self.assertTrue(all(0 <= token < 50 for token in root.token_ids.ids))
        self.assertEqual([child.generation.max_tokens for child in root.children], [7] * 6)
        self.assertEqual(len({tuple(child.token_ids.ids) for child in root.children}), 6)

    def test_best_of_n_samples_one_prompt(self):
        root = _source("best-of-n", width=6).request(0).root
        self.assertEqual((root.generation.n, len(root.children)), (6, 0))

    def test_prompts_are_drawn_from_a_set(self):
        source = _source("few-shot", prompt_tokens=20, num_prompts=3)
        prompts = {tuple(source.request(i).root.token_ids.ids) for i in range(50)}
        self.assertEqual(len(prompts), 3)

    def test_one_thought_of_each_level_is_thought_on(self):
        root = _source("thoughts", width=4, depth=3, output_tokens=10).request(0).root
        level, levels = list(root.children), 0
        while level:
            levels += 1
            self.assertEqual(len(level), 4)
            self.assertTrue(all(4 <= node.generation.max_tokens <= 14 for node in level))
            expanded = [node for node in level if node.children]
            self.assertLessEqual(len(expanded), 1)
            level = list(expanded[0].children) if expanded else []
        self.assertEqual(levels, 3)


class TracesTest(unittest.TestCase):
    def _write(self, text: str) -> Path:
        path = Path(self.enterContext(tempfile.TemporaryDirectory())) / "traces.json"
        path.write_text(text)
        return path

    def test_lengths_and_parents_survive(self):
        # Node 2 is an empty thought: it goes, with node 4 below it.
        trace = {
            "id": "t/0",
            "parent": [-1, 0, 0, 1, 2],
            "start": [-9, 1, 1, 11, 1],
            "end": [0, 10, 0, 15, 4],
        }
        path = self._write(json.dumps({"traces": [trace]}))
        (tree,) = shapes.read_traces(path, "t/0", length_scale=1.0)
        self.assertEqual(tree, LengthTree([-1, 0, 1], [10, 10, 5]))
        (half,) = shapes.read_traces(path, None, length_scale=0.1)
        self.assertEqual(half.tokens, [1, 1, 1])
        root = _source("trace", traces=[tree]).request(0).root
        nodes = [node for _, _, node in nodes_with_ids(root)]
        given = [len(node.token_ids.ids) for node in nodes]
        generated = [node.generation.max_tokens for node in nodes]
        self.assertEqual((given, generated), ([10, 1, 1], [0, 9, 4]))

    def test_errors_name_the_file(self):
        for text in ("", "[]", '{"traces": [{"id": "a"}]}', '{"traces": []}'):
            with self.subTest(text), self.assertRaisesRegex(InputError, "traces.json"):
                shapes.read_traces(self._write(text), None, 1.0)


class ReportTest(unittest.TestCase):
    def test_percentiles_are_linear_between_samples(self):
        found = report.distribution([float(i) for i in range(101, 0, -1)])
        self.assertEqual((found["p50"], found["p90"], found["p99"]), (51.0, 91.0, 100.0))
        self.assertEqual((found["mean"], found["max"], found["count"]), (51.0, 101.0, 101))
        self.assertEqual(report.distribution([1.0, 2.0])["p50"], 1.5)
        self.assertIsNone(report.distribution([]))

    def test_failures_count_but_have_no_latency(self):
        usage = generate_pb2.Usage(
            prompt_tokens=10, cached_tokens=5, kv_tokens_read_unique=2, kv_tokens_read_logical=6
        )
        good = Outcome(
            due_s=1.0,
            first_token_s=1.5,
            end_s=3.0,
            token_gaps_s=[0.2, 0.4],
            token_times_s=[1.5, 1.7, 2.1],
            usage=usage,
        )
        bad = Outcome(due_s=2.0, code="RESOURCE_EXHAUSTED", details="full", end_s=9.0)
        summary = report.summarize([good, bad], duration_s=4.0)
        self.assertEqual(summary["requests_by_code"], {"OK": 1, "RESOURCE_EXHAUSTED": 1})
        self.assertEqual(summary["first_error"], "RESOURCE_EXHAUSTED: full")
        self.assertEqual(summary["tokens_per_s"], 0.75)
        self.assertEqual(summary["requests_per_s"], 0.25)
        self.assertEqual((summary["cached_fraction"], summary["sharing_ratio"]), (0.5, 3.0))
        self.assertAlmostEqual(summary["ttft_ms"]["p50"], 500.0)
        self.assertAlmostEqual(summary["inter_token_ms"]["p50"], 300.0)
        self.assertAlmostEqual(summary["end_to_end_ms"]["max"], 2000.0)


class LoadtestTest(unittest.TestCase):
    def _run(self, server: FakeServer, *arguments: str) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            plot = Path(folder) / "run.png"
            done = subprocess.run(
                [sys.executable, str(_LOADTEST), "--address", server.address, "--json", "-"]
                + ["--plot", str(plot), *arguments],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue(plot.read_bytes().startswith(b"\x89PNG"))
        return json.loads(done.stdout)

    def test_closed_and_open_loop_send_every_request(self):
        with FakeServer() as server:
            for pace in (("--concurrency", "3"), ("--rate", "200")):
                with self.subTest(pace):
                    server.requests.clear()
                    summary = self._run(server, "--requests", "10", "--width", "2", *pace)
                    self.assertEqual(summary["requests_by_code"], {"OK": 10})
                    self.assertEqual(len({r.request_id for r in server.requests}), 10)
                    self.assertEqual(summary["tokens"], 10 * 2 * 2)
                    self.assertEqual(summary["inter_token_ms"]["count"], 10 * 2)
                    self.assertEqual(summary["sharing_ratio"], 4.0)

    def test_duration_bounds_an_open_loop(self):
        with FakeServer() as server:
            summary = self._run(server, "--requests", "10000", "--rate", "20", "--duration", "0.5")
            self.assertLess(summary["requests"], 60)


if __name__ == "__main__":
    unittest.main()

"""The picture of a tree, from a stream of events."""

import io
import unittest

from fake_server import canned_events
from rich.console import Console

from espalier.v1 import generate_pb2, introspection_pb2
from espalier_client import tree_render
from espalier_client.tree_state import TreeState


def _picture(renderable) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _two_levels() -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest()
    request.root.id = "root"
    request.root.text = "[not markup] prompt"
    thought = request.root.children.add(id="thought", text="Think:")
    thought.generation.n = 2
    answer = thought.children.add(id="answer")
    answer.generation.SetInParent()
    request.root.children.add(id="choice", text="maybe", score=True)
    return request


class RenderTest(unittest.TestCase):
    def test_branches_hang_below_their_node_and_parent_branch(self):
        state = TreeState(_two_levels())
        for event in canned_events(_two_levels()):
            state.apply(event)
        expected = """\
root  [not markup] prompt
├── thought  Think:
│   ├── #0 thought/0  (stop, 2 tokens, logprob -0.50)
│   │   └── answer
│   │       └── #2 answer/0  (stop, 2 tokens, logprob -0.50)
│   └── #1 thought/1  (stop, 2 tokens, logprob -0.50)
│       └── answer
│           └── #3 answer/0  (stop, 2 tokens, logprob -0.50)
└── choice  maybe  logprob -1.75"""
        self.assertEqual(_picture(tree_render.render(state)), expected)

    def test_every_prefix_of_a_stream_can_be_drawn(self):
        state = TreeState(_two_levels())
        for event in canned_events(_two_levels()):
            state.apply(event)
            self.assertIn("root", _picture(tree_render.render(state)))

    def test_a_running_branch_has_no_verdict(self):
        state = TreeState(_two_levels())
        for event in canned_events(_two_levels())[:3]:
            state.apply(event)
        picture = _picture(tree_render.render(state))
        self.assertIn("#0 t ▌", picture)
        self.assertNotIn("stop", picture)

    def test_a_certain_branch_has_no_negative_zero(self):
        state = TreeState(_two_levels())
        events = canned_events(_two_levels())
        events[4].branch_finished.cumulative_logprob = -0.0
        for event in events[:5]:
            state.apply(event)
        self.assertIn("logprob 0.00", _picture(tree_render.render(state)))


class ShortenTest(unittest.TestCase):
    def test_keeps_both_ends_within_the_limit(self):
        self.assertEqual(tree_render.shorten("a  b\nc", 10), "a b c")
        short = tree_render.shorten("start" + "x" * 100 + "end", 21)
        self.assertEqual(len(short), 21)
        self.assertTrue(short.startswith("start") and short.endswith("end"))


class UsageTest(unittest.TestCase):
    def test_shows_the_ratio_of_logical_to_unique(self):
        usage = generate_pb2.Usage(
            kv_tokens_read_unique=1000,
            kv_tokens_read_logical=4500,
            completion_tokens=20,
            total_ms=500,
        )
        lines = tree_render.usage_lines(usage)
        self.assertIn("1,000 unique, 4,500 logical", lines)
        self.assertIn("4.50x", lines)
        self.assertIn("40 tokens/s", lines)

    def test_drafts_have_a_line_where_there_were_any(self):
        usage = generate_pb2.Usage(drafted_tokens=40, accepted_tokens=15, verify_steps=10)
        self.assertIn(
            "drafts: 40 tokens verified, 15 accepted, 2.50 tokens a step that verified\n",
            tree_render.usage_lines(usage),
        )
        self.assertNotIn("drafts", tree_render.usage_lines(generate_pb2.Usage()))

    def test_an_empty_tree_divides_by_nothing(self):
        self.assertIn("1.00x", tree_render.usage_lines(generate_pb2.Usage()))


class RadixTreeTest(unittest.TestCase):
    def test_nodes_hang_below_their_parents(self):
        answer = introspection_pb2.DescribeTreeResponse(truncated=True)
        answer.nodes.add()
        answer.nodes.add(
            parent=0, num_tokens=32, num_filled=32, num_pages=2, indexed=True, head_text="Once"
        )
        answer.nodes.add(parent=1, num_tokens=5, num_filled=3, num_pages=1, num_locks=1)
        expected = """\
KV cache
├── 32 tokens, 2 pages  Once
│   └── 5 tokens (3 computed), 1 pages, 1 locks, private
└── … more nodes than were asked for"""
        self.assertEqual(_picture(tree_render.render_radix_tree(answer)), expected)


if __name__ == "__main__":
    unittest.main()

"""Requests from files and from command lines."""

import tempfile
import unittest
from pathlib import Path

from espalier.v1 import generate_pb2, prompt_pb2
from espalier_client import tree_request
from espalier_client.connection import InputError
from espalier_client.tree_request import PromptOptions

_EXAMPLES = Path(__file__).resolve().parents[2] / "configs/examples"
_GREEDY = prompt_pb2.Generation(temperature=0, max_tokens=3)


class BuildTest(unittest.TestCase):
    def test_a_prompt_alone_generates(self):
        request = tree_request.build(PromptOptions("hello"), _GREEDY)
        self.assertEqual(request.root.text, "hello")
        self.assertEqual(request.root.generation, _GREEDY)

    def test_questions_generate_instead_of_the_prompt(self):
        request = tree_request.build(PromptOptions("hello", ["a", "b"]), _GREEDY)
        self.assertFalse(request.root.HasField("generation"))
        self.assertEqual([child.text for child in request.root.children], ["a", "b"])
        self.assertTrue(all(child.generation == _GREEDY for child in request.root.children))
        self.assertEqual([child.id for child in request.root.children], ["q1", "q2"])

    def test_chat_writes_messages(self):
        request = tree_request.build(PromptOptions("hi", chat=True, system="be kind"), _GREEDY)
        messages = [(m.role, m.content) for m in request.root.messages.messages]
        self.assertEqual(messages, [("system", "be kind"), ("user", "hi")])

    def test_the_prompt_of_chat_questions_is_the_system_message(self):
        request = tree_request.build(PromptOptions("be kind", ["hi"], chat=True), _GREEDY)
        self.assertEqual(request.root.messages.messages[0].role, "system")
        self.assertEqual(request.root.children[0].messages.messages[0].role, "user")

    def test_contradictions_are_refused(self):
        with self.assertRaisesRegex(InputError, "--chat"):
            tree_request.build(PromptOptions("hi", system="be kind"), _GREEDY)
        with self.assertRaisesRegex(InputError, "--system"):
            options = PromptOptions("hi", ["q"], chat=True, system="be kind")
            tree_request.build(options, _GREEDY)


class ReadTest(unittest.TestCase):
    def test_every_example_is_a_request(self):
        examples = list(_EXAMPLES.glob("*.json"))
        self.assertTrue(examples)
        for path in examples:
            with self.subTest(path.name):
                self.assertTrue(tree_request.read(path).HasField("root"))

    def test_errors_name_the_file_and_the_field(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tree.json"
            with self.assertRaisesRegex(InputError, "tree.json"):
                tree_request.read(path)
            path.write_text('{"root": {"txt": "hello"}}')
            with self.assertRaisesRegex(InputError, "txt"):
                tree_request.read(path)
            path.write_bytes(b"\xff\xfe")
            with self.assertRaisesRegex(InputError, "tree.json"):
                tree_request.read(path)


class NodesWithIdsTest(unittest.TestCase):
    def test_empty_ids_count_depth_first(self):
        request = generate_pb2.GenerateRequest()
        first = request.root.children.add()
        first.children.add(id="named")
        request.root.children.add()
        found = [(i, parent) for i, parent, _ in tree_request.nodes_with_ids(request.root)]
        self.assertEqual(found, [("0", None), ("1", "0"), ("named", "1"), ("3", "0")])

    def test_deep_trees_need_no_stack(self):
        request = generate_pb2.GenerateRequest()
        node = request.root
        for _ in range(60):
            node = node.children.add()
        self.assertEqual(sum(1 for _ in tree_request.nodes_with_ids(request.root)), 61)


if __name__ == "__main__":
    unittest.main()

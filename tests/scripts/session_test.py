"""The client's Session against a server with canned answers."""

import unittest

from fake_server import FakeServer

from espalier.v1 import prompt_pb2
from espalier_client.connection import open_channel
from espalier_client.session import CommandError, Session


class SessionTest(unittest.TestCase):
    def test_a_refused_command_fails_alone_and_usage_adds_up(self):
        with FakeServer() as server, open_channel(server.address) as channel:
            with Session(channel, timeout=30, priority=3) as session:
                self.assertEqual(session.append("a tree"), 0)
                with self.assertRaises(CommandError) as refused:
                    session.append("bad", 0)
                self.assertIn("bad is not allowed", str(refused.exception))
                for _ in range(2):
                    grown = session.generate([0], prompt_pb2.Generation(n=2))
                    self.assertEqual([branch.text for branch in grown], [" 1", " 2"])
                    self.assertEqual([branch.leaf for branch in grown], [0, 0])
                self.assertEqual(session.usage.completion_tokens, 8)
            self.assertEqual(server.commands[0].open.priority, 3)


if __name__ == "__main__":
    unittest.main()

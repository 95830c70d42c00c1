"""Random trees of given shapes, from a seed.

Prompts are random token ids, so that lengths are exact; chat is random words, since the server
itself writes the chat format. Every branch generates exactly what its shape says: stop conditions
are off.
"""

import dataclasses
import json
import random
from pathlib import Path

from espalier.v1 import generate_pb2, prompt_pb2
from espalier_client.connection import InputError

NAMES = ("few-shot", "best-of-n", "chat", "thoughts", "trace")

_QUESTION_TOKENS = 16
_WORDS = "time river stone light answer garden window letter music winter bread road".split()


@dataclasses.dataclass(frozen=True)
class ShapeOptions:
    """Numbers that the shapes share. Lengths are in tokens, of chat in words."""

    shape: str
    vocab_size: int
    prompt_tokens: int = 256
    output_tokens: int = 32  # of each branch; the mean for "thoughts"
    width: int = 8  # branches: all of few-shot and best-of-n, those of one level of "thoughts"
    depth: int = 3  # levels of "thoughts"
    num_prompts: int | None = None  # different prompts among all requests; None: one a request


@dataclasses.dataclass(frozen=True)
class LengthTree:
    """A tree as lengths: node 0 is the prompt; every other one continues its parent."""

    parent: list[int]  # of node i, below i; -1 for node 0
    tokens: list[int]


class ShapeSource:
    """Makes the requests of one run. The n-th request depends on the seed and on n only."""

    def __init__(self, options: ShapeOptions, seed: int, traces: list[LengthTree]) -> None:
        self._options = options
        self._seed = seed
        self._traces = traces

    def request(self, index: int) -> generate_pb2.GenerateRequest:
        """The index-th request, from 0."""
        rng = random.Random(f"{self._seed}/request/{index}")
        options = self._options
        prompt = rng.randrange(options.num_prompts) if options.num_prompts else index
        prompt_rng = random.Random(f"{self._seed}/prompt/{prompt}")
        request = generate_pb2.GenerateRequest(
            request_id=f"{options.shape}-{index}", seed=rng.getrandbits(64)
        )
        root = request.root
        match options.shape:
            case "few-shot":
                _fill(root, prompt_rng, options.prompt_tokens, options.vocab_size)
                for _ in range(options.width):
                    child = root.children.add()
                    _fill(child, rng, _QUESTION_TOKENS, options.vocab_size)
                    child.generation.CopyFrom(_exactly(options.output_tokens))
            case "best-of-n":
                _fill(root, prompt_rng, options.prompt_tokens, options.vocab_size)
                root.generation.CopyFrom(_exactly(options.output_tokens))
                root.generation.n = options.width
            case "chat":
                self._write_chat(root, prompt_rng, rng)
            case "thoughts":
                tree = random_thoughts(rng, options)
                self._write_tree(root, prompt_rng, rng, tree)
            case "trace":
                self._write_tree(root, prompt_rng, rng, rng.choice(self._traces))
        return request

    def _write_chat(
        self, root: prompt_pb2.PromptNode, prompt_rng: random.Random, rng: random.Random
    ) -> None:
        system = " ".join(prompt_rng.choices(_WORDS, k=self._options.prompt_tokens))
        user = " ".join(rng.choices(_WORDS, k=_QUESTION_TOKENS))
        root.messages.messages.add(role="system", content=system)
        root.messages.messages.add(role="user", content=user)
        root.generation.CopyFrom(_exactly(self._options.output_tokens))

    def _write_tree(
        self,
        root: prompt_pb2.PromptNode,
        prompt_rng: random.Random,
        rng: random.Random,
        tree: LengthTree,
    ) -> None:
        _fill(root, prompt_rng, tree.tokens[0], self._options.vocab_size)
        nodes = [root]
        for parent, tokens in zip(tree.parent[1:], tree.tokens[1:], strict=True):
            child = nodes[parent].children.add()
            # A prompt node cannot be empty: a thought's first token is given, the rest generated.
            _fill(child, rng, 1, self._options.vocab_size)
            child.generation.CopyFrom(_exactly(max(1, tokens - 1)))
            nodes.append(child)


def random_thoughts(rng: random.Random, options: ShapeOptions) -> LengthTree:
    """Tree-of-thought: each level proposes `width` thoughts, and one of them is thought on."""
    parent, tokens = [-1], [options.prompt_tokens]
    expanded = 0
    for _ in range(options.depth):
        level = range(len(parent), len(parent) + options.width)
        for _ in level:
            parent.append(expanded)
            tokens.append(max(1, round(options.output_tokens * rng.uniform(0.5, 1.5))))
        expanded = rng.choice(level)
    return LengthTree(parent, tokens)


def read_traces(path: Path, trace_id: str | None, length_scale: float) -> list[LengthTree]:
    """Node-table traces: JSON with `traces`, each of `id`, `parent`, `start`, `end`.

    Node n has end[n] - start[n] + 1 tokens; a node's id is greater than its parent's. Thoughts
    without tokens are left out, and so is what is below them. Raises InputError.
    """
    try:
        traces = json.loads(path.read_text("utf-8"))["traces"]
        chosen = [_tree_of(t, length_scale) for t in traces if trace_id in (None, t["id"])]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} holds no node-table traces: {error!r}") from error
    if not chosen:
        raise InputError(f"{path} has no trace {trace_id or 'at all'}")
    return chosen


def _tree_of(trace: dict, length_scale: float) -> LengthTree:
    new_index: dict[int, int] = {}
    parent, tokens = [], []
    spans = zip(trace["parent"], trace["start"], trace["end"], strict=True)
    for node, (its_parent, start, end) in enumerate(spans):
        length = end - start + 1
        if length <= 0 or (node > 0 and its_parent not in new_index):
            continue
        new_index[node] = len(parent)
        parent.append(new_index[its_parent] if node > 0 else -1)
        tokens.append(max(1, round(length * length_scale)))
    return LengthTree(parent, tokens)


def _fill(node: prompt_pb2.PromptNode, rng: random.Random, count: int, vocab_size: int) -> None:
    node.token_ids.ids.extend(rng.randrange(vocab_size) for _ in range(count))


def _exactly(tokens: int) -> prompt_pb2.Generation:
    return prompt_pb2.Generation(max_tokens=tokens, ignore_eos=True)

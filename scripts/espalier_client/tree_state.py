"""What a stream of GenerateEvents has told of a tree so far."""

import dataclasses

from espalier.v1 import generate_pb2
from espalier_client.tree_request import content_summary, nodes_with_ids


@dataclasses.dataclass
class Branch:
    """A branch as far as it was streamed."""

    id: int
    node_id: str
    sample_index: int
    text: str = ""
    num_tokens: int = 0
    finish_reason: str = ""  # "stop", "length", ...; empty while the branch runs
    cumulative_logprob: float = 0.0
    rank: int | None = None  # of a branch that a search kept, from 0, best first
    score: float | None = None  # what the search compared
    answer: str | None = None  # that the branch voted for
    hypothesis: str = ""  # of a beam search's result, whose text may lie in several branches


@dataclasses.dataclass
class Node:
    """A prompt node."""

    id: str
    content: str
    generates: bool
    children: list["Node"] = dataclasses.field(default_factory=list)


class TreeState:
    """Applies events in their order; everything that a picture of the tree needs is here."""

    def __init__(self, request: generate_pb2.GenerateRequest) -> None:
        nodes: dict[str, Node] = {}
        for node_id, parent, node in nodes_with_ids(request.root):
            nodes[node_id] = Node(node_id, content_summary(node), node.HasField("generation"))
            if parent is not None:
                nodes[parent].children.append(nodes[node_id])
        self.root = next(iter(nodes.values()))
        self.tree_id = ""
        self.seed = 0
        self.usage: generate_pb2.Usage | None = None
        self._branches: dict[int, Branch] = {}
        # Keyed by (node, branch above it): where in the picture a branch or a score belongs. Below a
        # branch of the same node are those that a search forked off.
        self._grown: dict[tuple[str, int | None], list[Branch]] = {}
        self._scores: dict[tuple[str, int | None], float] = {}

    def branches_at(self, node_id: str, parent_branch: int | None) -> list[Branch]:
        """The branches that a node grew on a path, in the order of their samples."""
        found = self._grown.get((node_id, parent_branch), [])
        return sorted(found, key=lambda branch: branch.sample_index)

    @property
    def branches(self) -> list[Branch]:
        """All branches, in the order of their start."""
        return list(self._branches.values())

    @property
    def kept(self) -> list[Branch]:
        """What searches kept, best first."""
        ranked = [branch for branch in self._branches.values() if branch.rank is not None]
        return sorted(ranked, key=lambda branch: branch.rank)

    def score_at(self, node_id: str, parent_branch: int | None) -> float | None:
        """log p of a scored node's content on a path; None when it has not come."""
        return self._scores.get((node_id, parent_branch))

    def apply(self, event: generate_pb2.GenerateEvent) -> None:
        """Takes the stream's next event."""
        match event.WhichOneof("event"):
            case "tree_started":
                self.tree_id = event.tree_started.tree_id
                self.seed = event.tree_started.seed
            case "branch_started":
                self._start(event.branch_started)
            case "tokens":
                for gained in event.tokens.branches:
                    branch = self._branches[gained.branch_id]
                    branch.text += gained.text
                    branch.num_tokens += len(gained.token_ids)
            case "branch_finished":
                self._finish(event.branch_finished)
            case "node_scored":
                scored = event.node_scored
                self._scores[scored.node_id, _parent(scored)] = sum(
                    token.logprob for token in scored.logprobs
                )
            case "tree_finished":
                self.usage = event.tree_finished.usage

    def _start(self, started: generate_pb2.BranchStarted) -> None:
        branch = Branch(started.branch_id, started.node_id, started.sample_index)
        self._branches[branch.id] = branch
        self._grown.setdefault((branch.node_id, _parent(started)), []).append(branch)

    def _finish(self, finished: generate_pb2.BranchFinished) -> None:
        branch = self._branches[finished.branch_id]
        name = generate_pb2.FinishReason.Name(finished.finish_reason)
        branch.finish_reason = name.removeprefix("FINISH_REASON_").lower()
        branch.cumulative_logprob = finished.cumulative_logprob
        branch.num_tokens = finished.completion_tokens
        branch.rank = finished.rank if finished.HasField("rank") else None
        branch.score = finished.score if finished.HasField("score") else None
        branch.answer = finished.answer if finished.HasField("answer") else None
        branch.hypothesis = finished.hypothesis_text


def _parent(event: generate_pb2.BranchStarted | generate_pb2.NodeScored) -> int | None:
    return event.parent_branch_id if event.HasField("parent_branch_id") else None

"""Pictures for the terminal: a decode tree, the server's radix tree, what a tree cost."""

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from espalier.v1 import generate_pb2, introspection_pb2
from espalier_client.tree_state import Branch, Node, TreeState

_PROMPT_CHARACTERS = 72  # of a prompt node's content; branches are shown whole
_PLAIN_WIDTH = 100  # columns of what goes to a file or a pipe


class _Console(Console):
    """Tells its caller that the output was closed; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(stderr: bool = False) -> Console:
    """As wide as the terminal, or of a fixed width when there is none."""
    console = _Console(stderr=stderr)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def render(state: TreeState) -> Tree:
    """The prompt tree with each branch below the node that grew it."""
    picture = Tree(_node_label(state, state.root, None), guide_style="dim")
    _add_below(picture, state, state.root, None)
    return picture


def _add_below(picture: Tree, state: TreeState, node: Node, parent_branch: int | None) -> None:
    if not node.generates:
        _add_children(picture, state, node, parent_branch)
        return
    for branch in state.branches_at(node.id, parent_branch):
        below = picture.add(_branch_label(branch))
        if branch.finish_reason == "pruned":
            continue  # nothing continues it
        _add_children(below, state, node, branch.id)
        _add_below(below, state, node, branch.id)  # what a search forked off


def _add_children(picture: Tree, state: TreeState, node: Node, branch: int | None) -> None:
    for child in node.children:
        _add_below(picture.add(_node_label(state, child, branch)), state, child, branch)


def _node_label(state: TreeState, node: Node, parent_branch: int | None) -> Text:
    label = Text(node.id, style="bold cyan")
    if node.content:
        label.append("  " + shorten(node.content, _PROMPT_CHARACTERS), style="not bold default")
    score = state.score_at(node.id, parent_branch)
    if score is not None:
        label.append(f"  logprob {score:.2f}", style="not bold green")
    return label


def _branch_label(branch: Branch) -> Text:
    label = Text(f"#{branch.id} ", style="bold green")
    label.append(branch.text.strip(), style="not bold default")
    if not branch.finish_reason:
        label.append(" ▌", style="not bold")
        return label
    # A greedy branch can be certain: then the sum is a negative zero.
    logprob = branch.cumulative_logprob + 0.0
    rank = f"rank {branch.rank}, " if branch.rank is not None else ""
    notes = f"  ({rank}{branch.finish_reason}, {branch.num_tokens} tokens, logprob {logprob:.2f})"
    label.append(notes, style="not bold dim")
    return label


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters on one line: the end, which tells siblings apart, is kept."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    head = (limit - 3) // 2
    return f"{line[:head]} … {line[len(line) - (limit - 3 - head):]}"


def sharing_ratio(unique: int, logical: int) -> float:
    """How many times per-branch attention would have read the KV; 1 when nothing was read."""
    return logical / unique if unique else 1.0


def usage_lines(usage: generate_pb2.Usage) -> str:
    """What the tree cost."""
    unique, logical = usage.kv_tokens_read_unique, usage.kv_tokens_read_logical
    seconds = usage.total_ms / 1000
    pace = ""
    if usage.completion_tokens:
        pace = (
            f", first token {usage.first_token_ms / 1000:.2f} s, "
            f"{usage.completion_tokens / max(seconds, 1e-9):.0f} tokens/s"
        )
    return (
        f"usage: {usage.prompt_tokens:,} prompt tokens ({usage.cached_tokens:,} cached), "
        f"{usage.completion_tokens:,} generated, {usage.computed_tokens:,} computed\n"
        f"KV tokens read: {unique:,} unique, {logical:,} logical: "
        f"{sharing_ratio(unique, logical):.2f}x less than branch by branch\n"
        f"{_drafts(usage)}time: {seconds:.2f} s, {usage.steps:,} steps{pace}"
    )


def _drafts(usage: generate_pb2.Usage) -> str:
    """A line on speculative decoding, if there was any."""
    if not usage.verify_steps:
        return ""
    return (
        f"drafts: {usage.drafted_tokens:,} tokens verified, {usage.accepted_tokens:,} accepted, "
        f"{1 + usage.accepted_tokens / usage.verify_steps:.2f} tokens a step that verified\n"
    )


def render_radix_tree(answer: introspection_pb2.DescribeTreeResponse) -> Tree:
    """The KV cache of one salt, as DescribeTree gives it."""
    top = Tree(Text("KV cache", style="bold cyan"), guide_style="dim")
    pictures: list[Tree] = []
    for node in answer.nodes:
        is_root = not node.HasField("parent")  # it holds no tokens
        pictures.append(top if is_root else pictures[node.parent].add(_cached_label(node)))
    if answer.truncated:
        top.add(Text("… more nodes than were asked for", style="dim"))
    return top


def _cached_label(node: introspection_pb2.TreeNode) -> Text:
    label = Text(f"{node.num_tokens} tokens", style="bold")
    if node.num_filled < node.num_tokens:
        label.append(f" ({node.num_filled} computed)", style="not bold yellow")
    label.append(f", {node.num_pages} pages", style="not bold")
    if node.num_locks:
        label.append(f", {node.num_locks} locks", style="not bold yellow")
    if not node.indexed:
        label.append(", private", style="not bold dim")
    label.append("  " + shorten(node.head_text, _PROMPT_CHARACTERS), style="not bold dim")
    return label

#!/usr/bin/env python3
"""Decode attention of installed peers and of espalier-bench on the same trees, in one table.

Needs a CUDA device and PyTorch; FlashInfer and FlashAttention are measured where they are
installed. Protocol, theirs and ours: a captured CUDA graph runs several layers, each with KV of its
own, of four times the L2 cache together; the median of the replays, divided by the layers. The
error is the relative one, over all outputs of the first layer, against fp32.

A peer that knows no trees gets each branch as a request; full pages of a shared prefix are shared
between requests, as in a paged cache with prefix reuse. PyTorch's own attention takes a contiguous
copy of each branch. FlashInfer's cascade runs its FA2 kernels: those that it picks on Hopper by
itself pack no head groups, and are slower. Each peer has a process of its own, so that one that
crashes leaves the others' figures.
"""

import argparse
import json
import math
import multiprocessing
import pathlib
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import torch

COLD_FACTOR = 4  # of the L2 cache
MOST_LAYERS = 64
COPY_LIMIT = 40 << 30  # bytes of contiguous copies, all layers

TREES = [
    "1,20 / 4000,200",
    "1,30 / 4000,200",
    "1,50 / 4000,200",
    "1,50 / 20000,200",
    "1,10,50 / 4000,300,300",
    "1,1 / 8000,8",
    "32 / 2000",
    "1,64 / 4000,1",
]


@dataclass
class Tree:
    """Nodes, parents first. A branch is a leaf; branches are in depth-first order."""

    name: str
    parent: list[int]
    tokens: list[int]

    def __post_init__(self):
        children = [[] for _ in self.parent]
        roots = []
        for node, parent in enumerate(self.parent):
            (roots if parent < 0 else children[parent]).append(node)
        self.paths = []
        stack = [[root] for root in reversed(roots)]
        while stack:
            path = stack.pop()
            below = children[path[-1]]
            if not below:
                self.paths.append(path)
            stack.extend(path + [child] for child in reversed(below))

    @staticmethod
    def levels(text: str) -> "Tree":
        """Nodes a level / tokens a node, as espalier-bench attention --tree."""
        try:
            widths, lengths = ([int(x) for x in part.split(",")] for part in text.split("/"))
        except ValueError:
            sys.exit(f'--tree "{text}": expected nodes a level / tokens a node: "1,50 / 4000,200"')
        if len(widths) != len(lengths) or min(widths + lengths) < 1:
            sys.exit(f'--tree "{text}": as many node counts as lengths, all at least 1')
        parent, tokens, above = [], [], 0
        for level, (width, length) in enumerate(zip(widths, lengths)):
            begin = len(parent)
            for i in range(width):
                parent.append(above + i * widths[level - 1] // width if level else -1)
            tokens += [length] * width
            above = begin
        return Tree(text, parent, tokens)


class Problem:
    """Queries and KV of all layers for one tree; where the pages of nodes and of branches are."""

    def __init__(self, tree: Tree, heads: int, kv_heads: int, head_dim: int, page: int, dtype):
        self.tree, self.page, self.dtype = tree, page, dtype
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.branches = len(tree.paths)
        self.lengths = [sum(tree.tokens[n] for n in path) for path in tree.paths]
        self._assign_pages()
        shape = (self.num_pages, kv_heads, page, head_dim)
        token_bytes = 2 * kv_heads * head_dim * dtype.itemsize
        kv_bytes = self.num_pages * page * token_bytes
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self.layers = max(2, min(MOST_LAYERS, COLD_FACTOR * l2 // kv_bytes + 1))
        self.copy_bytes = sum(self.lengths) * token_bytes
        generator = torch.Generator("cuda").manual_seed(1)

        def random(*size):
            return torch.randn(*size, device="cuda", dtype=dtype, generator=generator)

        self.q = [random(self.branches, heads, head_dim) for _ in range(self.layers)]
        self.kv = [(random(*shape), random(*shape)) for _ in range(self.layers)]
        # The same values at a node's own pages and at the branches' copies of its part pages.
        for k, v in self.kv:
            for cache in (k, v):
                flat = cache.permute(0, 2, 1, 3)
                flat[self.copy_to] = flat[self.copy_from]

    def _assign_pages(self):
        """Pages of nodes, as a cascade reads them, and of branches, as a paged decode does.

        A branch's page belongs to the node of its last token, so that branches share what lies
        before their fork. The two sets of pages are apart; a kernel reads one of them.
        """
        tree, page = self.tree, self.page
        self.node_pages, next_page = [], 0
        for tokens in tree.tokens:
            count = math.ceil(tokens / page)
            self.node_pages.append(list(range(next_page, next_page + count)))
            next_page += count
        owned, self.branch_pages, copies = {}, [], {}
        for path, length in zip(tree.paths, self.lengths):
            slots = [
                (self.node_pages[n][t // page], t % page)
                for n in path
                for t in range(tree.tokens[n])
            ]
            owner = [n for n in path for _ in range(tree.tokens[n])]
            pages = []
            for begin in range(0, length, page):
                end = min(begin + page, length)
                key = (owner[end - 1], begin)
                if key not in owned:
                    owned[key] = next_page
                    next_page += 1
                    copies[owned[key]] = slots[begin:end]
                pages.append(owned[key])
            self.branch_pages.append(pages)
        self.num_pages = next_page
        to = [(page_id, i) for page_id, slots in copies.items() for i in range(len(slots))]
        source = [slot for slots in copies.values() for slot in slots]
        self.copy_to = tuple(torch.tensor(x, device="cuda") for x in zip(*to))
        self.copy_from = tuple(torch.tensor(x, device="cuda") for x in zip(*source))

    def contiguous(self, layer: int, branch: int):
        """K and V of a branch, [kv_heads, length, head_dim]."""
        pages = torch.tensor(self.branch_pages[branch], device="cuda")
        return tuple(
            cache[pages].transpose(0, 1).flatten(1, 2)[:, : self.lengths[branch]]
            for cache in self.kv[layer]
        )

    def reference(self):
        out = []
        group = self.heads // self.kv_heads
        for branch in range(self.branches):
            k, v = (x.float().repeat_interleave(group, 0) for x in self.contiguous(0, branch))
            scores = torch.einsum("hd,htd->ht", self.q[0][branch].float(), k)
            out.append(torch.einsum("ht,htd->hd", (scores / self.head_dim**0.5).softmax(-1), v))
        return torch.stack(out)


def int32(values, device="cuda"):
    return torch.tensor(values, dtype=torch.int32, device=device)


def indptr(lists):
    ends = [0]
    for x in lists:
        ends.append(ends[-1] + len(x))
    return int32(ends)


def last_page_lengths(lengths, page):
    return int32([(n - 1) % page + 1 if n else 0 for n in lengths])


def flat(lists):
    return int32([x for part in lists for x in part])


def flashinfer_decode(p: Problem, tensor_cores: bool):
    import flashinfer

    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(512 << 20, dtype=torch.uint8, device="cuda"),
        "HND",
        use_tensor_cores=tensor_cores,
    )
    wrapper.plan(
        indptr(p.branch_pages),
        flat(p.branch_pages),
        last_page_lengths(p.lengths, p.page),
        p.heads,
        p.kv_heads,
        p.head_dim,
        p.page,
        q_data_type=p.dtype,
        kv_data_type=p.dtype,
    )
    return lambda layer: wrapper.run(p.q[layer], p.kv[layer])


def flashinfer_cascade(p: Problem):
    """A level of the cascade is a depth of the tree; a branch that ends above has no KV there."""
    import flashinfer

    levels = max(len(path) for path in p.tree.paths)
    queries, pages, lengths = [], [], []
    for level in range(levels):
        groups = []  # node or None, branches
        for path in p.tree.paths:
            node = path[level] if level < len(path) else None
            if groups and node is not None and groups[-1][0] == node:
                groups[-1][1] += 1
            else:
                groups.append([node, 1])
        ends = [0]
        for _, count in groups:
            ends.append(ends[-1] + count)
        queries.append(int32(ends))
        pages.append([[] if node is None else p.node_pages[node] for node, _ in groups])
        lengths.append([0 if node is None else p.tree.tokens[node] for node, _ in groups])
    workspace = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(levels, workspace, "HND")
    wrapper._batch_prefill_wrappers = [
        flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND", backend="fa2")
        for _ in range(levels)
    ]
    wrapper.plan(
        queries,
        [indptr(level) for level in pages],
        [flat(level) for level in pages],
        [last_page_lengths(level, p.page) for level in lengths],
        p.heads,
        p.kv_heads,
        p.head_dim,
        p.page,
        q_data_type=p.dtype,
        kv_data_type=p.dtype,
    )
    return lambda layer: wrapper.run(p.q[layer], p.kv[layer])


def flashinfer_batch_attention(p: Problem):
    import flashinfer

    wrapper = flashinfer.BatchAttention("HND")
    wrapper.plan(
        int32(list(range(p.branches + 1))),
        indptr(p.branch_pages),
        flat(p.branch_pages),
        int32(p.lengths),
        p.heads,
        p.kv_heads,
        p.head_dim,
        p.head_dim,
        p.page,
        q_data_type=p.dtype,
        kv_data_type=p.dtype,
    )
    return lambda layer: wrapper.run(p.q[layer], p.kv[layer])[0]


def contiguous_branches(p: Problem):
    """[layers] of K and V, [branches, kv_heads, longest, head_dim], and the mask where needed."""
    if p.layers * p.copy_bytes > COPY_LIMIT:
        raise RuntimeError(f"contiguous branches take {p.layers * p.copy_bytes >> 30} GiB")
    longest = max(p.lengths)
    layers = []
    for layer in range(p.layers):
        shape = (p.branches, p.kv_heads, longest, p.head_dim)
        both = [torch.zeros(shape, device="cuda", dtype=p.dtype) for _ in range(2)]
        for branch, length in enumerate(p.lengths):
            for to, source in zip(both, p.contiguous(layer, branch)):
                to[branch, :, :length] = source
        layers.append(both)
    return layers


def torch_sdpa(p: Problem):
    kv = contiguous_branches(p)
    mask = None
    if min(p.lengths) != max(p.lengths):
        positions = torch.arange(max(p.lengths), device="cuda")
        mask = (positions < int32(p.lengths)[:, None])[:, None, None]
    attend = torch.nn.functional.scaled_dot_product_attention

    def run(layer):
        q = p.q[layer][:, :, None]
        return attend(q, *kv[layer], attn_mask=mask, enable_gqa=p.heads != p.kv_heads)[:, :, 0]

    return run


def flash_attention(p: Problem):
    from flash_attn import flash_attn_with_kvcache

    kv = [[x.transpose(1, 2).contiguous() for x in both] for both in contiguous_branches(p)]
    lengths = int32(p.lengths)
    return lambda layer: flash_attn_with_kvcache(
        p.q[layer][:, None], *kv[layer], cache_seqlens=lengths
    )[:, 0]


PEERS = {
    "FlashInfer decode": lambda p: flashinfer_decode(p, tensor_cores=False),
    "FlashInfer decode TC": lambda p: flashinfer_decode(p, tensor_cores=True),
    "FlashInfer cascade": flashinfer_cascade,
    "FlashInfer BatchAttention": flashinfer_batch_attention,
    "FlashAttention": flash_attention,
    "PyTorch SDPA": torch_sdpa,
}


def measure(p: Problem, prepare, reference, repeats: int) -> dict:
    """Microseconds a layer and the error, or why there is none."""
    try:
        run = prepare(p)
        out = run(0).float()
        error = ((out - reference).norm() / reference.norm()).item()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer in range(p.layers):
                run(layer)
    except ModuleNotFoundError as missing:
        return {"skipped": f"{missing.name} is not installed"}
    except Exception as failure:  # a peer's: whatever it raises, the table goes on
        torch.cuda.synchronize()
        return {"skipped": f"{type(failure).__name__}: {failure}".splitlines()[0][:160]}
    times = []
    for i in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end) * 1000 / p.layers)
    return {"us": statistics.median(times), "error": error}


def measure_peer(name: str, trees: list, args, results) -> None:
    """Sends one result a tree; in a process of its own."""
    heads, kv_heads = (int(x) for x in args.heads.split("/"))
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[args.dtype]
    for tree in trees:
        problem = Problem(tree, heads, kv_heads, args.head_dim, args.page, dtype)
        results.send(measure(problem, PEERS[name], problem.reference(), args.repeats))
        del problem
        torch.cuda.empty_cache()


def results_of_peer(name: str, trees: list, args) -> list:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_peer, args=(name, trees, args, sender))
    process.start()
    sender.close()
    results = []
    try:
        while len(results) < len(trees):
            results.append(receiver.recv())
    except EOFError:
        pass
    process.join()
    missing = {"skipped": f"its process ended with {process.exitcode}"}
    return results + [missing] * (len(trees) - len(results))


def measure_ours(bench: str, tree: Tree, args) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tree.json"
        path.write_text(json.dumps({"parent": tree.parent, "tokens": tree.tokens}))
        command = [bench, "attention", "--device", "cuda", "--tree-file", str(path), "--json"]
        command += ["--heads", args.heads, "--head-dim", str(args.head_dim), "--variant", "default"]
        command += ["--dtype", args.dtype, "--page", str(args.page), "--repeats", str(args.repeats)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr or done.stdout}")
    return json.loads(done.stdout)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bench", required=True, help="path of espalier-bench, built with CUDA")
    parser.add_argument("--tree", action="append", help='repeatable: "1,50 / 4000,200"')
    parser.add_argument("--heads", default="32/8", help="query heads / kv heads (32/8)")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page", type=int, default=16, choices=(16, 32, 64))
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f16"))
    parser.add_argument("--repeats", type=int, default=50, help="timed replays")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    trees = [Tree.levels(text) for text in args.tree or TREES]
    results = []
    for tree in trees:
        ours = measure_ours(args.bench, tree, args)
        results.append({"tree": tree.name, "espalier": ours, "peers": {}})
    for name in PEERS:
        print(f"{name}", file=sys.stderr)
        for result, times in zip(results, results_of_peer(name, trees, args)):
            result["peers"][name] = times
    if args.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1))
        return
    print_table(args, results)


def print_table(args, results) -> None:
    print(
        f"{torch.cuda.get_device_name()}, {args.heads} heads, head_dim {args.head_dim}, "
        f"{args.dtype}, page {args.page}; us a layer, cold L2"
    )
    print(f"| tree | roofline | Espalier | ratio | {' | '.join(PEERS)} | best peer / Espalier |")
    print("|" + "---|" * (len(PEERS) + 5))
    factors, skipped = [], {}
    for result in results:
        ours = result["espalier"]["rows"][0]
        cells, times = [], []
        for name, peer in result["peers"].items():
            if "us" not in peer:
                skipped.setdefault(f"{name}: {peer['skipped']}", []).append(result["tree"])
                cells.append("–")
            elif not peer["error"] < 0.02:
                skipped.setdefault(f"{name}: wrong, error {peer['error']:.2g}", []).append(
                    result["tree"]
                )
                cells.append("wrong")
            else:
                times.append(peer["us"])
                cells.append(f"{peer['us']:.1f}")
        factor = min(times) / ours["us_per_layer"] if times else float("nan")
        factors.append(factor)
        print(
            f"| {result['tree']} | {ours['roofline_us']:.1f} | {ours['us_per_layer']:.1f} "
            f"| {ours['over_roofline']:.2f} | {' | '.join(cells)} | {factor:.2f} |"
        )
    if all(factor == factor for factor in factors):
        print(f"\ngeometric mean of the last column: {statistics.geometric_mean(factors):.2f}")
    for why, trees in skipped.items():
        where = f" ({', '.join(trees)})" if len(trees) < len(results) else ""
        print(f"not measured: {why}{where}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Checks that sources include only what their layer may.

server -> engine -> model -> kernels: a folder includes itself and what is below it. Only server/
sees protobuf, gRPC and the generated API; only kernels/cuda sees CUDA headers. tests/X may include
what X may, and test helpers.

Usage: check_includes.py [ROOT]     exits 1 and names every line that breaks a rule
       check_includes.py --self-test
"""

import pathlib
import re
import sys
import tempfile

LAYERS = ["kernels", "model", "engine", "server"]  # lowest first
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]')
RPC = re.compile(r"^(google/protobuf/|grpc/|grpcpp/|grpc\+\+/|espalier/v1/|.*\.pb\.h$)")
CUDA = re.compile(r"^(cuda|cublas|nccl|nvtx|cub/|thrust/|cooperative_groups|cute/|cutlass/|mma\.h)")
SUFFIXES = {".h", ".hpp", ".cc", ".cpp", ".cu", ".cuh", ".inc"}


def layer_of(path):
    """The layer whose rules apply to a file, by its path from the root; None for no layer."""
    parts = path.parts
    if parts[0] == "tests":
        parts = parts[1:]
    return parts[0] if parts and parts[0] in LAYERS else None


def problem_of(path, included):
    """Why a file may not include a header, or None."""
    layer = layer_of(path)
    parts = path.parts
    if RPC.match(included) and layer != "server":
        return "only server/ may see protobuf and gRPC"
    if CUDA.match(included) and parts[:2] != ("kernels", "cuda") and parts[:3] != (
        "tests", "kernels", "cuda"):
        return "only kernels/cuda may see CUDA headers"
    target = included.split("/")[0]
    if layer and "/" in included and target in LAYERS:
        if LAYERS.index(target) > LAYERS.index(layer):
            return f"{layer}/ is below {target}/"
    if parts[0] in LAYERS and target == "tests":
        return "sources may not include tests"
    return None


def check(root):
    """Problems under `root`, one line each, and the number of files looked at."""
    problems = []
    num_files = 0
    for folder in LAYERS + ["tests"]:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in SUFFIXES:
                continue
            num_files += 1
            path = file.relative_to(root)
            text = file.read_text(encoding="utf-8", errors="replace")
            for number, line in enumerate(text.splitlines(), start=1):
                match = INCLUDE.match(line)
                problem = match and problem_of(path, match[1])
                if problem:
                    problems.append(f"{path}:{number}: includes {match[1]}: {problem}")
    return problems, num_files


def self_test():
    """Plants one file for every rule, and some that break none."""
    bad = {
        "kernels/a.h": '#include "model/config.h"',
        "model/a.cc": '#include "engine/engine.h"',
        "engine/a.cc": '#include "server/convert.h"',
        "engine/b.cc": "#include <google/protobuf/message.h>",
        "engine/c.cc": '#include "espalier/v1/prompt.pb.h"',
        "tests/engine/a.cc": "#  include <grpcpp/grpcpp.h>",
        "tests/support/a.h": '#include "espalier/v1/prompt.pb.h"',
        "kernels/cpu/a.cc": "#include <cuda_runtime.h>",
        "engine/d.cc": '#include "tests/support/tree.h"',
    }
    good = {
        "server/a.cc": '#include <grpcpp/grpcpp.h>\n#include "engine/engine.h"',
        "tests/server/a.cc": '#include "espalier/v1/prompt.pb.h"\n#include "server/convert.h"',
        "engine/e.cc": '#include "model/config.h"\n#include "kernels/ops.h"\n#include <vector>',
        "kernels/cuda/a.cu": "#include <cuda_runtime.h>\n#include <cub/cub.cuh>",
        "tests/bench/a.cc": '#include "engine/engine.h"\n#include "kernels/ops.h"',
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in {**bad, **good}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
        problems, num_files = check(root)
    found = {problem.split(":")[0] for problem in problems}
    assert found == set(bad), found ^ set(bad)
    assert num_files == len(bad) + len(good)


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return 0
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1])
    problems, num_files = check(root.resolve())
    print("\n".join(problems) if problems else f"{num_files} files include only what they may")
    if num_files == 0:
        print(f"no sources under {root}")
    return 1 if problems or num_files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

"""Times our CPU products, exact and int8, against MLX's and other libraries'.

    python -m bench.against_cpu_libraries --model llama-3-8b --json cpu.json
    python -m bench.against_cpu_libraries --shape 4096,4096 --peers onnxruntime torch
    python -m bench.against_cpu_libraries --json cpu.json --at-most 150

The file is written after each product. The same command continues it and measures
nothing twice; ``--at-most`` ends a part of a long run.

Weights have 4 bits. Activations are float32, for the peer torch bfloat16. Scales are
float16, as in checkpoints, with two exceptions: MLX has float32, with which it is
fastest, and llama.cpp has blocks of 32. Peers are installed when they are first named,
each into its own environment under build/peers.

All candidates take turns within one run. Between its turns a peer is stopped: threads
that wait by spinning would slow down the next one. A turn is several products, the
first of them untimed. Exact products are compared with the fastest of MLX and the exact
peers; int8 products with the fastest of MLX and the int8 peers. With cold weights,
shares of the bandwidth refer to a plain read that takes turns with the products.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx

from bench import timing
from bench.own_products import READ, calls_of, candidates, one_matrix, weight_bytes
from bench.peers import PEERS, Peer, peer_python, script
from mlx_nibble.bench import capsule, peaks
from mlx_nibble.bench.machine import last_level_cache_bytes, threads
from mlx_nibble.bench.products import ProductCase
from mlx_nibble.bench.shapes import MODELS
from mlx_nibble.cli.console import filled, out

# Candidates of each peer: its maker in peer_product.py, and whether it rounds
# activations to 8 bits.
MODES = {
    "onnxruntime": [("onnxruntime", False), ("onnxruntime", True)],
    "openvino": [("openvino", False), ("openvino", True)],
    "torch": [("torch", False)],
    "llama.cpp": [("llama.cpp Q4_0", True), ("llama.cpp Q4_1", True)],
}
# Our candidates, and whether they round activations to 8 bits.
MINE = {
    "nibble": False,
    "nibble repacked": False,
    "nibble int8": True,
    "nibble int8 repacked": True,
}
# Most copies of a weight matrix: a peer's take time to make, and this number of copies
# of our smallest shape exceeds a cache.
MAX_COPIES = 256


class Product(Peer):
    """A library's product, which times itself."""

    def __init__(self, name: str, maker: str, int8: bool, threads: int):
        self.int8 = int8
        super().__init__([peer_python(name), script("peer_product"), maker], threads)

    def turn(self, calls: int) -> Callable[[], float]:
        """Return a turn of some products, after an untimed one."""

        def run() -> float:
            self.ask(1)
            return float(str(self.ask(calls)))

        return run


def measure(
    case: ProductCase, args: argparse.Namespace, peers: dict[str, Product]
) -> dict:
    turns = candidates(case, args.hot)
    if case.rows > args.mlx_rows:
        del turns["mlx"]
    wanted = 4 * last_level_cache_bytes()
    copies = max(2, min(MAX_COPIES, -(-wanted // weight_bytes(case))))
    if one_matrix(case, args.hot):
        copies = 1
    for name, peer in peers.items():
        request = {"int8": peer.int8, "copies": copies}
        peer.ask({**vars(case), **request})
        turns[name] = peer.turn(calls_of(case))
    taken = timing.interleave(turns, args.seconds)
    return {
        "case": vars(case),
        "weight_bytes": weight_bytes(case),
        "candidates": {
            name: {"chain": calls_of(case), "passes": [[s] for s in seconds]}
            for name, seconds in taken.items()
        },
    }


def row(
    result: dict, peers: dict[str, Product], bandwidth: float, peak: float
) -> list[str]:
    case, taken = result["case"], timing.samples(result)
    operations = 2 * case["rows"] * case["N"] * case["K"]
    cells = [str(case["rows"]), str(case["N"]), str(case["K"])]
    for mode, int8 in MINE.items():
        seconds = statistics.median(taken[mode])
        share = result["weight_bytes"] / seconds / bandwidth
        if READ in taken:
            share = timing.faster(taken[READ], taken[mode]).value
        cells += [
            f"{1e3 * seconds:.3f} ms",
            f"{share:.0%}",
            f"{operations / seconds / peak:.0%}",
        ]
        others = [
            n for n in taken if n == "mlx" or n in peers and peers[n].int8 == int8
        ]
        if not others:
            cells.append("")
            continue
        best = min(others, key=lambda n: statistics.median(taken[n]))
        faster = timing.faster(taken[best], taken[mode])
        cells.append(f"{faster.value:.2f}x {best}")
    return cells


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.against_cpu_libraries",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--shape", nargs="+", default=[], metavar="N,K")
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 128, 512]
    )
    parser.add_argument(
        "--mlx-rows", type=int, default=8, help="most rows for MLX, which is slow"
    )
    parser.add_argument("--group-size", type=int, default=64, choices=[32, 64, 128])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[])
    parser.add_argument("--hot", action="store_true", help="one matrix, in cache")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="time for each product"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write every sample; continue the file"
    )
    parser.add_argument(
        "--at-most",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="begin no product after this time",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    mx.set_default_device(mx.cpu)
    shapes = [tuple(int(d) for d in s.split(",")) for s in args.shape]
    peers = {
        f"{maker} {'int8' if int8 else 'exact'}": Product(name, maker, int8, threads())
        for name in args.peers
        for maker, int8 in MODES[name]
    }
    most = peaks.measure("float32")
    made = started(args, argv or sys.argv[1:])
    made["peaks"] = made["peaks"] or asdict(most)
    cases = [
        ProductCase(rows, N, K, 4, args.group_size, "float32")
        for N, K in shapes or MODELS[args.model]
        for rows in args.rows
    ]
    results = made["results"]
    done = [result["case"] for result in results]
    left = [case for case in cases if vars(case) not in done]
    before = time.monotonic()
    while left and time.monotonic() - before < args.at_most:
        case = left.pop(0)
        print(f"\r{case}"[:100].ljust(100), end="", file=sys.stderr)
        results.append(measure(case, args, peers))
        if args.json:
            capsule.write(made | {"complete": not left}, args.json)
    print("\r".ljust(101) + "\r", end="", file=sys.stderr)
    for peer in peers.values():
        peer.close()
    report(made, peers, args)
    if left:
        print(f"{len(left)} of {len(cases)} are left: the same command continues")


def started(args: argparse.Namespace, typed: list[str]) -> dict:
    """Return the file's capsule if it is of this run and incomplete, else a new one."""
    settings = {
        "hot": args.hot,
        "seconds": args.seconds,
        "mlx_rows": args.mlx_rows,
        "peers": {name: PEERS[name] for name in args.peers},
    }
    made = capsule.new(
        "kernels", ["python", "-m", "bench.against_cpu_libraries", *typed], settings
    )
    if args.json and Path(args.json).exists():
        found = capsule.read(args.json)
        same = all(found[key] == made[key] for key in ("settings", "versions"))
        if same and not found["complete"]:
            return found
    return made


def report(made: dict, peers: dict[str, Product], args: argparse.Namespace) -> None:
    bandwidth = made["peaks"]["read_bytes_per_second"]
    peak = made["peaks"]["flops_per_second"]
    heading = ["rows", "N", "K"]
    for mode in MINE:
        heading += [mode, "of bandwidth", "of FMA", "faster than"]
    print(
        f"{'hot' if args.hot else 'cold'} weights, 4 bits, group {args.group_size}; "
        f"all cores read {bandwidth / 1e9:.1f} GB/s and multiply at "
        f"{peak / 1e9:.0f} GFLOP/s"
    )
    table = [row(r, peers, bandwidth, peak) for r in made["results"]]
    out.print(filled(heading, table, text_columns=0))


if __name__ == "__main__":
    main()

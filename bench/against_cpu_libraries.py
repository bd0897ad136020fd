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
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import mlx.core as mx

from bench import timing
from mlx_nibble import ops
from mlx_nibble.acceleration.repack import Copies
from mlx_nibble.bench import capsule, peaks
from mlx_nibble.bench.machine import last_level_cache_bytes, threads
from mlx_nibble.bench.products import Pools, ProductCase, link
from mlx_nibble.bench.shapes import MODELS
from mlx_nibble.cli.console import filled, out

# Packages that pip installs for each peer. llama.cpp is built from source, for this
# processor.
PEERS = {
    "onnxruntime": ["onnxruntime==1.32.0", "onnx"],
    "openvino": ["openvino==2026.4.1"],
    "torch": ["torch==2.13.0+cpu"],
    "llama.cpp": ["llama-cpp-python==0.3.36"],
}
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
# Candidate that reads the bytes of the weights from memory, on all cores.
READ = "read"
# Most copies of a weight matrix: a peer's take time to make, and this number of copies
# of our smallest shape exceeds a cache.
MAX_COPIES = 256
# With more rows than this, the place of the weights hardly matters, and a peer's copies
# take long to make: all candidates then use one matrix.
COLD_ROWS = 32
# Most products of a turn, and multiplications that fill a turn on their own.
MAX_CALLS, CALL_PRODUCTS = 16, 2**31
ENVIRONMENTS = Path(__file__).resolve().parent.parent / "build" / "peers"


def peer_python(name: str) -> Path:
    """Return the Python of the peer's environment; make the environment if needed."""
    home = ENVIRONMENTS / name
    python = home / "bin" / "python"
    done = home / "installed"
    if not done.exists():
        print(f"installing {name} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", "numpy", *PEERS[name]]
        native = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", **os.environ}
        subprocess.run(command, check=True, env=native)
        done.touch()
    return python


class Peer:
    """The process of a peer, which measures itself and is stopped between its turns."""

    def __init__(self, name: str, maker: str, int8: bool, threads: int):
        self.int8 = int8
        worker = Path(__file__).parent / "peer_product.py"
        self._process = subprocess.Popen(
            [peer_python(name), worker, maker, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, request: object) -> object:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        self._process.send_signal(signal.SIGCONT)
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def turn(self, calls: int) -> Callable[[], float]:
        def run() -> float:
            self.ask(1)
            return float(str(self.ask(calls)))

        return run

    def close(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()


def calls_of(case: ProductCase) -> int:
    products = case.rows * case.N * case.K
    return max(1, min(MAX_CALLS, CALL_PRODUCTS // products))


def one_matrix(case: ProductCase, hot: bool) -> bool:
    """Return whether all products use one matrix, which stays in the cache."""
    return hot or case.rows > COLD_ROWS


def candidates(case: ProductCase, hot: bool) -> dict[str, Callable[[], float]]:
    pool = Pools(one_matrix(case, hot)).copies(case, "quantized")
    x = mx.random.normal((case.rows, case.K))
    mx.eval(x)

    def scaled(dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        own = [(w, s.astype(dtype), b.astype(dtype)) for w, s, b in pool]
        mx.eval(own)
        return own

    form = (True, case.group_size, case.bits)

    def turn(op, own: list[tuple[mx.array, ...]], **options) -> Callable[[], float]:
        step = cycle(own)

        def products(count: int) -> float:
            before = time.perf_counter()
            last = x
            for _ in range(count):
                # The next product may reuse this one's memory. If all results were
                # kept, the system would clear new pages for most of them.
                last = link(last, op(last, *next(step), *form, **options))
            mx.eval(last)
            return (time.perf_counter() - before) / count

        def run() -> float:
            products(1)
            return products(calls_of(case))

        return run

    own, packed = scaled(mx.float16), scaled(mx.float16)
    Copies((*weights, case.bits, case.group_size) for weights in packed)
    for weights in packed:  # the first product makes the copy
        mx.eval(ops.quantized_matmul(x[:1], *weights, *form))
    int8 = {"activations": "int8"}
    turns = {
        "mlx": turn(mx.quantized_matmul, scaled(mx.float32)),
        "nibble": turn(ops.quantized_matmul, own),
        "nibble repacked": turn(ops.quantized_matmul, packed),
        "nibble int8": turn(ops.quantized_matmul, own, **int8),
        "nibble int8 repacked": turn(ops.quantized_matmul, packed, **int8),
    }
    return turns if hot else turns | {READ: reading(case)}


def reading(case: ProductCase) -> Callable[[], float]:
    """Return the read that takes turns: the bandwidth changes within seconds."""
    read = peaks.reader()

    def run() -> float:
        before = time.perf_counter()
        return weight_bytes(case) / read() * (time.perf_counter() - before)

    return run


def measure(
    case: ProductCase, args: argparse.Namespace, peers: dict[str, Peer]
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


def weight_bytes(case: ProductCase) -> int:
    """Return the bytes of codes, and of scales and biases in 16 bits."""
    return case.N * (case.K * case.bits // 8 + 4 * case.K // case.group_size)


def row(
    result: dict, peers: dict[str, Peer], bandwidth: float, peak: float
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
        f"{maker} {'int8' if int8 else 'exact'}": Peer(name, maker, int8, threads())
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


def report(made: dict, peers: dict[str, Peer], args: argparse.Namespace) -> None:
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

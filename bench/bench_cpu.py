"""Our CPU products, exact and with 8-bit activations, against MLX's and others'.

    python -m bench.bench_cpu --model llama-3-8b --json cpu.json
    python -m bench.bench_cpu --shape 4096,4096 --peers onnxruntime openvino torch

4-bit weights; float32 activations, for the peer torch bfloat16. Peers are installed
when they are first named, each into its own environment under build/peers. All take
turns within one run. Ratios are to the fastest of the others: of exact products
to MLX and what rounds no activations to 8 bits, of int8 to MLX and what does.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from bench import timing
from mlx_nibble import __version__, ops
from mlx_nibble.bench import peaks
from mlx_nibble.bench.machine import last_level_cache_bytes, threads
from mlx_nibble.bench.products import Case, Pools
from mlx_nibble.bench.shapes import MODELS

PEERS = {
    "onnxruntime": ["onnxruntime==1.32.0", "onnx"],
    "openvino": ["openvino==2026.4.1"],
    "torch": ["torch==2.13.0+cpu"],
}
# Peers whose products can be told to round activations, and those that cannot.
MODES = {"onnxruntime": [False, True], "openvino": [False, True], "torch": [False]}
ENVIRONMENTS = Path(__file__).resolve().parent.parent / "build" / "peers"


def peer_python(name: str) -> Path:
    """The Python of the peer's environment, which is made if need be."""
    home = ENVIRONMENTS / name
    python = home / "bin" / "python"
    done = home / "installed"
    if not done.exists():
        print(f"installing {name} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", "numpy", *PEERS[name]]
        subprocess.run(command, check=True)
        done.touch()
    return python


class Peer:
    """A peer's process. Its time is what it measures itself, around the call."""

    def __init__(self, name: str, threads: int):
        worker = Path(__file__).parent / "cpu_peer.py"
        self._process = subprocess.Popen(
            [peer_python(name), worker, name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: object) -> object:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def run(self) -> float:
        return float(str(self.ask("run")))

    def close(self) -> None:
        self._process.communicate()


def fma_peak() -> float:
    """Floating-point operations a second of all cores: the best of some sgemms.

    numpy's BLAS reaches within some per cent of what the cores can do.
    """
    a = np.ones((1024, 1024), np.float32)
    calls = timing.interleave({"sgemm": lambda: np.dot(a, a)}, 0.5)
    return 2 * 1024**3 / min(calls["sgemm"].seconds)


def candidates(case: Case, hot: bool) -> dict[str, Callable[[], object]]:
    pool = Pools(hot).take(case, "quantized")
    x = mx.random.normal((case.rows, case.K))
    mx.eval(x)

    def call(op, **options) -> Callable[[], None]:
        def run() -> None:
            w, scales, biases = next(pool)
            mx.eval(
                op(x, w, scales, biases, True, case.group_size, case.bits, **options)
            )

        return run

    return {
        "mlx": call(mx.quantized_matmul),
        "exact": call(ops.quantized_matmul),
        "int8": call(ops.quantized_matmul, activations="int8"),
    }


def measure(case: Case, args: argparse.Namespace, peers: dict[str, Peer]) -> dict:
    calls = candidates(case, args.hot)
    if case.rows > args.mlx_rows:
        del calls["mlx"]
    wanted = 4 * last_level_cache_bytes()
    copies = 1 if args.hot else max(2, -(-wanted // case.weight_bytes))
    for name, peer in peers.items():
        int8 = name.endswith(" int8")
        peer.ask({**vars(case), "int8": int8, "copies": copies})
        calls[name] = peer.run
    taken = timing.interleave(calls, args.seconds)
    result = {
        "case": vars(case),
        "weight_bytes": case.weight_bytes,
        "seconds": {name: samples.seconds for name, samples in taken.items()},
        "faster": {},
    }
    for mode in ("exact", "int8"):
        others = [n for n in taken if n == "mlx" or n.endswith(f" {mode}")]
        if others:
            best = min(others, key=lambda n: taken[n].median)
            ratio = timing.ratios(taken[best], taken[mode])
            result["faster"][mode] = {"than": best, "median": ratio.median}
    return result


def row(result: dict, bandwidth: float, peak: float) -> list[str]:
    case = result["case"]
    operations = 2 * case["rows"] * case["N"] * case["K"]
    cells = [str(case["rows"]), str(case["N"]), str(case["K"])]
    for mode in ("exact", "int8"):
        seconds = timing.Samples(tuple(result["seconds"][mode])).median
        cells += [
            f"{1e3 * seconds:.3f} ms",
            f"{result['weight_bytes'] / seconds / bandwidth:.0%}",
            f"{operations / seconds / peak:.0%}",
        ]
        faster = result["faster"].get(mode)
        cells.append(f"{faster['median']:.2f}x {faster['than']}" if faster else "")
    return cells


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.bench_cpu",
        description="Our CPU products against MLX's and others'.",
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--shape", nargs="+", default=[], metavar="N,K")
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 128, 512]
    )
    parser.add_argument(
        "--mlx-rows", type=int, default=8, help="most rows that MLX, slow, is given"
    )
    parser.add_argument("--group-size", type=int, default=64, choices=[32, 64, 128])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[])
    parser.add_argument("--hot", action="store_true", help="one matrix, in cache")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="to spend on each product"
    )
    parser.add_argument("--json", metavar="FILE", help="write every sample")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    mx.set_default_device(mx.cpu)
    shapes = [tuple(int(d) for d in s.split(",")) for s in args.shape]
    peers = {
        f"{name} {'int8' if int8 else 'exact'}": Peer(name, threads())
        for name in args.peers
        for int8 in MODES[name]
    }
    bandwidth, peak = peaks.read_bandwidth(), fma_peak()
    heading = ["rows", "N", "K"]
    for mode in ("exact", "int8"):
        heading += [mode, "of bandwidth", "of sgemm", "faster than"]
    results = []
    for N, K in shapes or MODELS[args.model]:
        for rows in args.rows:
            case = Case(rows, N, K, 4, args.group_size, "float32")
            print(f"\r{case}"[:100].ljust(100), end="", file=sys.stderr)
            results.append(measure(case, args, peers))
    print("\r".ljust(101) + "\r", end="", file=sys.stderr)
    for peer in peers.values():
        peer.close()
    print(
        f"{'hot' if args.hot else 'cold'} weights, 4 bits, group {args.group_size}; "
        f"all cores read {bandwidth / 1e9:.1f} GB/s and multiply at "
        f"{peak / 1e9:.0f} GFLOP/s (sgemm)"
    )
    print(timing.table([heading, *(row(r, bandwidth, peak) for r in results)]))
    if args.json:
        capsule = {
            "command": ["python", "-m", "bench.bench_cpu", *(argv or sys.argv[1:])],
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "system": platform.platform(),
                "threads": threads(),
            },
            "versions": {"mlx": mx.__version__, "mlx_nibble": __version__},
            "peers": {name: PEERS[name] for name in args.peers},
            "read_bandwidth": bandwidth,
            "sgemm": peak,
            "results": results,
        }
        Path(args.json).write_text(json.dumps(capsule))


if __name__ == "__main__":
    main()

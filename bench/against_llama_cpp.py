"""Times a whole model on the CPU: ours, MLX's and that of other programs.

    python -m bench.against_llama_cpp FOLDER --gguf FILE --json llama.json

The first GGUF file holds the same weights as the folder, which was made from it. Others
may have other formats: FILE.Q8_0.gguf is llama.cpp Q8_0 in the table. Each runs with
flash attention ("fa"), too: prompts are faster with it, and long contexts decode more
slowly. Ratios are to the fastest of llama.cpp in the same column. --kv8 adds KV caches
of 8 bits: ours, and llama.cpp's of `-ctk q8_0 -ctv q8_0 -fa`. Tokens are timed after
the prompts of --decode-after.

--openvino adds OpenVINO GenAI, which reads the first GGUF file itself. --onnx adds ONNX
Runtime GenAI and its folder, made from a dense folder of ours by

    python -c 'from bench.peers import peer_python; peer_python("onnxruntime-genai")'
    build/peers/onnxruntime-genai/bin/python -m onnxruntime_genai.models.builder \\
        -i DENSE -o OUT -p int4 -e cpu \\
        --extra_options int4_block_size=32 int4_accuracy_level=4

Each candidate is a process with the same number of threads. All take turns within one
run, and are stopped between their turns. llama.cpp does not choose tokens; ours and
MLX's do. Stock MLX, some 50 times slower, has one turn of a short prompt, and none with
--without-mlx. Memory is the peak of a process beyond its interpreter and modules,
including loading and the longest prompt. The peak of MLX's arrays is given, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench import timing
from bench.peer_model import FLASH, KV8
from bench.peers import PEERS, Peer, peer_python, script
from mlx_nibble.bench import capsule
from mlx_nibble.bench.machine import threads
from mlx_nibble.bench.rates import ModelCase
from mlx_nibble.cli.console import filled, out

# The first is what commands run.
OURS = (
    "nibble int16",
    "nibble",
    "nibble int8",
    "nibble int16 unpacked",
    "nibble int8 unpacked",
)
LLAMA, OPENVINO, ONNX = "llama.cpp", "openvino-genai", "onnxruntime-genai"
STOCK_PROMPT = 128


class Runner(Peer):
    """The process of a model, stopped between its turns."""

    def __init__(self, name: str, threads: int, path: str):
        command: list[str | Path] = [sys.executable, "-m", "bench.peer_model"]
        if (peer := name.split()[0]) in PEERS:
            command = [peer_python(peer), script("peer_model")]
        super().__init__(command, name, threads, path)

    def run(
        self, prompt: int, decode: int, again: bool, cpu: bool
    ) -> tuple[float, float, int, int | None]:
        request = {"prompt": prompt, "decode": decode, "again": again, "cpu": cpu}
        first, rest, peak, arrays = self.ask(request)
        return first, rest, peak, arrays


def busy_seconds() -> float:
    """Return the CPU time of all programs on this machine so far."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    ticks = int(user) + int(nice) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_all(args: argparse.Namespace) -> dict[str, dict]:
    """Return the seconds of each run by name and prompt, and the peak memory."""
    paths = dict.fromkeys((*OURS, *([] if args.without_mlx else ["mlx"])), args.model)
    if args.only:
        paths = {name: path for name, path in paths.items() if name in args.only}
    for file in args.gguf:
        paths |= {name_of(file): file, f"{name_of(file)} {FLASH}": file}
    paths |= {OPENVINO: args.gguf[0]} if args.openvino else {}
    paths |= {ONNX: args.onnx} if args.onnx else {}
    if args.kv8:
        others = ("mlx", OPENVINO, ONNX)
        plain = [n for n in paths if n not in others and FLASH not in n.split()]
        paths |= {f"{n} {KV8}": paths[n] for n in plain}
    runners = {n: Runner(n, args.threads, path) for n, path in paths.items()}
    results: dict[str, dict] = {n: {"prompt": {}, "decode": {}} for n in runners}

    def turn(name: str, prompt: int, decode: int, again: bool = False) -> None:
        print(f"\r{name}, prompt of {prompt}".ljust(60), end="", file=sys.stderr)
        first, rest, peak, arrays = runners[name].run(
            prompt, decode, again, args.cpu_time
        )
        result = results[name]
        if not again:
            result["prompt"].setdefault(str(prompt), []).append(first)
        if prompt in args.decode_after and (again or not args.once):
            result["decode"].setdefault(str(prompt), []).append(rest / decode)
        result["peak_bytes"], result["peak_array_bytes"] = peak, arrays

    for number in range(args.rounds):
        order = [n for n in runners if n != "mlx"]
        for name in order if number % 2 == 0 else reversed(order):
            for prompt in args.prompts:
                again = args.once and number > 0
                timed = prompt in args.decode_after and (again or not args.once)
                turn(name, prompt, args.decode if timed else 1, again)
    if not args.without_mlx:
        turn("mlx", STOCK_PROMPT, min(args.decode, 16))
    print("\r".ljust(61) + "\r", end="", file=sys.stderr)
    for runner in runners.values():
        runner.close()
    return results


def name_of(gguf: str) -> str:
    """Return the candidate that runs a file: llama.cpp and the file's format."""
    return f"{LLAMA} {Path(gguf).name.split('.')[-2]}"


def capsule_results(results: dict[str, dict], args: argparse.Namespace) -> list[dict]:
    """Return a capsule's results: seconds of one token, with a pass for each turn."""
    cases: list[dict] = []
    for prompt in args.prompts:
        taken = {
            name: candidate(result["prompt"][str(prompt)], prompt)
            for name, result in results.items()
            if str(prompt) in result["prompt"]
        }
        cases.append({"case": alone("prompt", prompt), "candidates": taken})
    for name, result in results.items():
        longest = [c["candidates"][name] for c in cases if name in c["candidates"]][-1]
        longest["process_bytes"] = result["peak_bytes"]
        if result["peak_array_bytes"] is not None:
            longest["peak_bytes"] = result["peak_array_bytes"]
    for prompt in args.decode_after:
        taken = {
            name: {"passes": [[s] for s in r["decode"][str(prompt)]]}
            for name, r in results.items()
            if str(prompt) in r["decode"]
        }
        cases.append({"case": alone("decode", prompt), "candidates": taken})
    return cases


def alone(measure: str, context: int) -> dict:
    return asdict(ModelCase.alone(measure, context))


def candidate(seconds: list[float], tokens: int) -> dict:
    return {"chain": tokens, "passes": [[s / tokens] for s in seconds]}


def rows(
    results: dict[str, dict], prompts: list[int], after: list[int]
) -> list[list[str]]:
    """Return a table of tokens per second, with the ratio to the fastest llama.cpp."""
    peers = [r for name, r in results.items() if name.startswith(LLAMA)]
    columns = [("prompt", p, f"prompt of {p}", p) for p in prompts]
    columns += [("decode", p, f"token after {p}", 1) for p in after]
    table = [["", *(title for _, _, title, _ in columns), "peak, MB", "arrays"]]
    for name, result in results.items():
        cells = [name]
        for kind, prompt, _, tokens in columns:
            taken = result[kind].get(str(prompt))
            if not taken:
                cells.append("")
                continue
            cell = f"{tokens / statistics.median(taken):.1f}"
            runs = [peer[kind].get(str(prompt)) for peer in peers]
            theirs = min(filter(None, runs), key=statistics.median, default=None)
            if theirs and len(theirs) == len(taken):
                cell += f" ({timing.faster(theirs, taken).value:.2f}x)"
            cells.append(cell)
        arrays = result["peak_array_bytes"]
        cells.append(f"{result['peak_bytes'] / 1e6:.0f}")
        table.append([*cells, f"{arrays / 1e6:.0f}" if arrays else ""])
    return table


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.against_llama_cpp",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("model", metavar="FOLDER", help="a model folder of mlx-lm")
    parser.add_argument(
        "--gguf", metavar="FILE", nargs="+", default=[], help="the model for llama.cpp"
    )
    parser.add_argument(
        "--without-mlx", action="store_true", help="leave MLX alone out"
    )
    parser.add_argument(
        "--prompts", nargs="+", type=int, default=[STOCK_PROMPT, 512], metavar="TOKENS"
    )
    parser.add_argument("--decode", type=int, default=64, help="tokens after a prompt")
    parser.add_argument(
        "--decode-after", nargs="+", type=int, default=[STOCK_PROMPT], metavar="TOKENS"
    )
    parser.add_argument("--openvino", action="store_true", help="OpenVINO GenAI, too")
    parser.add_argument("--onnx", metavar="FOLDER", help="ONNX Runtime GenAI, too")
    parser.add_argument("--kv8", action="store_true", help="KV caches of 8 bits, too")
    parser.add_argument(
        "--once", action="store_true", help="read a prompt in the first round only"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="with --once: CPU time, which other programs disturb less",
    )
    parser.add_argument("--only", nargs="+", choices=OURS, help="leave others out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=threads())
    parser.add_argument("--json", metavar="FILE", help="write every sample")
    args = parser.parse_args(argv)
    if args.openvino and not args.gguf:
        parser.error("--openvino needs --gguf")
    if (args.openvino or args.onnx) and (args.once or args.cpu_time):
        parser.error("--openvino and --onnx take neither --once nor --cpu-time")
    if not set(args.decode_after) <= set(args.prompts):
        parser.error("--prompts must include those of --decode-after")
    if args.once and len(args.prompts) > 1:
        parser.error("--once needs --prompts of one length")
    if args.cpu_time and not args.once:
        parser.error("--cpu-time needs --once")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    names = [Path(file).name for file in args.gguf]
    command = ["python", "-m", "bench.against_llama_cpp", "FOLDER", "--gguf", *names]
    command += ["--prompts", *map(str, args.prompts), "--decode", str(args.decode)]
    command += ["--decode-after", *map(str, args.decode_after)]
    command += ["--openvino"] if args.openvino else []
    command += ["--onnx", Path(args.onnx).name] if args.onnx else []
    command += ["--kv8"] if args.kv8 else []
    command += ["--once"] if args.once else []
    command += ["--cpu-time"] if args.cpu_time else []
    checkpoint = sum(f.stat().st_size for f in Path(args.model).glob("*.safetensors"))
    settings = {
        "model": Path(args.model).name,
        "rounds": args.rounds,
        "threads": args.threads,
        "peers": {
            peer: PEERS[peer]
            for peer, asked in (
                (LLAMA, args.gguf),
                (OPENVINO, args.openvino),
                (ONNX, args.onnx),
            )
            if asked
        },
        "prompts": args.prompts,
        "decode_tokens": args.decode,
        "checkpoint_bytes": checkpoint,
    }
    made = capsule.new("model", [*command, "--rounds", str(args.rounds)], settings)
    busy, start = busy_seconds(), time.perf_counter()
    results = measure_all(args)
    wall = time.perf_counter() - start
    print(
        f"tokens per second, {args.threads} threads; "
        f"checkpoint {checkpoint / 1e6:.0f} MB"
    )
    header, *table = rows(results, args.prompts, args.decode_after)
    out.print(filled(header, table))
    made["results"] = capsule_results(results, args)
    made["settings"]["busy_cores"] = (busy_seconds() - busy) / wall
    made["complete"] = True
    if args.json:
        capsule.write(made, args.json)


if __name__ == "__main__":
    main()

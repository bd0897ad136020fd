"""The measured tables of README.md, made from the capsules that are committed.

python -m bench.readme        # rewrites them; a test checks that they agree
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
CAPSULES = ROOT / "bench" / "capsules"
BEGIN = "<!-- measured: python -m bench.readme -->"
END = "<!-- /measured -->"
# The picture has them all.
ROWS = (1, 8, 32, 128)
PROMPTS = ("128", "512")


def spread(summary: dict) -> str:
    return "{median:.1f} ({low:.1f}–{high:.1f})".format(**summary)


def model_table(capsule: dict) -> str:
    stock, ours = capsule["stock"], capsule["nibble"]
    machine = capsule["machine"]
    lines = [
        f"{capsule['model']} on the CPU ({machine['cpu']}, {machine['cores']} cores, "
        f"mlx {machine['mlx']}); medians of {capsule['rounds']} interleaved runs, "
        "lowest to highest; MLX in float32, its fastest configuration. Made by "
        "`nibble demo --json`.",
        "",
        "| tokens a second | MLX | mlx-nibble | faster |",
        "| --- | --- | --- | --- |",
    ]
    for label, key in (
        (f"prompt of {capsule['prompt_tokens']}", "prompt_tokens_per_second"),
        (f"decode, {capsule['decode_tokens']}", "decode_tokens_per_second"),
    ):
        cells = [spread(side[key]) for side in (stock, ours)]
        ratio = ours[key]["median"] / stock[key]["median"]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} | **{ratio:.1f}×** |")
    return "\n".join(lines)


def peer_table(capsule: dict, int8: dict) -> str:
    """Our modes beside llama.cpp and MLX, and what rounding activations costs."""
    results, growth = capsule["results"], int8["comparison"]["increase"]
    lines = [
        f"Beside llama.cpp ({capsule['peers'][0]}, built for this machine; the same "
        f"weights as Q4_1), {capsule['threads']} threads each: medians of "
        f"{capsule['rounds']} interleaved turns, and of their ratios. Made by "
        f"`{' '.join(capsule['command'])}`; the perplexity, of {int8['tokens']} "
        "tokens, by `nibble eval FOLDER --reference FOLDER --activations int8 "
        "--samples 16`.",
        "",
        "| tokens a second | prompt of 128 | prompt of 512 | decode | perplexity |",
        "| --- | --- | --- | --- | --- |",
    ]
    peer = results["llama.cpp"]
    for label, name, loss in (
        (
            "`--activations int8`",
            "int8",
            f"{growth['mean']:+.2%} ± {growth['error']:.2%}",
        ),
        ("mlx-nibble", "exact", "the same"),
        ("llama.cpp", "llama.cpp", ""),
        ("MLX", "stock", ""),
    ):
        result = results[name]
        samples = [
            (result["prompt"].get(p), peer["prompt"][p], int(p)) for p in PROMPTS
        ]
        samples.append((result["decode"], peer["decode"], 1))
        cells = [rate(*sample) for sample in samples]
        lines.append(f"| {label} | {' | '.join(cells)} | {loss} |")
    return "\n".join(lines)


def rate(seconds: list[float] | None, peer: list[float], tokens: int) -> str:
    """Tokens a second; of as many samples as the peer's, also how many times its."""
    if seconds is None:
        return ""
    text = f"{tokens / statistics.median(seconds):.1f}"
    if seconds is peer or len(seconds) != len(peer):
        return text
    ratio = statistics.median(p / s for p, s in zip(peer, seconds, strict=True))
    return f"{text} (**{ratio:.2f}×**)"


def matmul_table(capsule: dict) -> str:
    case = capsule["results"][0]["case"]
    lines = [
        f"`quantized_matmul`, {case['bits']} bits, group {case['group_size']}, "
        f"{case['dtype']}, weights cold; the same machine, of which all cores "
        f"together read {capsule['read_bandwidth'] / 1e9:.0f} GB/s. Medians of "
        "neighbouring ratios, with quartiles. Made by "
        f"`{' '.join(capsule['command'])}`.",
        "",
        "| N × K | rows | MLX | mlx-nibble | faster | share of the read bandwidth |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in capsule["results"]:
        case, median = result["case"], result["median"]
        if case["rows"] not in ROWS:
            continue
        low, high = result["ratio"]["quartiles"]
        share = result["bytes_per_second"] / capsule["read_bandwidth"]
        lines.append(
            f"| {case['N']} × {case['K']} | {case['rows']} "
            f"| {1e3 * median['mlx']:.2f} ms | {1e3 * median['nibble']:.2f} ms "
            f"| **{result['ratio']['median']:.1f}×** ({low:.1f}–{high:.1f}) "
            f"| {share:.0%} |"
        )
    return "\n".join(lines)


def headline(capsule: dict) -> str:
    """What the first paragraph says, in its words."""
    prompt, decode = (
        capsule["nibble"][key]["median"] / capsule["stock"][key]["median"]
        for key in ("prompt_tokens_per_second", "decode_tokens_per_second")
    )
    return f"reads its prompt {prompt:.0f} times and answers {decode:.0f} times"


def load(name: str) -> dict:
    return json.loads((CAPSULES / f"{name}.json").read_text())


def measured() -> str:
    tables = [
        model_table(load("demo")),
        peer_table(load("llama"), load("int8")),
        matmul_table(load("matmul")),
    ]
    return "\n\n".join(tables)


def rewrite(text: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{measured()}\n{END}{after}"


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(rewrite(path.read_text()))


if __name__ == "__main__":
    main()

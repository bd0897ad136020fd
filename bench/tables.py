"""Tables of README and docs, each a function of a capsule."""

from __future__ import annotations

import statistics
from dataclasses import asdict

from bench import timing
from mlx_nibble.bench import kernels, rates
from mlx_nibble.bench.side_by_side import tokens_per_second
from mlx_nibble.bench.statistics import Estimate, passes_needed

# Candidates of against_cpu_libraries, with their names in the docs.
PRODUCTS = {
    "nibble": "exact",
    "nibble repacked": "exact, repacked",
    "nibble int8": "int8",
    "nibble int8 repacked": "int8, repacked",
    "mlx": "MLX",
    "torch exact": "torch",
    "onnxruntime exact": "ONNX Runtime",
    "openvino exact": "OpenVINO",
    "onnxruntime int8": "ONNX Runtime int8",
    "openvino int8": "OpenVINO int8",
    "llama.cpp Q4_0 int8": "llama.cpp Q4_0",
    "llama.cpp Q4_1 int8": "llama.cpp Q4_1",
    "read": "a plain read of the weights",
}
MODELS = {
    "nibble int8 repacked": "int8, repacked",
    "nibble int8": "int8",
    "nibble repacked": "exact, repacked",
    "nibble": "exact",
    "llama.cpp": "llama.cpp, Q4_1",
    "mlx": "stock MLX",
}
PEAKS = ("read_bytes_per_second", "flops_per_second")
# Rows in the table; the picture shows all.
ROWS = (1, 8, 32, 128)
PROMPTS = (128, 512)


def spread(summary: Estimate) -> str:
    return f"{summary.value:.1f} ({summary.low:.1f}–{summary.high:.1f})"


def model_table(capsule: dict) -> str:
    machine, settings = capsule["machine"], capsule["settings"]
    lines = [
        f"{settings['model']} on the CPU ({machine['cpu']}, {machine['cores']} cores, "
        f"mlx {capsule['versions']['mlx']}); medians of {settings['rounds']} "
        "interleaved runs, lowest to highest; MLX in float32, its fastest "
        f"configuration. Made by `{' '.join(capsule['command'])} > "
        "bench/capsules/demo.json`.",
        "",
        "| tokens a second | MLX | mlx-nibble | faster |",
        "| --- | --- | --- | --- |",
    ]
    prompt, decode = capsule["results"]
    for label, result in (
        (f"prompt of {prompt['case']['context']}", prompt),
        (f"decode, {settings['decode_tokens']}", decode),
    ):
        stock, ours = both(result)
        ratio = ours.value / stock.value
        lines.append(
            f"| {label} | {spread(stock)} | {spread(ours)} | **{ratio:.1f}×** |"
        )
    return "\n".join(lines)


def both(result: dict) -> tuple[Estimate, Estimate]:
    """Return MLX's tokens per second and ours."""
    candidates = result["candidates"]
    stock, ours = (tokens_per_second(candidates[n]) for n in ("mlx", "nibble"))
    return stock, ours


def peer_table(capsule: dict, int8: dict) -> str:
    """Return our modes beside llama.cpp and MLX, with the loss of int8 activations."""
    settings, growth = capsule["settings"], int8["comparison"]["increase"]
    lines = [
        f"Beside llama.cpp ({settings['peers']['llama.cpp'][0]}, built for this "
        f"machine; the same weights as Q4_1), {settings['threads']} threads each: "
        f"medians of {settings['rounds']} interleaved turns, and of their ratios. Made "
        f"by `{' '.join(capsule['command'])} --json bench/capsules/llama.json`; the "
        f"perplexity, of {int8['tokens']} tokens, by `nibble eval FOLDER --reference "
        "FOLDER --activations int8 --samples 16`.",
        "",
        "| tokens a second | prompt of 128 | prompt of 512 | decode | perplexity |",
        "| --- | --- | --- | --- | --- |",
    ]
    rounded = f"{growth['mean']:+.2%} ± {growth['error']:.2%}"
    for label, name, loss in (
        ("`--activations int8 --repack`", "nibble int8 repacked", rounded),
        ("`--activations int8`", "nibble int8", rounded),
        ("`--repack`", "nibble repacked", "the same"),
        ("mlx-nibble", "nibble", "the same"),
        ("llama.cpp", "llama.cpp", ""),
        ("MLX", "mlx", ""),
    ):
        cells = " | ".join(rates_beside(capsule, name))
        lines.append(f"| {label} | {cells} | {loss} |")
    return "\n".join(lines)


def rates_beside(capsule: dict, name: str) -> list[str]:
    """Return tokens per second of each prompt and of decoding.

    A candidate with as many turns as llama.cpp also has the ratio to it.
    """
    cells = []
    for case in (*(("prompt", p) for p in PROMPTS), ("decode", PROMPTS[0])):
        samples = timing.samples(result_of(capsule, *case))
        seconds, peer = samples.get(name), samples["llama.cpp"]
        if seconds is None:
            cells.append("")
            continue
        text = f"{1 / statistics.median(seconds):.1f}"
        if name != "llama.cpp" and len(seconds) == len(peer):
            ratio = statistics.median(p / s for p, s in zip(peer, seconds, strict=True))
            text += f" (**{ratio:.2f}×**)"
        cells.append(text)
    return cells


def result_of(capsule: dict, measure: str, context: int) -> dict:
    """Return the result of one sequence in a model's capsule."""
    case = asdict(rates.ModelCase.alone(measure, context))
    (result,) = (r for r in capsule["results"] if r["case"] == case)
    return result


def matmul_table(capsule: dict) -> str:
    case, peaks = capsule["results"][0]["case"], capsule["peaks"]
    bandwidth = peaks["read_bytes_per_second"]
    lines = [
        f"`quantized_matmul`, {case['bits']} bits, group {case['group_size']}, "
        f"{case['dtype']}, weights cold; the same machine, which in the same run read "
        f"{bandwidth / 1e9:.0f} GB/s and multiplied at "
        f"{peaks['flops_per_second'] / 1e9:.0f} GFLOP/s. Medians of neighbouring "
        "ratios, with 95 % intervals. Made by "
        f"`{' '.join(capsule['command'])}`.",
        "",
        "| N × K | rows | MLX | mlx-nibble | faster | of the reads | of the FMAs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours = {}
    for row in kernels.rows(capsule):
        case = row.case
        if row.name == "nibble":
            ours[case] = row
        if row.name != "mlx" or case.rows not in ROWS:
            continue
        mine, ratio = ours[case], row.faster
        lines.append(
            f"| {case.N} × {case.K} | {case.rows} | {1e3 * row.seconds.value:.2f} ms "
            f"| {1e3 * mine.seconds.value:.2f} ms "
            f"| **{ratio.value:.1f}×** ({ratio.low:.1f}–{ratio.high:.1f}) "
            f"| {mine.bytes_per_second / bandwidth:.0%} "
            f"| {mine.flops_per_second / peaks['flops_per_second']:.0%} |"
        )
    return "\n".join(lines)


def products_table(cold: dict, hot: dict) -> str:
    """Return the milliseconds of a product, by candidate and rows."""
    medians = {
        (f"{result['case']['rows']}{suffix}"): {
            name: 1e3 * statistics.median(seconds)
            for name, seconds in timing.samples(result).items()
        }
        for capsule, suffix in ((cold, ""), (hot, " hot"))
        for result in capsule["results"]
    }
    lines = [
        f"| rows | {' | '.join(medians)} |",
        f"| --- |{' ---: |' * len(medians)}",
    ]
    for name, label in PRODUCTS.items():
        cells = [milliseconds(found.get(name)) for found in medians.values()]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    read, multiplied = (1e-9 * cold["peaks"][k] for k in PEAKS)
    lines += [
        "",
        f"In the first run all cores read {read:.1f} GB/s and multiplied at "
        f"{multiplied:.0f} GFLOP/s.",
    ]
    return "\n".join(lines)


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def model_peers_table(capsule: dict) -> str:
    """Return tokens per second and memory of each mode, beside llama.cpp."""
    lines = [
        f"| tokens a second | {' | '.join(f'prompt of {p}' for p in PROMPTS)} | decode "
        "| peak memory | of it arrays |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, label in MODELS.items():
        cells = [cell.replace("**", "") for cell in rates_beside(capsule, name)]
        for key in ("process_bytes", "peak_bytes"):
            found = [
                result["candidates"][name][key]
                for result in capsule["results"]
                if key in result["candidates"].get(name, {})
            ]
            cells.append(f"{found[0] / 1e6:.0f} MB" if found else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def headline(capsule: dict) -> str:
    """Return the claim of the first paragraph."""
    prompt, decode = (
        ours.value / stock.value for stock, ours in map(both, capsule["results"])
    )
    return f"reads its prompt {prompt:.0f} times and answers {decode:.0f} times"


def generation_table(capsule: dict) -> str:
    """Return tokens per second over sequences at once, ours and MLX's."""
    (context,) = {row.case.context for row in rates.rows(capsule)}
    lines = [
        f"`{' '.join(capsule['command'])}`, {capsule['machine']['cpu']}, "
        f"{capsule['machine']['threads']} threads; prompts of {context} tokens, tokens "
        "of all sequences a second, medians and, of enough passes, 95 % intervals:",
        "",
        "| | sequences | MLX | mlx-nibble | faster | first token | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found: dict[rates.ModelCase, dict[str, rates.ModelRow]] = {}
    for row in rates.rows(capsule):
        found.setdefault(row.case, {})[row.name] = row
    for case, by_name in found.items():
        ours, stock = by_name["nibble"], by_name.get("mlx")
        first = ours.first_token_seconds
        cells = [
            case.measure,
            str(case.batch),
            "" if stock is None else tokens_a_second(stock),
            tokens_a_second(ours),
            "" if stock is None else f"**{stock.faster.value:.1f}×**",
            "" if first is None else f"{1e3 * first:.0f} ms",
            f"{ours.peak_bytes / 1e6:.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tokens_a_second(row: rates.ModelRow) -> str:
    rate = row.tokens_per_second
    text = f"{rate.value:.1f}"
    if row.passes < passes_needed():
        return text
    return f"{text} ({rate.low:.1f}–{rate.high:.1f})"

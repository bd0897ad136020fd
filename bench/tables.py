"""The tables of README and docs, each a function of capsules."""

from __future__ import annotations

import statistics
import textwrap
from dataclasses import asdict

from bench import distillation_page, timing
from mlx_nibble.bench import kernels, rates
from mlx_nibble.bench.side_by_side import tokens_per_second
from mlx_nibble.bench.statistics import Estimate, passes_needed

# Candidates of bench.against_cpu_libraries, with their labels.
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
# Candidates of bench.against_llama_cpp, with the table's label and loss of each.
MODELS = {
    "nibble int16": ("mlx-nibble", ""),
    "nibble": ("`--activations exact`", "the same"),
    "nibble int8": ("`--activations int8`", "{rounded}"),
    "nibble int16 unpacked": ("`--no-repack`", ""),
    "nibble unpacked": ("`--activations exact --no-repack`", "the same"),
    "nibble copied": ("a repacked copy", "the same"),
    "nibble int8 copied": ("`--activations int8`, a repacked copy", "{rounded}"),
    "nibble int8 unpacked": ("`--activations int8 --no-repack`", "{rounded}"),
    "llama.cpp Q4_0": ("llama.cpp, Q4_0", ""),
    "llama.cpp Q4_0 fa": ("llama.cpp, Q4_0, flash attention", ""),
    "llama.cpp Q4_1": ("llama.cpp, Q4_1", ""),
    "llama.cpp Q4_1 fa": ("llama.cpp, Q4_1, flash attention", ""),
    "llama.cpp Q8_0": ("llama.cpp, Q8_0", ""),
    "llama.cpp Q8_0 fa": ("llama.cpp, Q8_0, flash attention", ""),
    "openvino-genai": ("OpenVINO GenAI", ""),
    "onnxruntime-genai": ("ONNX Runtime GenAI", ""),
    "mlx": ("MLX", ""),
}
PEAKS = ("read_bytes_per_second", "flops_per_second")
# The picture has them all.
ROWS = (1, 8, 32, 128)


def caption(text: str) -> str:
    """Return a paragraph in the width of the documents."""
    return textwrap.fill(text, 88, break_long_words=False, break_on_hyphens=False)


def spread(summary: Estimate) -> str:
    """Return a median with its lowest and highest sample."""
    return f"{summary.value:.1f} ({summary.low:.1f}–{summary.high:.1f})"


def model_table(capsule: dict) -> str:
    """Return the demo's table: a prompt and an answer, MLX's and ours."""
    machine, settings = capsule["machine"], capsule["settings"]
    lines = [
        caption(
            f"{settings['model']} on the CPU ({machine['cpu']}, {machine['cores']} "
            f"cores, mlx {capsule['versions']['mlx']}); medians of "
            f"{settings['rounds']} interleaved runs, lowest to highest; MLX in "
            f"float32, its fastest configuration. Made by "
            f"`{' '.join(capsule['command'])} > bench/capsules/demo.json`."
        ),
        "",
        "| tokens per second | MLX | mlx-nibble | faster |",
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


def peers_table(capsule: dict, int8: dict | None, name: str) -> str:
    """Return tokens per second, loss and memory of each mode, beside llama.cpp.

    The loss of 8-bit activations is that of `int8`; None if it was not measured.
    """
    settings, prompts = capsule["settings"], capsule["settings"]["prompts"]
    machine = capsule["machine"]
    made = (
        f"llama.cpp is {settings['peers']['llama.cpp'][0]}, built for this machine; "
        f"{settings['threads']} threads each ({machine['cpu']}, instruction set "
        f"{machine['cpu_isa']}). Medians of {settings['rounds']} "
        "interleaved turns, and of their ratios to the fastest of llama.cpp. Made by "
        f"`{' '.join(capsule['command'])} --json bench/capsules/{name}.json`."
    )
    rounded = ""
    if int8 is not None:
        growth = int8["comparison"]["increase"]
        rounded = f"{growth['mean']:+.2%} ± {growth['error']:.2%}"
        made += (
            f" The perplexity is of {int8['tokens']} tokens, by `nibble eval FOLDER "
            "--reference FOLDER --activations int8 --samples 16`."
        )
    lines = [
        caption(made),
        "",
        f"| tokens per second | {' | '.join(f'prompt of {p}' for p in prompts)} "
        "| decode | perplexity | peak memory | arrays in it |",
        f"| --- |{' ---: |' * (len(prompts) + 4)}",
    ]
    measured = {n for r in capsule["results"] for n in r["candidates"]}
    for candidate in MODELS:
        if candidate not in measured:
            continue
        label, loss = MODELS[candidate]
        cells = [*rates_beside(capsule, candidate), loss.format(rounded=rounded)]
        for key in ("process_bytes", "peak_bytes"):
            found = [
                result["candidates"][candidate][key]
                for result in capsule["results"]
                if key in result["candidates"].get(candidate, {})
            ]
            cells.append(f"{found[0] / 1e6:.0f} MB" if found else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rates_beside(capsule: dict, name: str) -> list[str]:
    """Return tokens per second of each prompt and of answers.

    With as many turns as the fastest of llama.cpp had, each has its ratio beside it.
    """
    prompts = capsule["settings"]["prompts"]
    cells = []
    for case in (*(("prompt", p) for p in prompts), ("decode", prompts[0])):
        samples = timing.samples(result_of(capsule, *case))
        peers = [n for n in samples if n.startswith("llama.cpp")]
        fastest = min(peers, key=lambda n: statistics.median(samples[n]))
        seconds, peer = samples.get(name), samples[fastest]
        if seconds is None:
            cells.append("")
            continue
        text = f"{1 / statistics.median(seconds):.1f}"
        if name != fastest and len(seconds) == len(peer):
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
    """Return times of products, MLX's and ours, with shares of the machine's peaks."""
    case, peaks = capsule["results"][0]["case"], capsule["peaks"]
    bandwidth = peaks["read_bytes_per_second"]
    lines = [
        caption(
            f"`quantized_matmul`, {case['bits']} bits, group {case['group_size']}, "
            f"{case['dtype']}, weights cold; the same machine, which in the same run "
            f"read {bandwidth / 1e9:.0f} GB/s and multiplied at "
            f"{peaks['flops_per_second'] / 1e9:.0f} GFLOP/s. Medians of neighbouring "
            "ratios, with 95 % intervals. Made by "
            f"`{' '.join(capsule['command'])}`."
        ),
        "",
        "| N × K | rows | MLX | mlx-nibble | faster | share of reads | share of FMAs |",
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
    """Return milliseconds of a product, by candidate and rows."""
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
    """Return milliseconds in two digits or more; nothing if there are none."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def headline(capsule: dict) -> str:
    """Return the words of README's first paragraph that state the speed."""
    prompt, decode = (
        ours.value / stock.value for stock, ours in map(both, capsule["results"])
    )
    return f"reads its prompt {prompt:.0f} times and answers {decode:.0f} times"


def highlights_table(
    demo: dict, matmul: dict, quantization: dict, distillation: dict
) -> str:
    """Return README's figures, each with the page that has the rest."""
    prompt, decode = (
        ours.value / stock.value for stock, ours in map(both, demo["results"])
    )
    faster = [
        row.faster.value
        for row in kernels.rows(matmul)
        if row.name == "mlx" and (row.case.N, row.case.rows) in ((4096, 1), (4096, 128))
    ]
    increase = [
        quantization[name]["State of the Union"]["comparison"]["increase"]["mean"]
        for name in ("g64", "mlx")
    ]
    trained: dict[str, list[float]] = {}
    for r in distillation["SmolLM2-135M-Instruct"]:
        if distillation_page.asked(r) == 4:
            mean = r["texts"]["State of the Union"]["comparison"]["increase"]["mean"]
            trained.setdefault(r["row"], []).append(mean)
    lines = ["| what | ours | beside | more |", "| --- | --- | --- | --- |"]
    for cells in (
        (
            f"{demo['settings']['model']}: prompt of "
            f"{demo['results'][0]['case']['context']}, and decode",
            f"**{prompt:.1f}×** and **{decode:.1f}×** as fast",
            "MLX alone",
            "[models](docs/results/models.md)",
        ),
        (
            "a 4-bit product, 4096 × 4096: 1 and 128 rows",
            f"**{faster[0]:.1f}×** and **{faster[1]:.1f}×** as fast",
            "MLX's operation",
            "[CPU](docs/results/cpu.md)",
        ),
        (
            "perplexity that 4 bits add to SmolLM2, groups of 64",
            f"**{increase[0]:+.1%}**",
            f"`mlx_lm.convert`: {increase[1]:+.1%}",
            "[quantization](docs/results/quantization.md)",
        ),
        (
            "the same after training on a GPU: `nibble convert -q --distill`",
            f"**{min(trained['codes']):+.1%}**",
            f"`mlx_lm.dwq`: {min(trained['dwq']):+.1%}",
            "[distillation](docs/results/distillation.md)",
        ),
    ):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def generation_table(capsule: dict) -> str:
    """Return tokens per second over sequences at once, ours and MLX's."""
    (context,) = {row.case.context for row in rates.rows(capsule)}
    lines = [
        caption(
            f"`{' '.join(capsule['command'])}`, {capsule['machine']['cpu']}, "
            f"{capsule['machine']['threads']} threads; prompts of {context} tokens. "
            "Tokens of all sequences per second; medians and, where there are enough "
            "passes, 95 % intervals:"
        ),
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
    """Return a row's rate, with its interval if it has enough passes."""
    rate = row.tokens_per_second
    text = f"{rate.value:.1f}"
    if row.passes < passes_needed():
        return text
    return f"{text} ({rate.low:.1f}–{rate.high:.1f})"

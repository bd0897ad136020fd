"""A thread keeps the planner's answers, and never one to another question."""

from __future__ import annotations

import threading

import mlx.core as mx
import pytest

N, K = 128, 256
FORM = (mx.float16, mx.float16, 4, 64, "affine", 0, False)


@pytest.fixture
def run(recorder):
    """Return a function that multiplies rows, and gives the kernels that ran."""

    def run(rows: int, **options) -> list[str]:
        w = mx.quantize(mx.zeros((N, K), mx.float16))
        x = mx.zeros((rows, K), mx.float16)
        mx.eval(x, w)
        names: list[str] = []
        recorder.set_executor(lambda dispatch: names.append(dispatch.kernel))
        y = recorder.quantized_matmul(x, *w, **options)
        if recorder.node(y) != "NibbleQuantizedMatmul":
            return [recorder.node(y)]
        recorder.evaluate(y)
        return names

    yield run
    recorder.set_judge(None)


def table(recorder, rows: int, choice: str) -> int:
    """Make a table with one choice, and return its number."""
    shape = (rows, N, K, *FORM)
    return recorder.add_tuning([(shape, False, choice)], stream=recorder.stream)


def in_thread(function):
    """Call a function in a thread of its own, which has kept nothing yet."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_the_same_question_is_asked_once(recorder, run):
    def kept():
        first = [run(7), recorder.kept_plans()]
        return first, [run(7), recorder.kept_plans()]

    first, second = in_thread(kept)
    assert first == second
    assert first[1] > 0


def test_there_is_an_end_to_what_is_kept(recorder):
    """Each length of a prompt is a question."""
    w = mx.quantize(mx.zeros((N, K), mx.float16))
    mx.eval(w)

    def most():
        kept = 0
        for rows in range(1, recorder.most_plans + 100):
            recorder.quantized_matmul(mx.zeros((rows, K), mx.float16), *w)
            kept = max(kept, recorder.kept_plans())
        return kept

    # Each function of the planner has its own.
    assert recorder.most_plans <= in_thread(most) <= 6 * recorder.most_plans


def test_another_option_is_another_question(run):
    assert run(1) == ["qmv_f16_f16_b4_g64"]
    assert run(1, batch_invariant=True)[0].startswith("qmm_skinny")
    assert run(1, symmetric=True) == ["qmv_f16_f16_b4_g64_sym"]
    assert run(1) == ["qmv_f16_f16_b4_g64"]


def test_another_table_is_another_question(recorder, run):
    skinny = "qmm_skinny_f16_f16_b4_g64_bm8_bn32_wk8"
    tables = [table(recorder, 5, choice) for choice in (skinny, "mlx")]
    default = run(3)
    assert default[0].startswith("qmv_multi")
    assert run(3, tuning=tables[0]) == [skinny]
    assert run(3, tuning=tables[1]) == ["QuantizedMatmul"]
    assert run(3) == default


def test_another_device_is_another_question(recorder, run):
    tiles = run(64)
    recorder.set_gpu_facts(lambda: (1, False, True))
    assert run(64) != tiles
    recorder.set_gpu_facts(lambda: (80, True, True))
    assert run(64) == ["QuantizedMatmul"]
    recorder.set_gpu_facts(None)
    assert run(64) == tiles


def test_a_plan_is_trusted_anew(recorder, run):
    ours = run(5)
    recorder.set_judge(lambda kernel: False)
    assert run(5) == ["QuantizedMatmul"]
    recorder.set_judge(lambda kernel: True)
    assert run(5) == ours


def test_threads_keep_their_own(recorder, run):
    tables = {
        form: table(recorder, 8, form)
        for form in (
            "qmv_multi_f16_f16_b4_g64_r8",
            "qmm_skinny_f16_f16_b4_g64_bm8_bn32_wk8",
        )
    }
    w = mx.quantize(mx.zeros((N, K), mx.float16))
    x = mx.zeros((8, K), mx.float16)
    mx.eval(x, w)
    errors = []

    def build(number: int) -> None:
        try:
            for _ in range(300):
                recorder.quantized_matmul(x, *w, tuning=number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=build, args=(t,)) for t in tables.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for form, number in tables.items():
        assert run(8, tuning=number) == [form]

"""Every command of mlx-lm through `nibble run`, and models named in other ways."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm import cli as mlx_lm_cli
from mlx_lm import load as stock_load
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlx_nibble import lm, nn
from mlx_nibble.cli import main, run
from mlx_nibble.cli.verbose import Reporter
from mlx_nibble.lm.caches import CacheType, stored_as
from tests.support import model_folders, tiny_models
from tests.support.gguf_writer import tiny_llama

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": model_folders.VOCABULARY, "head_dim": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write a quantized model of 16-bit scales and norms."""
    base = tmp_path_factory.mktemp("run")
    model = tiny_models.build("llama", **SIZES)
    model.set_dtype(mx.bfloat16)
    dense = model_folders.write(
        base / "dense", model, tiny_models.config("llama", **SIZES)
    )
    out = base / "tiny"
    assert main(["convert", str(dense), str(out), "-q", "--method", "rtn"]) == 0
    return out


def types_of(folder: Path) -> dict[str, mx.Dtype]:
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    return {name: array.dtype for name, array in tensors.items()}


def test_the_list_is_mlx_lms_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mlx_lm", "--help"])
    mlx_lm_cli.main()
    stated = capsys.readouterr().out
    for name in run.commands():
        assert f"'{name}'" in stated
    assert stated.count("'") == 2 * len(run.commands())
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert ", dynamic_quant, " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", sorted(run.commands()))
def test_each_command_has_help(name, capsys):
    if name == "evaluate":
        pytest.importorskip("lm_eval")
    with pytest.raises(SystemExit) as end:
        main(["run", name, "--help"])
    assert end.value.code in (0, None)
    assert "usage: nibble " in capsys.readouterr().out


def test_a_package_that_a_command_misses_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "mlx_lm.evaluate", raising=False)
    assert main(["run", "evaluate", "--help"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "nibble: [run evaluate] the package lm_eval is required: run pip install "
        "lm_eval\n"
    )


@pytest.mark.parametrize("arguments", [["cook"], ["--model", "m"], []])
def test_what_is_no_command(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", *arguments])
    assert end.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_training_fusing_and_saving_keep_the_types(folder, tmp_path, capfd):
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "valid", "test"):
        line = json.dumps({"text": "the hen and the pen and the den"}) + "\n"
        (data / f"{part}.jsonl").write_text(line * 4)
    adapter, fused = tmp_path / "adapter", tmp_path / "fused"
    made = ["--model", str(folder), "--adapter-path", str(adapter)]
    train = ["--train", "--test", "--data", str(data), "--iters", "2"]
    train += ["--batch-size", "1", "--num-layers", "1", "--val-batches", "1"]
    assert main(["run", "lora", *made, *train]) == 0
    assert main(["run", "fuse", *made, "--save-path", str(fused)]) == 0
    assert types_of(fused) == types_of(folder)
    dense = tmp_path / "dense"
    flags = ["--save-path", str(dense), "--dequantize"]
    assert main(["run", "fuse", *made, *flags]) == 0
    assert set(types_of(dense).values()) == {mx.bfloat16}
    # The folder is a model of its own.
    assert main(["generate", str(fused), "--prompt", "the", "-m", "2"]) == 0


def test_a_model_that_is_saved_goes_on_in_its_types(folder, tmp_path):
    from mlx_lm import utils

    with lm.accelerated_loading():
        model, _ = lm.load(str(folder))
        before = {k: v.dtype for k, v in tree_flatten(model.parameters())}
        utils.save_model(tmp_path / "m", model)
        after = {k: v.dtype for k, v in tree_flatten(model.parameters())}
    assert before == after
    assert types_of(tmp_path / "m") == types_of(folder)


def test_benchmarks_and_prompt_caches(folder, tmp_path, capfd):
    arguments = ["--model", str(folder), "-p", "8", "-g", "4", "-n", "1", "-b", "2"]
    assert main(["run", "benchmark", *arguments, "--verbose"]) == 0
    shown = capfd.readouterr()
    assert "Averages: prompt_tps=" in shown.out
    assert "22 of 22 quantized layers\n" in shown.err
    cache = tmp_path / "cache.safetensors"
    made = ["--model", str(folder), "--prompt", "the hen"]
    made += ["--prompt-cache-file", str(cache)]
    assert main(["run", "cache_prompt", *made]) == 0
    read = ["--prompt-cache-file", str(cache), "--prompt", "and", "-m", "2"]
    assert main(["generate", "--model", str(folder), *read]) == 0


def test_perplexity(folder, tmp_path, capfd):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "the hen " * 40}) + "\n")
    arguments = ["--model", str(folder), "--data-path", str(tmp_path)]
    arguments += ["--sequence-length", "16", "--num-samples", "2"]
    assert main(["run", "perplexity", *arguments]) == 0
    assert "Perplexity: " in capfd.readouterr().out


@pytest.fixture
def gguf(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "hen.gguf"
    path.write_bytes(tiny_llama())
    return path


def test_a_gguf_file_is_a_model(gguf, tmp_path, capfd):
    ask = ["--prompt", "the hen", "-m", "2"]
    for again in (False, True):
        assert main(["generate", str(gguf), *ask]) == 0
        shown = capfd.readouterr()
        assert ("Importing " in shown.err) == (not again)
        assert "Generation: 2 tokens" in shown.out
    gguf.write_bytes(tiny_llama("Q8_0"))
    arguments = ["run", "benchmark", "--model", str(gguf), "-p", "4", "-g", "2"]
    assert main([*arguments, "-n", "1"]) == 0
    assert "Importing " in capfd.readouterr().err  # the file is another
    # The folder of the first contents is gone.
    assert len(list((tmp_path / "cache").rglob("config.json"))) == 1


def test_a_damaged_gguf_file_leaves_nothing(gguf, tmp_path, capfd):
    gguf.write_bytes(tiny_llama()[:20_000])
    assert main(["chat", str(gguf)]) == 1
    assert "truncated or corrupt" in capfd.readouterr().err
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_layers_that_stay_with_mlx_are_said_in_one_line(tmp_path, capfd):
    model = tiny_models.build("llama", **SIZES)
    config = tiny_models.config("llama", **SIZES)
    dense = model_folders.write(tmp_path / "dense", model, config)
    out = str(tmp_path / "mx")
    assert main(["convert", str(dense), out, "-q", "--q-mode", "mxfp8"]) == 0
    ask = ["generate", out, "--prompt", "a", "-m", "1", "--quantize-activations"]
    capfd.readouterr()
    for verbose, lines in (([], 1), (["--verbose", "F"], 1), (["--verbose"], 9)):
        assert main([*ask, *verbose]) == 0
        shown = capfd.readouterr()
        assert "it rounds its inputs" in shown.err
        assert 1 <= shown.err.count("\n") <= lines
        assert ("Generation: " in shown.out) == (verbose[1:] != ["F"])


def test_a_report_of_nothing_is_silent(capfd):
    class Options:
        verbose = None

    model = nn.QuantizedLinear(64, 64)
    from mlx_nibble import accelerate

    Reporter(Options)(accelerate(model))  # pyright: ignore[reportArgumentType]
    assert capfd.readouterr().err == ""


def test_threads_start_the_process_again():
    program = (
        "import os, sys\n"
        "from mlx_nibble.cli import threads\n"
        "import argparse\n"
        "threads.require(argparse.Namespace(threads=3))\n"
        "print(os.environ['NIBBLE_NUM_THREADS'], sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "two words", "-x"]
    environment = {**os.environ, "NIBBLE_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("3 ['two words', '-x']\n", "")


@pytest.mark.parametrize("count", ["0", "1025", "-1", "two"])
def test_wrong_numbers_of_threads(count, capsys):
    with pytest.raises(SystemExit):
        main(["generate", f"--threads={count}"])
    assert "a number from 1 to 1024 is required" in capsys.readouterr().err


def test_chat_on_a_terminal_edits_lines_and_ends_quietly(folder, tmp_path):
    environment = {**os.environ, "NIBBLE_CACHE_DIR": str(tmp_path), "TERM": "dumb"}
    command = [sys.executable, "-m", "mlx_nibble", "chat", str(folder), "-m", "2"]

    def talk(*sent: bytes) -> tuple[int, bytes]:
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(sys.executable, command, environment)
        shown = b""
        left = list(sent)
        prompts = 0
        while True:
            assert select.select([terminal], [], [], 60)[0], shown
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            if shown.count("›".encode()) > prompts and left:
                prompts += 1
                os.write(terminal, left.pop(0))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown

    # A letter too many, Backspace, Return; then Ctrl-D.
    status, shown = talk(b"the henn\x7f\r", b"\x04")
    assert status == 0 and b"Traceback" not in shown and b"nibble:" not in shown
    history = tmp_path / "chat-history"
    assert "the hen" in history.read_text().splitlines()
    assert history.stat().st_mode & 0o077 == 0
    # The arrow recalls a line of the run before.
    status, shown = talk(b"\x1b[A\r", b"\x04")
    assert status == 0 and shown.count(b"2 tokens") == 1
    assert history.read_text().splitlines()[-1] == "the hen"


def test_a_pipe_that_closes_is_no_error(folder):
    program = f"{sys.executable} -m mlx_nibble inspect {folder} --tensors"
    command = f"set -o pipefail; {program} | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "t", "")


def test_stock_mlx_lm_loads_what_was_made(folder):
    assert stock_load(str(folder))[0] is not None


@pytest.mark.parametrize("bits", [None, 8])
def test_a_prompt_cache_has_the_type_of_the_checkpoint(folder, tmp_path, bits):
    path = tmp_path / "cache.safetensors"
    arguments = ["--model", str(folder), "--prompt", "the hen"]
    if bits:
        arguments += ["--kv-bits", "8", "--kv-group-size", "32"]
        arguments += ["--quantized-kv-start", "0"]
    main(["run", "cache_prompt", *arguments, "--prompt-cache-file", str(path)])
    kinds = {a.dtype for a in mx.load(str(path)).values() if a.size > 1}
    assert kinds == ({mx.bfloat16, mx.uint32} if bits else {mx.bfloat16})
    read = ["--prompt-cache-file", str(path), "--prompt", "and", "-m", "2"]
    read += ["--kv-bits", "8", "--kv-group-size", "32"] if bits else []
    assert main(["generate", *read]) == 0


def test_a_cache_in_float32_goes_on_in_it():
    kind = CacheType()
    with stored_as(kind):
        wide, narrow = KVCache(), RotatingKVCache(8)
        wide.update_and_fetch(*mx.zeros((2, 1, 1, 3, 32)))
        kind.add(mx.float16)
        for cache, dtype in ((wide, mx.float32), (narrow, mx.float16)):
            for rows in (3, 1, 9):
                k, v = cache.update_and_fetch(*mx.ones((2, 1, 1, rows, 32)))
                assert k.dtype == v.dtype == dtype
        kind.add(mx.bfloat16)
        assert KVCache().update_and_fetch(*mx.ones((2, 1, 1, 1, 8)))[0].dtype == (
            mx.bfloat16
        )
        kind.add(None)
        new = KVCache().update_and_fetch(*mx.ones((2, 1, 1, 1, 8)))[0]
        assert new.dtype == mx.float32
    assert KVCache.update_and_fetch.__name__ == "update_and_fetch"
    assert not hasattr(KVCache.update_and_fetch, "__wrapped__")


def test_eval_measures_the_loss_of_a_quantized_cache(folder, capfd):
    def kl(*options: str) -> float:
        command = ["eval", str(folder), "--reference", str(folder), "--samples", "2"]
        command += ["--sequence-length", "40", "--kv-group-size", "32", "--json"]
        assert main([*command, *options]) == 0
        return json.loads(capfd.readouterr().out)["comparison"]["kl"]["mean"]

    assert kl() < kl("--kv-bits", "8") < kl("--kv-bits", "4")


def test_eval_names_a_cache_that_cannot_be_quantized():
    model = tiny_models.build("gemma3_text")
    with pytest.raises(
        ValueError, match=r"\[eval\] .*RotatingKVCache.*leave --kv-bits"
    ):
        lm.with_quantized_cache(model, 8, 32)

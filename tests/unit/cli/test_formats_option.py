"""--mode, --bits and --group-size, and the commands that have them."""

import json

import pytest

from mlx_nibble.cli import main

SHAPE = ["--shape", "2,64,64"]
QUICK = [*SHAPE, "--seconds", "0.01", "--passes", "1", "--against", "mlx", "--json"]


def test_each_mode_is_measured(capfd):
    modes = ["affine", "mxfp4", "nvfp4", "mxfp8"]
    assert main(["bench", "kernels", *QUICK, "--mode", *modes]) == 0
    results = json.loads(capfd.readouterr().out)["results"]
    forms = [result["case"] for result in results]
    assert [case["mode"] for case in forms] == modes
    assert [case["bits"] for case in forms] == [4, 4, 4, 8]
    assert [case["group_size"] for case in forms] == [64, 32, 16, 32]
    assert all(result["candidates"].keys() == {"nibble", "mlx"} for result in results)


@pytest.mark.parametrize("command", [["bench", "kernels"], ["tune"]])
@pytest.mark.parametrize("option", [["--bits", "8"], ["--group-size", "32"]])
def test_a_mode_of_floats_has_one_format(command, option, capfd):
    shape = ["--shape", "64,64"]
    assert main([*command, *shape, "--mode", "mxfp4", *option]) == 1
    said = capfd.readouterr().err
    assert f"{option[0]} is an option of the affine mode" in said
    assert "leave it out" in said


def test_a_plan_of_the_tuner(capfd):
    ask = ["tune", "--shape", "64,64", "--rows", "1", "--mode", "nvfp4", "--dry-run"]
    assert main(ask) == 0
    assert "nvfp4" in capfd.readouterr().out

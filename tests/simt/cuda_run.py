"""Runs a bundle of cuda_build.py on this machine's NVIDIA GPU: python cuda_run.py

Checks every kernel, ours and MLX's, against the exact results. Then prints their times
beside the copy bandwidth of the same run. Needs numpy and the driver. To find races
and stray accesses: compute-sanitizer --tool racecheck python cuda_run.py --no-times
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

_BUFFERS = 32  # simt::Bindings of entry_cuda.h
_REPEATS = 20
_COPY_BYTES = 1 << 30
_MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Driver:
    """The calls of the CUDA driver that a launch needs."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuInit", 0)
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(100)
        self("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self("cuEventCreate", ctypes.byref(event), 0)
        self._modules: dict[Path, ctypes.c_void_p] = {}

    def __call__(self, function: str, *arguments: object) -> None:
        error = getattr(self._cuda, function)(*arguments)
        if error:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorName(error, ctypes.byref(text))
            raise RuntimeError(f"[{function}] {text.value!r}")

    def allocate(self, size: int) -> ctypes.c_uint64:
        pointer = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 16)))
        return pointer

    def upload(self, array: np.ndarray) -> ctypes.c_uint64:
        array = np.ascontiguousarray(array)
        pointer = self.allocate(array.nbytes)
        data = ctypes.c_void_p(array.ctypes.data)
        self("cuMemcpyHtoD_v2", pointer, data, ctypes.c_size_t(array.nbytes))
        return pointer

    def download(self, pointer: ctypes.c_uint64, array: np.ndarray) -> None:
        data = ctypes.c_void_p(array.ctypes.data)
        self("cuMemcpyDtoH_v2", data, pointer, ctypes.c_size_t(array.nbytes))

    def free(self, pointer: ctypes.c_uint64) -> None:
        self("cuMemFree_v2", pointer)

    def function(self, cubin: Path, name: str) -> ctypes.c_void_p:
        if cubin not in self._modules:
            module = ctypes.c_void_p()
            self("cuModuleLoadData", ctypes.byref(module), cubin.read_bytes())
            self._modules[cubin] = module
        function = ctypes.c_void_p()
        at = ctypes.byref(function)
        self("cuModuleGetFunction", at, self._modules[cubin], name.encode())
        return function

    def seconds(self, work: Callable[[], None]) -> float:
        """Return the median time of `work` on the GPU."""
        work()
        times = []
        for _ in range(_REPEATS):
            self("cuEventRecord", self._events[0], None)
            work()
            self("cuEventRecord", self._events[1], None)
            self("cuEventSynchronize", self._events[1])
            elapsed = ctypes.c_float()
            self("cuEventElapsedTime", ctypes.byref(elapsed), *self._events)
            times.append(elapsed.value / 1e3)
        return statistics.median(times)

    def copy_bandwidth(self) -> float:
        """Return bytes per second, read and written both counted."""
        a, b = self.allocate(_COPY_BYTES), self.allocate(_COPY_BYTES)
        size = ctypes.c_size_t(_COPY_BYTES)
        seconds = self.seconds(lambda: self("cuMemcpyDtoDAsync_v2", b, a, size, None))
        self.free(a)
        self.free(b)
        return 2 * _COPY_BYTES / seconds


class Launch:
    """One entry of the bundle, on the GPU."""

    def __init__(self, driver: Driver, folder: Path, entry: dict) -> None:
        self._driver = driver
        self._entry = entry
        with np.load(folder / "arrays.npz") as arrays:
            inputs = {name: arrays[key] for name, key in entry["inputs"].items()}
            self.exact = arrays[entry["exact"]]
            self.allowed = arrays[entry["allowed"]]
        self.bytes = sum(a.nbytes for a in inputs.values())
        self._raw = {
            name: np.full(int(np.prod(shape)) * entry["itemsize"], 0xFF, np.uint8)
            for name, shape in entry["outputs"].items()
        }
        self.bytes += sum(a.nbytes for a in self._raw.values())
        arrays = inputs | self._raw
        self._buffers = [driver.upload(arrays[name]) for name in entry["buffers"]]
        params = np.frombuffer(bytes.fromhex(entry["params"]), np.uint8)
        self._buffers.append(driver.upload(params))
        self._bindings = (ctypes.c_uint64 * _BUFFERS)(*(b.value for b in self._buffers))
        cubin = folder / entry["cubin"]
        self._function = driver.function(cubin, f"simt_cuda_{entry['kernel']}")
        shared = entry["threadgroup_bytes"]
        driver("cuFuncSetAttribute", self._function, _MAX_SHARED, shared)

    def run(self) -> None:
        dimensions = [*self._entry["threadgroups"], *self._entry["threads"]]
        shared = ctypes.c_uint(self._entry["threadgroup_bytes"])
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(self._bindings))
        sizes = map(ctypes.c_uint, dimensions)
        call = "cuLaunchKernel"
        self._driver(call, self._function, *sizes, shared, None, arguments, None)

    def result(self) -> np.ndarray:
        parts = [self._output(name) for name in self._entry["outputs"]]
        result = np.concatenate(parts, axis=-1)
        # A split K gives one result for each part.
        return result.reshape(-1, *self.exact.shape).sum(0)

    def _output(self, name: str) -> np.ndarray:
        raw = self._raw[name]
        out = self._buffers[self._entry["buffers"].index(name)]
        self._driver.download(out, raw)
        if self._entry["dtype"] == "bfloat16":
            bits = raw.view(np.uint16).astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            values = raw.view(self._entry["dtype"])
        return values.reshape(self._entry["outputs"][name]).astype(np.float64)

    def worst(self) -> float:
        """Return the largest ratio of error to allowed error: at most 1 if correct."""
        with np.errstate(invalid="ignore"):
            ratio = abs(self.result() - self.exact) / self.allowed
        return float(np.where(np.isnan(ratio), np.inf, ratio).max())

    def free(self) -> None:
        for buffer in self._buffers:
            self._driver.free(buffer)


def main() -> int:
    folder = Path(__file__).resolve().parent
    entries = json.loads((folder / "launches.json").read_text())
    with_times = "--no-times" not in sys.argv
    driver = Driver()
    copy = driver.copy_bandwidth()
    print(f"{driver.name}: copies {copy / 1e9:.0f} GB/s, read and written counted")
    # A kernel has one entry for each problem.
    checked: dict[str, set[str]] = {"ours": set(), "MLX's": set()}
    wrong: dict[str, set[str]] = {"ours": set(), "MLX's": set()}
    for entry in entries:
        kernel = entry["kernel"]
        whose = "MLX's" if entry["cubin"].startswith("mlx_") else "ours"
        launch = Launch(driver, folder, entry)
        launch.run()
        driver("cuCtxSynchronize")
        worst = launch.worst()
        checked[whose].add(kernel)
        if not worst <= 1:
            wrong[whose].add(kernel)
            print(f"WRONG {kernel}: error {worst:.2f} times the allowed error")
        if entry["timed"] and with_times:
            seconds = driver.seconds(launch.run)
            rate = launch.bytes / seconds
            name = kernel if whose == "ours" else f"mlx {kernel}"
            rows = next(iter(entry["outputs"].values()))[1]
            print(
                f"M={rows:<4} {name:<56} {seconds * 1e6:8.1f} us "
                f"{rate / 1e9:7.0f} GB/s {100 * rate / copy:5.1f} % of copy"
            )
        launch.free()
    for whose, kernels in checked.items():
        right = len(kernels - wrong[whose])
        print(f"{whose}: {right} of {len(kernels)} kernels agree with the oracle")
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

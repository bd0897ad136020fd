"""NVIDIA's run-time compiler, which needs no GPU."""

from __future__ import annotations

import ctypes

from tests.simt import cuda_build

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")


def compile_kernel(text: str, architecture: str) -> tuple[bytes, str]:
    """Return the machine code of a text, and what the assembler says about it.

    Raises:
        RuntimeError: NVRTC refuses the text; the message is its log.
    """
    lib = cuda_build.nvrtc()
    assert lib is not None
    # csrc/cuda/library.cpp gives the first two.
    options = [f"--gpu-architecture={architecture}", "--std=c++20"]
    options += ["--ptxas-options=-v"]
    program = ctypes.c_void_p()
    lib.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None
    )
    flags = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed = lib.nvrtcCompileProgram(program, len(options), flags)

    def fetch(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{what}")(program, data)
        return data.raw

    log = fetch("ProgramLog").decode()
    cubin = b"" if failed else fetch("CUBIN")
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(log)
    return cubin, log

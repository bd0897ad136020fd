#include "csrc/bindings.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <iterator>
#include <vector>

#include "csrc/mlx/facts/machine.h"
#include "csrc/mlx/facts/repack.h"
#include "csrc/mlx/facts/symmetric.h"
#include "csrc/mlx/options.h"

namespace nb = nanobind;
using namespace nb::literals;

NB_MODULE(_ext, m) {
  m.doc() = "The compiled half of mlx_nibble.";
  // Registers mx.array, mx.Stream ... in the type table that both share.
  nb::module_::import_("mlx.core");

  nibble::machine::check_environment();

  m.def(
      "mlx_version",
      [] { return NIBBLE_MLX_VERSION; },
      "Return the mlx version that this extension was compiled against.");
  m.def(
      "accepts",
      [](const mlx::core::array&) { return true; },
      "array"_a,
      "Raise TypeError if the mlx.array of this process is another type.");
  nibble::bind_ops(m);

  m.def("remember_symmetric",
        &nibble::symmetric::remember,
        "scales"_a,
        "biases"_a,
        "bits"_a,
        "Remember that these biases are -2**(bits - 1) * scales, and keep both "
        "arrays until forget_symmetric() gets the token that this returns. "
        "mlx_nibble.acceleration.symmetric calls it.");
  m.def("forget_symmetric",
        &nibble::symmetric::forget,
        "token"_a,
        "Forget the pair of this token of remember_symmetric().");

  m.def("remember_repack",
        &nibble::repack::remember,
        "w"_a,
        "scales"_a,
        "biases"_a,
        "bits"_a,
        "group_size"_a,
        "Have products copy this matrix into the CPU backend's own layout, and "
        "keep the arrays until forget_repack() gets the token that this "
        "returns; 0 if the backend has no other layout for the format. "
        "mlx_nibble.acceleration.repack calls it.");
  m.def("forget_repack",
        &nibble::repack::forget,
        "token"_a,
        "Forget the matrix of this token of remember_repack().");
  m.def("repack_bytes",
        &nibble::repack::bytes,
        "token"_a,
        "The bytes that the copy of this token needs, and those allocated so "
        "far; (0, 0) after forget_repack().");

  m.def(
      "supports",
      [](const std::string& mode, int bits, int group_size) {
        return nibble::ops::QuantArgs{group_size, bits, mode}.is_ours();
      },
      "mode"_a,
      "bits"_a,
      "group_size"_a,
      "Tell whether our kernels support a format, on any device.");
  m.def(
      "supported_bits",
      [] {
        return std::vector(std::begin(nibble::kBits), std::end(nibble::kBits));
      },
      "Return the code widths that our kernels support.");
  m.def(
      "supported_group_sizes",
      [] {
        return std::vector(std::begin(nibble::kGroupSizes),
                           std::end(nibble::kGroupSizes));
      },
      "Return the group sizes that our kernels support.");

  m.def("cpu_isa",
        &nibble::machine::cpu_isa,
        "The instruction set that the CPU backend uses.");
  m.def("cpu_threads",
        &nibble::machine::cpu_threads,
        "The number of threads that the CPU backend uses.");
  m.def("cpu_multiply",
        &nibble::machine::cpu_multiply,
        nb::call_guard<nb::gil_scoped_release>(),
        "times"_a,
        "Run `times` rounds of multiplications on all threads of the CPU "
        "backend. Returns their number of floating-point operations.");

  nibble::bind_self_check(m);
  nibble::bind_tuning(m);
}

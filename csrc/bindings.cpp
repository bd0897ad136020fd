#include "csrc/bindings.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "csrc/mlx/facts/machine.h"
#include "csrc/mlx/facts/repack.h"
#include "csrc/mlx/facts/symmetric.h"
#include "csrc/mlx/options.h"
#include "csrc/mlx/repack.h"

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
  nibble::bind_functions(m);
  nibble::bind_layers(m);

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

  nb::class_<nibble::repack::PackedMemory>(
      m, "PackedMemory", "Memory for packed matrices of `bytes` in all.")
      .def(nb::init<size_t>(), "bytes"_a);
  m.def(
      "packed_bytes",
      [](const nibble::Triple& matrix,
         int bits,
         int group_size,
         const std::string& mode) {
        return nibble::repack::packed_bytes(nibble::as_arrays(matrix),
                                            {group_size, bits, mode});
      },
      "matrix"_a,
      "bits"_a,
      "group_size"_a,
      "mode"_a,
      "The bytes that pack() would need; 0 if the backend has no other layout "
      "for the matrix.");
  m.def(
      "pack",
      [](const nibble::Triple& matrix,
         int bits,
         int group_size,
         const std::string& mode,
         nibble::repack::PackedMemory& memory) {
        return nibble::repack::pack(
            nibble::as_arrays(matrix), {group_size, bits, mode}, memory);
      },
      nb::call_guard<nb::gil_scoped_release>(),
      "matrix"_a,
      "bits"_a,
      "group_size"_a,
      "mode"_a,
      "memory"_a,
      "Pack a matrix into the CPU backend's own layout. Returns lazy arrays "
      "that are to replace its own, no biases if none are read, and the bytes "
      "of the packed matrix; None if the backend has no other layout for it. "
      "mlx_nibble.acceleration.repack calls it.");
  m.def("release_memory",
        &nibble::machine::release_memory,
        nb::call_guard<nb::gil_scoped_release>(),
        "Give the memory of freed arrays back to the system.");
  m.def(
      "is_packed",
      [](const mlx::core::array& a) {
        return nibble::repack::part_of(a).has_value();
      },
      "array"_a,
      "Tell whether this is an array of pack() that is not evaluated.");
  m.def(
      "packed_rows",
      &nibble::repack::rows_of,
      "array"_a,
      "rows"_a,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "The rows array[rows] of an array of pack() that is not evaluated; None "
      "for other arrays.");

  m.def(
      "supports",
      [](const std::string& mode, int bits, int group_size, bool gpu) {
        nibble::ops::QuantArgs args{group_size, bits, mode};
        return args.is_ours() &&
               (!gpu || nibble::supported_by_gpu(args.format()));
      },
      "mode"_a,
      "bits"_a,
      "group_size"_a,
      "gpu"_a = false,
      "Tell whether our kernels support a format on a CPU, or on a GPU.");
  m.def(
      "supported_forms",
      [] {
        using Numbers = std::vector<int>;
        std::map<std::string, std::pair<Numbers, Numbers>> forms;
        for (const nibble::ModeInfo& mode : nibble::kModes) {
          forms[std::string(mode.name)] = {
              Numbers(mode.bits.begin(), mode.bits.end()),
              Numbers(mode.group_sizes.begin(), mode.group_sizes.end())};
        }
        return forms;
      },
      "Return the code widths and the group sizes of each mode that our "
      "kernels "
      "support.");

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
  nibble::bind_steps(m);
  nibble::bind_tuning(m);
}

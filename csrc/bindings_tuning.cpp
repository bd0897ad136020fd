#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "csrc/bindings.h"
#include "csrc/mlx/facts/tuning.h"
#include "mlx/utils.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {

using tuning::problem;
using tuning::Shape;

void bind_tuning(nb::module_& m) {
  m.def(
      "row_classes",
      [](mx::StreamOrDevice s) {
        auto classes = row_classes(mx::to_stream(s).device == mx::Device::gpu);
        return std::vector<int>(classes.begin(), classes.end());
      },
      nb::kw_only(),
      "stream"_a = nb::none(),
      "The largest number of rows of each class that shares a choice.");
  m.def(
      "add_tuning",
      [](const std::vector<tuning::Choice>& choices,
         bool complete,
         mx::StreamOrDevice s) {
        return tuning::add(choices, complete, mx::to_stream(s).device);
      },
      "choices"_a,
      "complete"_a = false,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "Keep a table of ((rows, N, K, dtype, scale_dtype, bits, group_size, "
      "mode, experts, sorted), int8_activations, candidate). A complete "
      "one leaves a GPU's other products to MLX. Returns its number, the "
      "argument `tuning` of the operations.");
  m.def("replace_tuning",
        &tuning::replace,
        "number"_a,
        "choices"_a,
        "Give a table of add_tuning() these choices.");
  m.def("kernels_of",
        &tuning::kernels,
        "shape"_a,
        "choice"_a = "",
        "The names of the kernels that compute a product on a GPU, as a table "
        "with this choice has it.");
  m.def("joining_kernels",
        &tuning::joining_kernels,
        "shape"_a,
        "The names of the kernels that compute a product together with others "
        "on a GPU.");
  m.def(
      "candidates",
      [](const Shape& shape, bool int8, mx::StreamOrDevice s) {
        return tuning::candidates(
            problem(shape), int8, mx::to_stream(s).device);
      },
      "shape"_a,
      "int8_activations"_a = false,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "The names of all candidates for x @ w_hat.T, the planner's own choice "
      "first; none if only MLX computes it.");
  m.def(
      "chosen",
      [](const Shape& shape, bool int8, int table, mx::StreamOrDevice s) {
        MatmulProblem asked = problem(shape);
        mx::Device device = mx::to_stream(s).device;
        ops::MatmulOptions options{.activations = activations_of(int8 ? 8 : 0),
                                   .tuning = table};
        tuning::consult(asked, options, device);
        return tuning::chosen(asked, int8, device);
      },
      "shape"_a,
      "int8_activations"_a = false,
      "tuning"_a = 0,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "The name of the candidate that runs; 'mlx' if none does.");
}

}  // namespace nibble

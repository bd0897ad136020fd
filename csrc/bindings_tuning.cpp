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
  m.def("row_class",
        &row_class,
        "rows"_a,
        "The largest number of rows that shares a choice with this one.");
  m.def(
      "add_tuning",
      [](const std::vector<std::tuple<Shape, bool, std::string>>& choices) {
        Tuning table;
        for (const auto& [shape, int8, choice] : choices) {
          table.put(problem(shape), int8, choice);
        }
        return tuning::add(std::move(table));
      },
      "choices"_a,
      "Keep a table of ((rows, N, K, dtype, scale_dtype, bits, group_size, "
      "symmetric), int8_activations, candidate). Returns its number, the "
      "argument `tuning` of the operations.");
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
        ops::MatmulOptions options{.int8_activations = int8, .tuning = table};
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

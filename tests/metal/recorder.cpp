// A Python module that runs the extension on the stand-in for MLX's Metal
// device: from arrays to dispatches, and back to results if a test executes
// them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "csrc/bindings.h"
#include "csrc/metal/device_profile.h"
#include "csrc/mlx/plans.h"
#include "mlx/backend/metal/device.h"
#include "mlx/primitives.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;
using mx::metal::Dispatch;

namespace {

// MLX has no GPU here: this stream is one by name only.
const mx::Stream kGpu(0, mx::Device::gpu);

mx::metal::Device& gpu() {
  return mx::metal::device(mx::Device::gpu);
}

using Triple = std::tuple<uint64_t, uint64_t, uint64_t>;

Triple to_tuple(const MTL::Size& size) {
  return {size.width, size.height, size.depth};
}

// Bytes from the first element of `a` to the end of the last; strides are not
// negative.
size_t extent(const mx::array& a) {
  int64_t last = 0;
  for (int i = 0; i < static_cast<int>(a.ndim()); ++i) {
    last += (a.shape(i) - 1) * a.strides()[i];
  }
  return (last + 1) * a.itemsize();
}

// Evaluates the node of `a`, as MLX's scheduler would.
void evaluate(mx::array a) {
  for (mx::array& input : a.inputs()) {
    if (!input.is_available()) {
      throw std::invalid_argument("the inputs must have been evaluated");
    }
  }
  std::vector<mx::array> outputs{a};
  auto& encoder = mx::metal::get_command_encoder(kGpu);
  encoder.begin_node();
  a.primitive().eval_gpu(a.inputs(), outputs);
  encoder.end_node(a.inputs());
  a.set_status(mx::array::Status::available);
}

}  // namespace

NB_MODULE(_recorder, m) {
  nb::module_::import_("mlx.core");

  nb::class_<Dispatch::Array>(m, "Array")
      .def_ro("index", &Dispatch::Array::index)
      .def_ro("offset", &Dispatch::Array::offset)
      .def_ro("output", &Dispatch::Array::output)
      .def_prop_ro("address",
                   [](Dispatch::Array& a) {
                     return reinterpret_cast<uintptr_t>(a.value.data<void>());
                   })
      .def_prop_ro("nbytes",
                   [](const Dispatch::Array& a) { return extent(a.value); })
      .def_prop_ro("itemsize",
                   [](const Dispatch::Array& a) { return a.value.itemsize(); });

  nb::class_<Dispatch>(m, "Dispatch")
      .def_prop_ro("kernel",
                   [](const Dispatch& d) { return d.pipeline->kernel; })
      .def_prop_ro("library",
                   [](const Dispatch& d) { return d.pipeline->library->name; })
      .def_prop_ro(
          "source",
          [](const Dispatch& d) { return d.pipeline->library->source; })
      .def_ro("arrays", &Dispatch::arrays)
      .def_prop_ro("bytes",
                   [](const Dispatch& d) {
                     std::vector<std::pair<int, nb::bytes>> all;
                     for (const Dispatch::Bytes& b : d.bytes) {
                       all.emplace_back(
                           b.index, nb::bytes(b.value.data(), b.value.size()));
                     }
                     return all;
                   })
      .def_prop_ro("threadgroups",
                   [](const Dispatch& d) { return to_tuple(d.threadgroups); })
      .def_prop_ro("threads",
                   [](const Dispatch& d) { return to_tuple(d.threads); });

  m.def(
      "configure",
      [](const std::string& architecture,
         const std::set<std::string>& refused,
         uint64_t max_threads) {
        gpu().forget();
        gpu().architecture = architecture;
        gpu().refused = refused;
        gpu().max_threads = max_threads;
      },
      "architecture"_a = "applegpu_g13g",
      "refused"_a = std::set<std::string>{},
      "max_threads"_a = 1024,
      "Describe the GPU, and forget what was compiled.");

  m.def(
      "compiled",
      [] { return gpu().compiled; },
      "The names of the libraries that were compiled, in order.");

  m.def(
      "set_executor",
      [](std::optional<nb::callable> run) {
        auto& encoder = mx::metal::get_command_encoder(kGpu);
        encoder.run = nullptr;
        if (run) {
          encoder.run = [run = *run](const Dispatch& d) { run(d); };
        }
      },
      "run"_a.none(),
      "Have run(dispatch) called with each dispatch.");

  m.def(
      "parse_architecture",
      [](const std::string& architecture) {
        nibble::DeviceProfile p =
            nibble::metal::parse_architecture(architecture);
        return std::make_pair(p.generation, std::string(1, p.tier));
      },
      "architecture"_a,
      "(generation, tier)");
  m.def(
      "address",
      [](mx::array& a) { return reinterpret_cast<uintptr_t>(a.data<void>()); },
      "a"_a,
      "The address of the first element of an evaluated array.");
  m.def(
      "evaluate_with",
      [](mx::array a, const mx::array& x, int input) {
        std::vector<mx::array> inputs = a.inputs();
        inputs[input] = x;
        mx::array y(a.primitive().output_shapes(inputs)[0],
                    a.dtype(),
                    a.primitive_ptr(),
                    inputs);
        evaluate(y);
        return y;
      },
      "a"_a,
      "x"_a,
      "input"_a = 0,
      "Run the node of `a` with another input, as a graph that is traced "
      "without shapes. Returns the result.");
  m.def(
      "find",
      [](const mx::array& a, const std::string& name) {
        std::vector<mx::array> ahead{a};
        for (size_t i = 0; i < ahead.size(); ++i) {
          if (!ahead[i].has_primitive()) {
            continue;
          }
          if (ahead[i].primitive().name() == name) {
            return std::optional(ahead[i]);
          }
          std::vector<mx::array> inputs = ahead[i].inputs();
          ahead.insert(ahead.end(), inputs.begin(), inputs.end());
        }
        return std::optional<mx::array>();
      },
      "a"_a,
      "name"_a,
      "The nearest array that `a` waits for and a primitive of this name "
      "computes; None if there is none.");
  m.def("kept_plans",
        &nibble::plans::kept,
        "The number of plans that this thread keeps.");
  m.attr("most_plans") = nibble::plans::kMostPlans;
  m.def("evaluate", &evaluate, "Run the node that computes an array.");
  m.def(
      "node",
      [](const mx::array& a) { return std::string(a.primitive().name()); },
      "The name of the primitive that computes an array.");

  m.attr("stream") = kGpu;
  nibble::bind_ops(m);
  nibble::bind_layers(m);
  nibble::bind_self_check(m);
  nibble::bind_tuning(m);
}

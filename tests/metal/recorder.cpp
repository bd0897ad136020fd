// A Python module in which the whole extension runs on the stand-in for MLX's
// Metal device: from arrays to dispatches, and back if a test executes them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "csrc/bindings_self_check.h"
#include "csrc/metal/device_profile.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/ops.h"
#include "mlx/backend/metal/device.h"
#include "mlx/primitives.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;
using mx::metal::Dispatch;

namespace {

// MLX has no GPU here, so there is a stream of one only by name.
const mx::Stream kGpu(0, mx::Device::gpu);

mx::metal::Device& gpu() {
  return mx::metal::device(mx::Device::gpu);
}

using Triple = std::tuple<uint64_t, uint64_t, uint64_t>;
// w, scales and biases.
using Matrix = std::tuple<mx::array, mx::array, mx::array>;

Triple to_tuple(const MTL::Size& size) {
  return {size.width, size.height, size.depth};
}

// Does what MLX's scheduler would: evaluates the one node that `a` is.
void evaluate(mx::array a) {
  for (mx::array& input : a.inputs()) {
    if (!input.is_available()) {
      throw std::invalid_argument("the inputs must have been evaluated");
    }
  }
  std::vector<mx::array> outputs{a};
  a.primitive().eval_gpu(a.inputs(), outputs);
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
                   [](const Dispatch::Array& a) { return a.value.nbytes(); })
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
      .def_ro("threadgroup_memory", &Dispatch::threadgroup_memory)
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
      "Describe the GPU; nothing is compiled on it yet.");

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
      "Called with each dispatch.");

  m.def(
      "quantized_matmul",
      [](const mx::array& x,
         const mx::array& w,
         const mx::array& scales,
         const mx::array& biases,
         bool transpose,
         int group_size,
         int bits,
         std::optional<mx::array> bias,
         std::optional<mx::array> residual,
         bool symmetric) {
        nibble::ops::MatmulOptions options;
        options.symmetric = symmetric;
        return nibble::ops::quantized_matmul(x,
                                             w,
                                             scales,
                                             biases,
                                             transpose,
                                             group_size,
                                             bits,
                                             "affine",
                                             options,
                                             {bias, residual},
                                             kGpu);
      },
      "x"_a,
      "w"_a,
      "scales"_a,
      "biases"_a,
      "transpose"_a = true,
      "group_size"_a = 64,
      "bits"_a = 4,
      "bias"_a = nb::none(),
      "residual"_a = nb::none(),
      "symmetric"_a = false);

  m.def(
      "gather_qmm",
      [](const mx::array& x,
         const mx::array& w,
         const mx::array& scales,
         const mx::array& biases,
         const mx::array& lhs,
         const mx::array& rhs,
         bool transpose,
         int group_size,
         int bits,
         bool sorted) {
        return nibble::ops::gather_qmm(x,
                                       w,
                                       scales,
                                       biases,
                                       lhs,
                                       rhs,
                                       transpose,
                                       group_size,
                                       bits,
                                       "affine",
                                       std::nullopt,
                                       sorted,
                                       {},
                                       kGpu);
      },
      "x"_a,
      "w"_a,
      "scales"_a,
      "biases"_a,
      "lhs"_a,
      "rhs"_a,
      "transpose"_a = true,
      "group_size"_a = 64,
      "bits"_a = 4,
      "sorted"_a = false);

  m.def(
      "swiglu",
      [](const mx::array& x,
         const Matrix& gate,
         const Matrix& up,
         std::optional<mx::array> lhs,
         std::optional<mx::array> rhs,
         int group_size,
         int bits) {
        auto arrays = [](const Matrix& q) {
          return std::make_from_tuple<nibble::ops::QuantizedArrays>(q);
        };
        return nibble::ops::gather_swiglu(x,
                                          arrays(gate),
                                          arrays(up),
                                          lhs,
                                          rhs,
                                          group_size,
                                          bits,
                                          "affine",
                                          false,
                                          {},
                                          kGpu);
      },
      "x"_a,
      "gate"_a,
      "up"_a,
      "lhs"_a = nb::none(),
      "rhs"_a = nb::none(),
      "group_size"_a = 64,
      "bits"_a = 4,
      "Gathered, if there are indices.");

  m.def(
      "gated_products",
      [](const mx::array& gate, const mx::array& up) {
        return nibble::fusion::gated_products(gate, up, kGpu);
      },
      "gate"_a,
      "up"_a);

  m.def(
      "dequantize",
      [](const mx::array& w,
         const mx::array& scales,
         const mx::array& biases,
         int group_size,
         int bits,
         std::optional<mx::Dtype> dtype) {
        return nibble::ops::dequantize(w,
                                       scales,
                                       biases,
                                       group_size,
                                       bits,
                                       "affine",
                                       std::nullopt,
                                       dtype,
                                       kGpu);
      },
      "w"_a,
      "scales"_a,
      "biases"_a,
      "group_size"_a = 64,
      "bits"_a = 4,
      "dtype"_a = nb::none());

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
      "Of the first element of an evaluated array.");
  m.def("evaluate", &evaluate, "Run the one node that an array is.");
  m.def(
      "node",
      [](const mx::array& a) { return std::string(a.primitive().name()); },
      "The name of the primitive that computes an array.");

  m.attr("stream") = kGpu;
  nibble::bind_self_check(m);
}

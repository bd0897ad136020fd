#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "csrc/bindings.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/gpu.h"
#include "csrc/mlx/facts/self_check.h"
#include "mlx/utils.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

// Threads build graphs, and ask the judge, with or without the interpreter's
// lock.
self_check::Judge as_judge(nb::callable judge) {
  return [judge = std::move(judge)](const std::string& kernel) {
    nb::gil_scoped_acquire lock;
    return nb::cast<bool>(judge(kernel));
  };
}

std::function<gpu::GpuFacts()> as_facts(nb::callable find) {
  return [find = std::move(find)] {
    nb::gil_scoped_acquire lock;
    auto [cores, neural, tf32] =
        nb::cast<std::tuple<uint32_t, bool, bool>>(find());
    return gpu::GpuFacts{cores, neural, tf32};
  };
}

const char* to_string(Trial::Kind kind) {
  switch (kind) {
    case Trial::Kind::kProduct:
      return "product";
    case Trial::Kind::kNotTransposed:
      return "not_transposed";
    case Trial::Kind::kSwiglu:
      return "swiglu";
    case Trial::Kind::kJoint:
      return "joint";
    case Trial::Kind::kDequantize:
      return "dequantize";
    case Trial::Kind::kGradient:
      return "gradient";
  }
  return "";
}

nb::dict as_dict(const Trial& t) {
  nb::dict d;
  d["kind"] = to_string(t.kind);
  d["B"] = t.B;
  d["rows"] = t.rows;
  d["M"] = t.M;
  d["N"] = t.N;
  d["K"] = t.K;
  d["experts"] = t.experts;
  d["sorted"] = t.sorted;
  d["epilogue"] = t.epilogue;
  d["dtype"] = bridge::to_mlx(t.dtype);
  d["scale_dtype"] = bridge::to_mlx(t.scale_dtype);
  d["bits"] = t.format.bits;
  d["group_size"] = t.format.group_size;
  d["mode"] = std::string(t.format.info().name);
  return d;
}

}  // namespace

void bind_self_check(nb::module_& m) {
  m.def("kernels", &self_check::kernels, "The names of all Metal kernels.");
  // The kernel that copies operands that are views; no problem leads to it.
  m.attr("view_kernel") = self_check::view_kernel();
  m.def(
      "trial",
      [](const std::string& kernel) -> std::optional<nb::dict> {
        std::optional<Trial> trial = self_check::trial_of(kernel);
        return trial ? std::optional(as_dict(*trial)) : std::nullopt;
      },
      "kernel"_a,
      "The fields of this kernel's trial.Trial on this machine's GPU; None "
      "if the planner never uses the kernel there.");
  m.def(
      "run_trial",
      [](const std::string& kernel,
         const self_check::Operands& operands,
         mx::StreamOrDevice s) {
        return self_check::run(
            kernel, operands, mx::to_stream(s, mx::Device::gpu));
      },
      "kernel"_a,
      "operands"_a,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "Run the kernel's trial. `operands` maps names of operands to arrays. "
      "Returns y.");
  m.def(
      "trusted",
      [](const std::vector<std::string>& kernels) {
        return self_check::trusted(kernels);
      },
      "kernels"_a,
      "Tell whether all of these kernels may be used; try those that nobody "
      "has asked for.");
  m.def("compile_kernels",
        &gpu::compile,
        "kernels"_a,
        nb::call_guard<nb::gil_scoped_release>(),
        "Compile these kernels in one library, for their trials.");
  m.def("has_gpu",
        &gpu::is_available,
        "Whether our kernels run on a GPU of this machine.");
  m.def("set_fences",
        &gpu::set_fences,
        "fences"_a,
        "Compile kernels with or without barriers between the loads of "
        "fragments and their products, from now on.");
  m.def(
      "set_gpu_facts",
      [](std::optional<nb::callable> find) {
        gpu::set_facts(find ? as_facts(*find)
                            : std::function<gpu::GpuFacts()>());
      },
      "find"_a.none(),
      "Ask find() -> (cores, neural accelerators, TF32) before the first plan "
      "for a GPU; 0 cores: not known.");
  m.def(
      "set_judge",
      [](std::optional<nb::callable> judge) {
        self_check::set_judge(judge ? as_judge(*judge) : self_check::Judge());
      },
      "judge"_a.none(),
      "Ask judge(kernel) -> bool before the first use of each kernel.");
}

}  // namespace nibble

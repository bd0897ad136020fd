#include "csrc/bindings_self_check.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/self_check.h"
#include "mlx/utils.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

// Graphs are built, and judges asked, with or without the interpreter's lock.
self_check::Judge as_judge(nb::callable judge) {
  return [judge = std::move(judge)](const std::string& kernel) {
    nb::gil_scoped_acquire lock;
    return nb::cast<bool>(judge(kernel));
  };
}

nb::dict as_dict(const Trial& trial) {
  const MatmulProblem& p = trial.problem;
  nb::dict d;
  d["M"] = p.M;
  d["N"] = p.N;
  d["K"] = p.K;
  d["dtype"] = bridge::to_mlx(p.dtype);
  d["scale_dtype"] = bridge::to_mlx(p.scale_dtype);
  d["bits"] = p.format.bits;
  d["group_size"] = p.format.group_size;
  d["symmetric"] = p.format.symmetric;
  d["dequantize"] = trial.dequantize;
  return d;
}

}  // namespace

void bind_self_check(nb::module_& m) {
  m.def("kernels", &self_check::kernels, "The names of all Metal kernels.");
  m.def("cpu_isa",
        &self_check::cpu_isa,
        "The instruction set that the CPU backend uses.");
  m.def(
      "trial",
      [](const std::string& kernel) -> std::optional<nb::dict> {
        std::optional<Trial> trial = self_check::trial_of(kernel);
        return trial ? std::optional(as_dict(*trial)) : std::nullopt;
      },
      "kernel"_a,
      "The fields of a selfcheck.Trial of this kernel on this machine's GPU; "
      "None if it is never used there.");
  m.def(
      "run_trial",
      [](const std::string& kernel,
         const mx::array& w,
         const mx::array& scales,
         const mx::array& biases,
         const std::optional<mx::array>& x,
         mx::StreamOrDevice s) {
        return self_check::run(
            kernel, w, scales, biases, x, mx::to_stream(s, mx::Device::gpu));
      },
      "kernel"_a,
      "w"_a,
      "scales"_a,
      "biases"_a,
      "x"_a.none(),
      nb::kw_only(),
      "stream"_a = nb::none(),
      "y [M, N], or w_hat [N, K], of the kernel's trial; the operands are "
      "evaluated and contiguous.");
  m.def(
      "set_judge",
      [](std::optional<nb::callable> judge) {
        self_check::set_judge(judge ? as_judge(*judge) : self_check::Judge());
      },
      "judge"_a.none(),
      "Ask judge(kernel) -> bool before the first use of each kernel.");
}

}  // namespace nibble

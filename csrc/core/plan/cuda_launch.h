// Parts of the plans of all kernels for CUDA that multiply.
#pragma once

#include "csrc/core/plan/cuda.h"
#include "csrc/core/plan/launch.h"

namespace nibble {

// Beyond this number of rows of one matrix, a dense product of rounded weights
// is faster than cuda_qmm_skinny (docs/results/cuda.md).
inline constexpr int kLastSkinnyRow = 64;

// True if kernels for CUDA read these weights and activations.
template <typename Problem>
bool is_read(const Problem& p) {
  return supported_by_gpu(p.format, p.K) && p.K % cuda_columns(p.format) == 0 &&
         supported_on_cuda(without_symmetry(p));
}

// A launch of a family that takes the operands of cuda_qmm_skinny.
template <typename Tile>
LaunchPlan cuda_launch(const MatmulProblem& problem,
                       const Tile& tile,
                       Family family = Family::kCudaQmmSkinny) {
  MatmulProblem p = without_symmetry(problem);
  LaunchPlan launch =
      launch_of(p, family, tile, {p.columns(), p.M, p.batch.size});
  bind_weights(launch, p.format);
  bind(launch,
       {Operand::kX,
        p.epilogue.bias ? Operand::kBias : Operand::kScales,
        p.epilogue.residual ? Operand::kResidual : Operand::kScales,
        Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return launch;
}

}  // namespace nibble

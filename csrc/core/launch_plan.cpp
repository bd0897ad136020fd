#include "csrc/core/launch_plan.h"

#include <sstream>

namespace nibble {

std::string to_string(Operand operand) {
  switch (operand) {
    case Operand::kWeight:
      return "w";
    case Operand::kScales:
      return "scales";
    case Operand::kBiases:
      return "biases";
    case Operand::kUpWeight:
      return "up_w";
    case Operand::kUpScales:
      return "up_scales";
    case Operand::kUpBiases:
      return "up_biases";
    case Operand::kX:
      return "x";
    case Operand::kLhsIndices:
      return "lhs_indices";
    case Operand::kRhsIndices:
      return "rhs_indices";
    case Operand::kBias:
      return "bias";
    case Operand::kResidual:
      return "residual";
    case Operand::kSums:
      return "sums";
    case Operand::kOut:
      return "out";
    case Operand::kWeight1:
      return "w1";
    case Operand::kScales1:
      return "scales1";
    case Operand::kBiases1:
      return "biases1";
    case Operand::kBias1:
      return "bias1";
    case Operand::kOut1:
      return "out1";
    case Operand::kWeight2:
      return "w2";
    case Operand::kScales2:
      return "scales2";
    case Operand::kBiases2:
      return "biases2";
    case Operand::kBias2:
      return "bias2";
    case Operand::kOut2:
      return "out2";
  }
  return "?";
}

std::string to_string(const LaunchPlan& plan) {
  std::ostringstream out;
  auto dim = [&](const char* label, const Dim3& d) {
    out << ' ' << label << '=' << d.x << 'x' << d.y << 'x' << d.z;
  };
  out << plan.kernel;
  dim("threadgroups", plan.threadgroups);
  dim("threads", plan.threads);
  out << " buffers=";
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    out << (i ? "," : "") << to_string(plan.buffers[i]);
  }
  out << " params=" << plan.params.size() << 'B';
  if (plan.threadgroup_bytes) {
    out << " threadgroup=" << plan.threadgroup_bytes << 'B';
  }
  if (plan.sums_bytes) {
    out << " sums=" << plan.sums_bytes << 'B';
  }
  return out.str();
}

}  // namespace nibble

#include "csrc/core/launch_plan.h"

#include <sstream>

namespace nibble {

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

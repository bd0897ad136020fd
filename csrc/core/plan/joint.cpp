// Two or three products of one x in one launch.
#include "csrc/core/plan/launch.h"
#include "csrc/core/plan/limits.h"
#include "csrc/core/planner.h"
#include "csrc/core/tuning.h"

namespace nibble {
namespace {

// Bound in place of each array that a product lacks. The kernel does not read
// it.
constexpr Operand kUnread = Operand::kScales;

void bind_operands(LaunchPlan& launch,
                   const QuantFormat& format,
                   size_t count,
                   int biased) {
  launch.buffers.clear();
  for (size_t i = 0; i < NIBBLE_JOINT; ++i) {
    const JointOperands& of = kJointOperands[i];
    WeightOperands weight{of.w, of.scales, of.biases};
    WeightOperands none{kUnread, kUnread, kUnread};
    bind_weights(launch, format, i < count ? weight : none, kUnread);
  }
  bind(launch, {Operand::kX});
  for (size_t i = 0; i < NIBBLE_JOINT; ++i) {
    bind(launch, {(biased >> i) & 1 ? kJointOperands[i].bias : kUnread});
  }
  for (size_t i = 0; i < NIBBLE_JOINT; ++i) {
    bind(launch, {i < count ? kJointOperands[i].out : kUnread});
  }
}

// Returns the columns of y that one threadgroup computes.
int columns_of(const KernelId& id) {
  return id.family == Family::kQmmSkinny ? id.shape[1] : QmvRows{}.columns();
}

// True if `p` is a product that may share a launch with `first`: it differs in
// N and in its bias only.
bool goes_with(MatmulProblem p, const MatmulProblem& first) {
  bool chosen = !p.choice.empty() && p.choice != kOurs;
  bool alone = p.epilogue.residual || p.batch.size != 1 || chosen;
  p.N = first.N;
  p.epilogue = first.epilogue;
  return !alone && p == first;
}

}  // namespace

std::optional<Launches> plan_joint(const std::vector<MatmulProblem>& products,
                                   const DeviceProfile& device) {
  if (products.size() < 2 || products.size() > NIBBLE_JOINT) {
    return std::nullopt;
  }
  const MatmulProblem first = merge_rows(products[0]);
  const auto alone = plan(first, device);
  if (!alone) {
    return std::nullopt;
  }
  LaunchPlan launch = alone->front();
  const std::string alone_kernel = launch.kernel;
  KernelId id = *parse_kernel_name(alone_kernel);
  auto family = row_of(id.family).joint;
  // With more rows, another product by itself might have another kernel.
  if (!family || first.M > kLastSkinnyRow ||
      (id.family == Family::kQmvMulti && id.shape[0] > kLastJointForm)) {
    return std::nullopt;
  }
  uint64_t simdgroups =
      launch.threads.volume() * launch.threadgroups.y / NIBBLE_SIMD_WIDTH;
  JointParams params{first.M, first.K, 0, 0, 0, 0};
  int* N[] = {&params.N0, &params.N1, &params.N2};
  launch.threadgroups.x = 0;
  bool one_is_small = false;
  for (size_t i = 0; i < products.size(); ++i) {
    MatmulProblem p = merge_rows(products[i]);
    if (!goes_with(p, first)) {
      return std::nullopt;
    }
    *N[i] = p.N;
    params.biased |= (p.epilogue.bias ? 1 : 0) << i;
    // Alone it would have another kernel, whose bits differ.
    if (auto own = plan(p, device);
        !own || own->front().kernel != alone_kernel) {
      return std::nullopt;
    }
    uint32_t across = ceil_div(p.N, columns_of(id));
    one_is_small |= across * simdgroups < kSimdgroupsPerCore * cores(device);
    launch.threadgroups.x += across;
  }
  // Products that fill the GPU one by one have nothing to gain.
  if (!one_is_small) {
    return std::nullopt;
  }
  id.family = *family;
  launch.kernel = kernel_name(id);
  launch.params = as_bytes(params);
  bind_operands(launch, first.format, products.size(), params.biased);
  return {{std::move(launch)}};
}

}  // namespace nibble

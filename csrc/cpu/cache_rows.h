// The keys and values of one head, and which of them are finite.
#pragma once

#include "csrc/cpu/attention.h"
#include "csrc/cpu/layer_kernels.h"

namespace nibble::cpu {

// The rows of one head.
CacheRows rows_of(const CacheShape& shape,
                  const CacheOperand& o,
                  int width,
                  int batch,
                  int head);

bool all_finite(Dtype dtype, const void* p, int count);

// Returns true if a causal mask may be followed by leaving keys out. The weight
// of a key that a query does not see is 0, and 0 times infinity is NaN.
bool may_leave_out(const Attention& p, const AttentionOperands& o);

}  // namespace nibble::cpu

#include "csrc/mlx/graph.h"

#include <algorithm>
#include <functional>

namespace nibble::graph {
namespace {

// Positions of sequences, which this is asked about, wait for a few.
constexpr size_t kSearched = 64;

}  // namespace

bool is_independent(const mx::array& a, const std::vector<mx::array>& of) {
  std::vector<std::reference_wrapper<const mx::array>> ahead{a};
  for (size_t i = 0; i < ahead.size(); ++i) {
    const mx::array& next = ahead[i];
    if (next.status() != mx::array::Status::unscheduled ||
        !next.has_primitive()) {
      continue;
    }
    bool found = std::ranges::any_of(of, [&](const mx::array& other) {
      return &other.primitive() == &next.primitive();
    });
    if (found || ahead.size() + next.inputs().size() > kSearched) {
      return false;
    }
    ahead.insert(ahead.end(), next.inputs().begin(), next.inputs().end());
  }
  return true;
}

}  // namespace nibble::graph

#include "csrc/mlx/facts/in_turn.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace nibble::in_turn {
namespace {

// A token that chooses among experts has a few; a prompt has thousands.
constexpr size_t kMostIndices = 4096;
// The numbers of sequences of a server, and of experts of its models.
constexpr size_t kMostKept = 64;

using Key = std::pair<std::vector<int>, std::vector<int>>;

// Computed here and not by MLX: to evaluate a broadcast of arange would wait
// for all work that the stream has.
std::vector<uint32_t> values(const mx::Shape& batch, const mx::Shape& shape) {
  // Strides of the batch in `shape`, to which it is broadcast.
  std::vector<size_t> strides(shape.size(), 0);
  size_t stride = 1, first = shape.size() - batch.size();
  for (size_t i = batch.size(); i-- > 0;) {
    strides[first + i] = batch[i] == 1 ? 0 : stride;
    stride *= batch[i];
  }
  size_t size = 1;
  for (int d : shape) {
    size *= d;
  }
  std::vector<uint32_t> all(size);
  for (size_t at = 0; at < size; ++at) {
    size_t rest = at, index = 0;
    for (size_t i = shape.size(); i-- > 0;) {
      index += rest % shape[i] * strides[i];
      rest /= shape[i];
    }
    all[at] = static_cast<uint32_t>(index);
  }
  return all;
}

}  // namespace

std::optional<mx::array> indices(const mx::Shape& batch,
                                 const mx::Shape& shape) {
  size_t size = 1;
  for (int d : shape) {
    size *= d;
    if (size > kMostIndices) {
      return std::nullopt;
    }
  }
  // They live as long as the process, for MLX's allocator may end before them.
  static std::mutex& mutex = *new std::mutex;
  static auto& kept = *new std::map<Key, mx::array>;
  Key key{{batch.begin(), batch.end()}, {shape.begin(), shape.end()}};
  std::lock_guard lock(mutex);
  auto found = kept.find(key);
  if (found == kept.end()) {
    if (kept.size() >= kMostKept) {
      kept.clear();
    }
    std::vector<uint32_t> all = values(batch, shape);
    found =
        kept.emplace(std::move(key), mx::array(all.begin(), shape, mx::uint32))
            .first;
  }
  return found->second;
}

}  // namespace nibble::in_turn

#include "csrc/mlx/facts/repack.h"

#include <atomic>
#include <new>
#include <unordered_map>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/symmetric.h"

namespace nibble::repack {
namespace {

// While an entry keeps an array, no other array can have its address.
struct Held {
  uint64_t token;
  mx::array w, scales, biases;
  std::shared_ptr<Copy> copy;
};

struct Registry {
  std::mutex mutex;
  std::unordered_map<uint64_t, Held> by_weights;
  std::unordered_map<uint64_t, uint64_t> weights_of;  // by token
  uint64_t last_token = 0;
  // Size of by_weights. In most processes it is 0, and find() takes no lock.
  std::atomic<size_t> size = 0;
};

Registry& registry() {
  static Registry the_registry;
  return the_registry;
}

}  // namespace

const cpu::Packed* Copy::get(const cpu::PackedForm& form,
                             int count,
                             const cpu::QuantizedOperands& operands) {
  std::lock_guard lock(mutex_);
  if (!tried_) {
    tried_ = true;
    try {
      packed_.emplace(form, count, operands);
    } catch (const std::bad_alloc&) {
      // Products then read the layer's own arrays: the results are the same.
    }
  }
  return packed_ ? &*packed_ : nullptr;
}

bool Copy::made() {
  std::lock_guard lock(mutex_);
  return packed_.has_value();
}

uint64_t remember(const mx::array& w,
                  const mx::array& scales,
                  const mx::array& biases,
                  int bits,
                  int group_size) {
  auto scale_dtype = bridge::to_dtype(scales.dtype());
  QuantFormat format{
      bits, group_size, affine_mode(symmetric::known(scales, biases, bits))};
  if (!supported(format) || !scale_dtype || w.ndim() < 2 || w.size() == 0) {
    return 0;
  }
  int N = w.shape(-2), K = scales.shape(-1) * group_size;
  size_t count = w.size() / w.shape(-1) / N;
  size_t bytes = count * cpu::Packed::bytes({N, K, format, *scale_dtype});
  if (bytes == 0) {
    return 0;
  }
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  uint64_t token = ++r.last_token;
  // First: if the next line throws, a token without an entry does no harm.
  r.weights_of[token] = w.id();
  r.by_weights.insert_or_assign(
      w.id(), Held{token, w, scales, biases, std::make_shared<Copy>(bytes)});
  r.size = r.by_weights.size();
  return token;
}

void forget(uint64_t token) {
  Registry& r = registry();
  std::optional<Held> last;  // destroyed after the lock is released
  std::lock_guard lock(r.mutex);
  auto weights = r.weights_of.find(token);
  if (weights == r.weights_of.end()) {
    return;
  }
  auto found = r.by_weights.find(weights->second);
  if (found != r.by_weights.end() && found->second.token == token) {
    last = std::move(found->second);
    r.by_weights.erase(found);
  }
  r.weights_of.erase(weights);
  r.size = r.by_weights.size();
}

std::pair<size_t, size_t> bytes(uint64_t token) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  auto weights = r.weights_of.find(token);
  if (weights == r.weights_of.end()) {
    return {0, 0};
  }
  auto found = r.by_weights.find(weights->second);
  if (found == r.by_weights.end() || found->second.token != token) {
    return {0, 0};
  }
  Copy& copy = *found->second.copy;
  return {copy.bytes(), copy.made() ? copy.bytes() : 0};
}

std::shared_ptr<Copy> find(const mx::array& w,
                           const mx::array& scales,
                           const mx::array& biases) {
  Registry& r = registry();
  if (r.size == 0) {
    return nullptr;
  }
  std::lock_guard lock(r.mutex);
  auto found = r.by_weights.find(w.id());
  bool same = found != r.by_weights.end() &&
              found->second.scales.id() == scales.id() &&
              found->second.biases.id() == biases.id();
  return same ? found->second.copy : nullptr;
}

}  // namespace nibble::repack

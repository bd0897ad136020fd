#include "csrc/core/tuning.h"

#include <cstdint>
#include <utility>

namespace nibble {

Tuning::Key::Key(const MatmulProblem& p, bool int8_activations)
    : rows(row_class(p.M)), N(p.N), K(p.K), types(p), int8(int8_activations) {}

size_t Tuning::Hash::operator()(const Key& key) const {
  uint64_t hash = 0;
  for (int field : {key.rows,
                    key.N,
                    key.K,
                    static_cast<int>(key.types.dtype),
                    static_cast<int>(key.types.scale_dtype),
                    key.types.format.bits,
                    key.types.format.group_size,
                    static_cast<int>(key.types.format.mode),
                    static_cast<int>(key.int8)}) {
    // Knuth's multiplicative hash, field by field.
    hash = (hash ^ static_cast<uint64_t>(field)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return static_cast<size_t>(hash);
}

void Tuning::put(const MatmulProblem& problem, bool int8, std::string choice) {
  choices_.insert_or_assign(Key(problem, int8), std::move(choice));
}

std::string_view Tuning::find(const MatmulProblem& problem, bool int8) const {
  MatmulProblem p = merge_rows(problem);
  if (!p.transpose || p.batch.size > 1) {
    return {};
  }
  auto found = choices_.find(Key(p, int8));
  return found == choices_.end() ? std::string_view() : found->second;
}

}  // namespace nibble

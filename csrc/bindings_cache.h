// KV caches of mlx-lm, as its code leaves them between two tokens.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <utility>
#include <vector>

#include "csrc/mlx/fusion/record.h"

namespace nibble::python {

// A cache with room for one more token. Its attributes say of which kind it is:
// plain, quantized, rotating or of a batch, whatever its class. A recording
// compares what a token changes with the class's own code
// (acceleration/probe.py).
class Cache {
 public:
  // nullopt if the cache has other attributes, or no room.
  static std::optional<Cache> of(nanobind::handle cache);

  nanobind::handle type() const { return type_; }
  // The keys, then the values: one array each, or three of codes.
  const std::vector<mlx::core::array*>& arrays() const { return arrays_; }
  // The format of codes, and the number of rows that do not rotate.
  const std::vector<int>& settings() const { return settings_; }
  // The row that the next token takes, and the keys that it sees.
  int row() const { return row_; }
  int keys() const { return keys_; }

  record::Token token(const std::optional<mlx::core::array>& mask) const;
  // Sets the attributes as after a token, with these counters.
  void advance(const std::vector<mlx::core::array>& counters) const;

 private:
  friend nanobind::object token_of(nanobind::handle cache);

  struct Reader;
  // An array of a number for each sequence, and what a token adds to it.
  struct Counter {
    PyObject* name;
    mlx::core::array* array;
    int added;
  };

  nanobind::object type_, attributes_;
  std::vector<mlx::core::array*> arrays_;
  std::vector<int> settings_;
  int row_ = 0, keys_ = 0, position_ = 0;
  // Names and values after the token.
  std::vector<std::pair<PyObject*, int>> numbers_;
  bool rotates_ = false;  // `rotated` becomes true
  std::vector<Counter> counters_;
};

// For Python: (keys, {name: value after the token}, {name: number to add to an
// array}); None if of() returns nullopt.
nanobind::object token_of(nanobind::handle cache);

}  // namespace nibble::python

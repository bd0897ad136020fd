// The recordings of decoder blocks, and the call that replays them
// (acceleration/blocks.py).
#include <mlx/ops.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <list>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "csrc/bindings.h"
#include "csrc/bindings_cache.h"
#include "csrc/bindings_state.h"
#include "csrc/mlx/fusion/record.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

using python::Cache;

// The shape of a cache's array but for its room, and its type.
struct CacheForm {
  int batch, heads, width;
  mx::Dtype dtype;

  explicit CacheForm(const mx::array& a)
      : batch(a.shape(0)),
        heads(a.shape(1)),
        width(a.shape(3)),
        dtype(a.dtype()) {}
  bool operator==(const CacheForm&) const = default;
};

bool fits(const std::vector<CacheForm>& forms,
          const std::vector<mx::array*>& arrays) {
  return std::ranges::equal(
      forms, arrays, [](const CacheForm& form, const mx::array* a) {
        return form == CacheForm(*a);
      });
}

// The shape of a mask but for the keys, and its type.
struct MaskForm {
  mx::Shape shape;
  mx::Dtype dtype;

  explicit MaskForm(const mx::array& a)
      : shape(a.shape().begin(), a.shape().end() - 1), dtype(a.dtype()) {}
  bool operator==(const MaskForm&) const = default;
};

std::optional<MaskForm> form_of(const std::optional<mx::array>& mask) {
  return mask ? std::optional<MaskForm>(*mask) : std::nullopt;
}

// A state of a block and of its inputs, and what its code does with them.
struct Recording {
  State state;
  mx::Shape shape;  // of x
  mx::Dtype dtype;
  std::vector<CacheForm> caches;
  std::optional<MaskForm> mask;
  nb::object cache_type;
  std::vector<int> cache_settings;
  mx::Stream stream;
  std::shared_ptr<const Tape> tape;
};

// x, the position and the mask as holes, then y, the cache's arrays, and the
// cache as it was.
using Run = std::tuple<mx::array,
                       mx::array,
                       std::optional<mx::array>,
                       mx::array,
                       std::vector<mx::array>,
                       nb::object>;

// The recordings of all blocks of one class.
class Steps {
 public:
  // The block's output, with one node; None if its code has to run, False if it
  // may be recorded first.
  nb::object replay(nb::handle block,
                    const mx::array& x,
                    const std::optional<mx::array>& mask,
                    nb::handle cache) {
    auto to = x.ndim() == 3 && x.shape(1) == 1 && !x.is_tracer()
                  ? Cache::of(cache)
                  : std::nullopt;
    bool masks_fit = !mask || (to && mask->ndim() > 0 && !mask->is_tracer() &&
                               mask->shape(-1) == to->keys());
    if (!to || !masks_fit) {
      return nb::none();
    }
    mx::Stream stream = mx::default_stream(mx::default_device());
    if (stream.device != mx::Device::cpu) {
      return nb::none();
    }
    Call call{block, x, mask, *to, stream};
    auto last = last_.find(block.ptr());
    if (last != last_.end()) {
      if (auto y = replayed(*last->second, call)) {
        recordings_.splice(recordings_.begin(), recordings_, last->second);
        return nb::cast(*std::move(y));
      }
    }
    for (auto r = recordings_.begin(); r != recordings_.end(); ++r) {
      if (auto y = replayed(*r, call)) {
        last_[block.ptr()] = r;
        recordings_.splice(recordings_.begin(), recordings_, r);
        return nb::cast(*std::move(y));
      }
    }
    return attempts(block) < kMostAttempts ? nb::object(nb::bool_(false))
                                           : nb::none();
  }

  // Records a block whose code ran with holes, if all runs made the same.
  void record(nb::handle block,
              const mx::array& x,
              const std::optional<mx::array>& mask,
              nb::handle cache,
              const std::vector<Run>& runs,
              nb::list members) {
    auto to = Cache::of(cache);
    if (!to) {
      return;
    }
    Recording made{State(block, members),
                   x.shape(),
                   x.dtype(),
                   {},
                   form_of(mask),
                   nb::borrow(cache.type()),
                   to->settings(),
                   mx::default_stream(mx::default_device()),
                   nullptr};
    for (const mx::array* a : to->arrays()) {
      made.caches.emplace_back(*a);
    }
    auto arrays = made.state.arrays(block);
    made.tape = arrays ? tape_of(runs, *arrays) : nullptr;
    if (!made.tape || record::stream_of(*made.tape) != made.stream) {
      ++attempts(block);
      return;
    }
    made.state.keep_aliases(*arrays);
    recordings_.push_front(std::move(made));
    if (recordings_.size() > kMost) {
      auto oldest = std::prev(recordings_.end());
      std::erase_if(last_, [&](const auto& l) { return l.second == oldest; });
      recordings_.pop_back();
    }
  }

 private:
  // The most recordings of a class: states of the blocks of many models, on the
  // streams of many threads. Those used last are kept.
  static constexpr size_t kMost = 256;
  // A block may be recorded after a change.
  static constexpr int kMostAttempts = 8;

  // The failed attempts to record a block.
  int& attempts(nb::handle block) {
    Refused& refused = refused_[block.ptr()];
    // Another object may have the address of a block that is gone.
    if (!refused.block.is_valid() || !refused.block().is(block)) {
      refused = {nb::steal(PyWeakref_NewRef(block.ptr(), nullptr)), 0};
    }
    return refused.attempts;
  }

  struct Call {
    nb::handle block;
    const mx::array& x;
    const std::optional<mx::array>& mask;
    const Cache& cache;
    mx::Stream stream;
  };

  static std::optional<mx::array> replayed(const Recording& r, const Call& c) {
    bool same = r.shape == c.x.shape() && r.dtype == c.x.dtype() &&
                r.cache_type.is(c.cache.type()) && r.stream == c.stream &&
                r.cache_settings == c.cache.settings() &&
                r.mask == form_of(c.mask) && fits(r.caches, c.cache.arrays());
    auto arrays = same ? r.state.arrays(c.block) : std::nullopt;
    if (!arrays) {
      return std::nullopt;
    }
    record::Token token = c.cache.token(c.mask);
    mx::array y = record::replay(r.tape, c.x, token, *std::move(arrays));
    c.cache.advance(token.counters);
    return y;
  }

  static std::shared_ptr<const Tape> tape_of(
      const std::vector<Run>& runs, const std::vector<mx::array>& arrays) {
    std::shared_ptr<const Tape> first;
    for (const auto& [x, position, mask, y, caches, before] : runs) {
      auto cache = Cache::of(before);
      auto tape =
          cache
              ? record::tape(
                    {x, position, mask, y, caches, cache->row(), cache->keys()},
                    arrays)
              : nullptr;
      if (!tape || (first && !record::are_equivalent(*first, *tape))) {
        return nullptr;
      }
      first = first ? first : tape;
    }
    return first;
  }

  struct Refused {
    nb::object block;  // a weak reference
    int attempts = 0;
  };

  std::list<Recording> recordings_;  // those used last first
  // By the address of a block: where to look first, and failed attempts.
  std::unordered_map<PyObject*, std::list<Recording>::iterator> last_;
  std::unordered_map<PyObject*, Refused> refused_;
};

}  // namespace

void bind_steps(nb::module_& m) {
  nb::class_<Steps>(
      m, "Steps", "The recordings of decoder blocks of one class.")
      .def(nb::init<>())
      .def("replay",
           &Steps::replay,
           "block"_a,
           "x"_a,
           "mask"_a.none(),
           "cache"_a,
           "Add one token to a KV cache of mlx-lm, and return the output of a "
           "block, as one node. None if the block's code has to run, False if "
           "it has to, and may be recorded.")
      .def("record",
           &Steps::record,
           "block"_a,
           "x"_a,
           "mask"_a.none(),
           "cache"_a,
           "runs"_a,
           "members"_a,
           "Record what a block's code made of holes in some runs, for later "
           "calls with such arguments.");
  m.def("token_of",
        &python::token_of,
        "cache"_a,
        "Return the keys that a KV cache's next token sees, the attributes "
        "that the token changes in it, and the numbers it adds to arrays; None "
        "if no step takes the token.");
  m.def(
      "hole",
      [](const std::vector<int>& shape, mx::Dtype dtype) {
        return record::hole(mx::Shape(shape.begin(), shape.end()),
                            dtype,
                            mx::default_stream(mx::default_device()));
      },
      "shape"_a,
      "dtype"_a,
      "Return an array without a value, an input of Steps.record().");
}

}  // namespace nibble

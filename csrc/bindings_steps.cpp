// The recordings of decoder blocks, and the call that replays them
// (acceleration/blocks.py).
#include <mlx/ops.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <list>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "csrc/bindings.h"
#include "csrc/bindings_state.h"
#include "csrc/mlx/fusion/record.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

using python::array_in;
using python::attributes_of;
using python::find;
using python::interned;

// A KV cache of mlx-lm, as its code leaves it.
struct Cache {
  nb::object type;
  mx::array *keys = nullptr, *values = nullptr;
  int offset = 0;
  nb::object attributes;

  static std::optional<Cache> of(nb::handle cache) {
    static PyObject* const names[] = {
        interned("keys"), interned("values"), interned("offset")};
    Cache found;
    found.attributes = attributes_of(cache);
    if (!found.attributes.is_valid()) {
      return std::nullopt;
    }
    nb::handle keys = find(found.attributes, names[0]);
    nb::handle values = find(found.attributes, names[1]);
    nb::handle offset = find(found.attributes, names[2]);
    bool fits = keys.is_valid() && values.is_valid() && offset.is_valid() &&
                nb::len(found.attributes) == std::size(names) &&
                PyLong_CheckExact(offset.ptr());
    found.keys = array_in(keys);
    found.values = array_in(values);
    if (!fits || !found.keys || !found.values) {
      return std::nullopt;
    }
    found.type = nb::borrow(cache.type());
    found.offset = nb::cast<int>(offset);
    return found;
  }

  bool has_room() const {
    return offset > 0 && keys->ndim() == 4 && values->ndim() == 4 &&
           keys->shape(2) == values->shape(2) && offset < keys->shape(2) &&
           !keys->is_tracer() && !values->is_tracer();
  }

  void advance() const {
    static PyObject* const name = interned("offset");
    nb::object next = nb::int_(offset + 1);
    if (PyDict_SetItem(attributes.ptr(), name, next.ptr()) != 0) {
      nb::raise_python_error();
    }
  }
};

// The shape of a cache but for its room, and its type.
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

// A state of a block and of its inputs, and what its code does with them.
struct Recording {
  State state;
  mx::Shape shape;  // of x
  mx::Dtype dtype;
  CacheForm keys, values;
  nb::object cache_type;
  mx::Stream stream;
  std::shared_ptr<const Tape> tape;
};

// x and position as holes, then y and the caches of keys and values.
using Run = std::tuple<mx::array, mx::array, mx::array, mx::array, mx::array>;

// The recordings of all blocks of one class.
class Steps {
 public:
  // The block's output, with one node; None if its code has to run, False if it
  // may be recorded first.
  nb::object replay(nb::handle block, const mx::array& x, nb::handle cache) {
    auto to = x.ndim() == 3 && x.shape(1) == 1 && !x.is_tracer()
                  ? Cache::of(cache)
                  : std::nullopt;
    if (!to || !to->has_room()) {
      return nb::none();
    }
    mx::Stream stream = mx::default_stream(mx::default_device());
    if (stream.device != mx::Device::cpu) {
      return nb::none();
    }
    auto last = last_.find(block.ptr());
    if (last != last_.end()) {
      if (auto y = replayed(*last->second, block, x, *to, stream)) {
        recordings_.splice(recordings_.begin(), recordings_, last->second);
        return nb::cast(*std::move(y));
      }
    }
    for (auto r = recordings_.begin(); r != recordings_.end(); ++r) {
      if (auto y = replayed(*r, block, x, *to, stream)) {
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
              nb::handle cache,
              const std::vector<Run>& runs,
              nb::list members) {
    auto to = Cache::of(cache);
    if (!to || !to->has_room()) {
      return;
    }
    Recording made{State(block, members),
                   x.shape(),
                   x.dtype(),
                   CacheForm(*to->keys),
                   CacheForm(*to->values),
                   to->type,
                   mx::default_stream(mx::default_device()),
                   nullptr};
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

  std::optional<mx::array> replayed(const Recording& r,
                                    nb::handle block,
                                    const mx::array& x,
                                    const Cache& cache,
                                    const mx::Stream& stream) {
    bool fits = r.shape == x.shape() && r.dtype == x.dtype() &&
                r.cache_type.is(cache.type) && r.stream == stream &&
                r.keys == CacheForm(*cache.keys) &&
                r.values == CacheForm(*cache.values);
    auto arrays = fits ? r.state.arrays(block) : std::nullopt;
    if (!arrays) {
      return std::nullopt;
    }
    mx::array y = record::replay(r.tape,
                                 x,
                                 *cache.keys,
                                 *cache.values,
                                 cache.offset,
                                 *std::move(arrays));
    cache.advance();
    return y;
  }

  static std::shared_ptr<const Tape> tape_of(
      const std::vector<Run>& runs, const std::vector<mx::array>& arrays) {
    std::shared_ptr<const Tape> first;
    for (const Run& run : runs) {
      auto tape = std::apply(
          [&](const auto&... a) { return record::tape({a...}, arrays); }, run);
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
           "cache"_a,
           "Add one token to a KV cache of mlx-lm, and return the output of a "
           "block, as one node. None if the block's code has to run, False if "
           "it has to, and may be recorded.")
      .def("record",
           &Steps::record,
           "block"_a,
           "x"_a,
           "cache"_a,
           "runs"_a,
           "members"_a,
           "Record what a block's code made of holes in some runs, for later "
           "calls with such arguments.");
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

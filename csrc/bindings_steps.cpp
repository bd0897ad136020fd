// Recorded decoder blocks (acceleration/blocks.py): which state of a block's
// modules a recording is for, and the call that replays it.
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
#include "csrc/mlx/facts/symmetric.h"
#include "csrc/mlx/fusion/record.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

// A name that dictionaries find by its address.
PyObject* interned(const char* name) {
  return PyUnicode_InternFromString(name);
}

PyObject* find(nb::handle dict, PyObject* name) {
  PyObject* found = PyDict_GetItemWithError(dict.ptr(), name);
  if (!found && PyErr_Occurred()) {
    nb::raise_python_error();
  }
  return found;
}

// The array of a Python object; null for another object.
mx::array* array_in(nb::handle object) {
  static const nb::handle type = nb::type<mx::array>();
  return object.is_valid() && object.type().is(type)
             ? nb::inst_ptr<mx::array>(object)
             : nullptr;
}

nb::object attributes_of(nb::handle object) {
  PyObject* attributes = PyObject_GenericGetDict(object.ptr(), nullptr);
  if (!attributes) {
    nb::raise_python_error();
  }
  return nb::steal(attributes);
}

nb::object call_of(nb::handle type) {
  static PyObject* const name = interned("__call__");
  return nb::getattr(type, nb::handle(name), nb::none());
}

// True if code cannot tell these apart, as far as numbers and texts go. Other
// objects have to be the same.
bool are_alike(nb::handle a, nb::handle b) {
  if (a.is(b)) {
    return true;
  }
  PyTypeObject* type = Py_TYPE(a.ptr());
  bool comparable =
      type == &PyLong_Type || type == &PyFloat_Type || type == &PyUnicode_Type;
  return comparable && Py_TYPE(b.ptr()) == type &&
         PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ) == 1;
}

// The state of a block that its code may read: the tree of its modules with
// their classes, numbers and texts, and the forms of their arrays.
class State {
 public:
  // `kind` is the class whose code the block itself runs.
  State(nb::handle block, nb::handle kind) {
    nb::object type = nb::borrow(block.type());
    add(block);
    classes_.erase(std::ranges::find_if(
        classes_, [&](const Class& c) { return c.type.is(type); }));
    classes_.push_back({nb::borrow(kind), call_of(kind)});
  }

  // The arrays of a block in this state, as nodes take them; nullopt if it is
  // in another state.
  std::optional<std::vector<mx::array>> arrays(nb::handle block) const {
    for (const Class& c : classes_) {
      if (!call_of(c.type).is(c.call)) {
        return std::nullopt;
      }
    }
    std::vector<mx::array> found;
    found.reserve(parameters_.size());
    return matches(0, block, found) ? std::optional(std::move(found))
                                    : std::nullopt;
  }

 private:
  // A class of modules and its method, which may be patched.
  struct Class {
    nb::object type, call;
  };
  enum class Holds : uint8_t { kArray, kNode, kValue };
  struct Item {
    nb::object key;    // of a dict
    nb::object value;  // of kValue
    Holds holds = Holds::kValue;
    size_t index = 0;  // of the parameter or the node
  };
  // A module, a dict or a list.
  struct Node {
    nb::object type;
    std::vector<Item> items, attributes;
    bool is_module = false;
    int bits = 0;  // of a matrix that has biases
    bool is_symmetric = false;
  };

  // The attribute of modules that says what is trained.
  static bool is_for_training(nb::handle name) {
    static PyObject* const no_grad = interned("_no_grad");
    return name.ptr() == no_grad;
  }

  Item item(nb::handle value) {
    Item made;
    if (const mx::array* array = array_in(value)) {
      made.holds = Holds::kArray;
      made.index = parameters_.size();
      parameters_.emplace_back(*array);
    } else if (PyDict_Check(value.ptr()) || PyList_Check(value.ptr())) {
      made.holds = Holds::kNode;
      made.index = add(value);
    } else {
      made.value = nb::borrow(value);
    }
    return made;
  }

  size_t add(nb::handle object) {
    size_t index = nodes_.size();
    nodes_.emplace_back();
    Node node;
    node.type = nb::borrow(object.type());
    if (PyList_Check(object.ptr())) {
      for (nb::handle value : nb::borrow<nb::list>(object)) {
        node.items.push_back(item(value));
      }
    } else {
      for (auto [key, value] : nb::borrow<nb::dict>(object)) {
        node.items.push_back(item(value));
        node.items.back().key = nb::borrow(key);
      }
      node.is_module = !PyDict_CheckExact(object.ptr());
    }
    if (node.is_module) {
      add_module(object, node);
    }
    nodes_[index] = std::move(node);
    return index;
  }

  void add_module(nb::handle module, Node& node) {
    nb::object attributes = attributes_of(module);
    for (auto [key, value] : nb::borrow<nb::dict>(attributes)) {
      Item made;
      made.key = nb::borrow(key);
      made.value = nb::borrow(value);
      node.attributes.push_back(std::move(made));
    }
    bool seen = std::ranges::any_of(
        classes_, [&](const Class& c) { return c.type.is(node.type); });
    if (!seen) {
      classes_.push_back({node.type, call_of(node.type)});
    }
    static PyObject* const names[] = {
        interned("scales"), interned("biases"), interned("bits")};
    const mx::array* scales = array_in(find(module, names[0]));
    const mx::array* biases = array_in(find(module, names[1]));
    nb::handle bits = find(attributes, names[2]);
    if (scales && biases && bits.is_valid() && PyLong_Check(bits.ptr())) {
      node.bits = nb::cast<int>(bits);
      node.is_symmetric = symmetric::known(*scales, *biases, node.bits);
    }
  }

  bool matches(size_t index,
               nb::handle object,
               std::vector<mx::array>& found) const {
    const Node& node = nodes_[index];
    if (!object.type().is(node.type) ||
        (node.is_module && !attributes_match(node, object))) {
      return false;
    }
    Arrays arrays;
    if (PyList_Check(object.ptr())) {
      if (PyList_Size(object.ptr()) != Py_ssize_t(node.items.size())) {
        return false;
      }
      for (size_t i = 0; i < node.items.size(); ++i) {
        PyObject* value = PyList_GetItem(object.ptr(), Py_ssize_t(i));
        if (!value || !item_matches(node.items[i], value, arrays, found)) {
          return false;
        }
      }
      return true;
    }
    // In the order in which they were set, as they always are.
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t at = 0;
    for (const Item& item : node.items) {
      if (!PyDict_Next(object.ptr(), &at, &key, &value) ||
          !are_alike(item.key, key) ||
          !item_matches(item, value, arrays, found)) {
        return false;
      }
    }
    return !PyDict_Next(object.ptr(), &at, &key, &value) &&
           (node.bits == 0 ||
            (arrays.scales && arrays.biases &&
             symmetric::known(*arrays.scales, *arrays.biases, node.bits) ==
                 node.is_symmetric));
  }

  // A module's arrays, as far as they are checked.
  struct Arrays {
    const void* packed = nullptr;  // the memory of its repacked matrix
    const mx::array *scales = nullptr, *biases = nullptr;
  };

  bool item_matches(const Item& item,
                    nb::handle value,
                    Arrays& arrays,
                    std::vector<mx::array>& found) const {
    switch (item.holds) {
      case Holds::kValue:
        return are_alike(item.value, value);
      case Holds::kNode:
        return matches(item.index, value, found);
      case Holds::kArray:
        break;
    }
    const mx::array* now = array_in(value);
    const record::Parameter& parameter = parameters_[item.index];
    auto resolved = now ? parameter.resolved(*now) : std::nullopt;
    if (!resolved) {
      return false;
    }
    static PyObject* const scales = interned("scales");
    static PyObject* const biases = interned("biases");
    if (item.key.ptr() == scales) {
      arrays.scales = now;
    } else if (item.key.ptr() == biases) {
      arrays.biases = now;
    }
    if (parameter.is_packed()) {
      // All repacked arrays of a module are of one matrix.
      const void* memory = resolved->data_shared_ptr().get();
      if (arrays.packed && memory != arrays.packed) {
        return false;
      }
      arrays.packed = memory;
    }
    found.push_back(*std::move(resolved));
    return true;
  }

  static bool attributes_match(const Node& node, nb::handle module) {
    nb::object attributes = attributes_of(module);
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t at = 0;
    for (const Item& item : node.attributes) {
      if (!PyDict_Next(attributes.ptr(), &at, &key, &value) ||
          !are_alike(item.key, key) ||
          !(is_for_training(key) || are_alike(item.value, value))) {
        return false;
      }
    }
    return !PyDict_Next(attributes.ptr(), &at, &key, &value);
  }

  std::vector<Class> classes_;
  std::vector<Node> nodes_;  // the block's own first
  std::vector<record::Parameter> parameters_;
};

// A KV cache of mlx-lm, as its code leaves it.
struct Cache {
  nb::object update;  // the method that adds tokens
  mx::array *keys = nullptr, *values = nullptr;
  int offset = 0;
  nb::object attributes;

  static std::optional<Cache> of(nb::handle cache) {
    static PyObject* const names[] = {
        interned("keys"), interned("values"), interned("offset")};
    static PyObject* const update = interned("update_and_fetch");
    Cache found;
    found.attributes = attributes_of(cache);
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
    found.update = nb::getattr(cache.type(), nb::handle(update));
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
  nb::object update;
  mx::Stream stream;
  std::shared_ptr<const Tape> tape;
};

// x and position as holes, then y and the caches of keys and values.
using Run = std::tuple<mx::array, mx::array, mx::array, mx::array, mx::array>;

// The recordings of all blocks of one class.
class Steps {
 public:
  explicit Steps(nb::object kind) : kind_(std::move(kind)) {}

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
        return nb::cast(*std::move(y));
      }
    }
    for (auto r = recordings_.begin(); r != recordings_.end(); ++r) {
      if (auto y = replayed(*r, block, x, *to, stream)) {
        last_[block.ptr()] = r;
        return nb::cast(*std::move(y));
      }
    }
    auto refused = refused_.find(block.ptr());
    bool may_be_recorded =
        recordings_.size() < kMost &&
        (refused == refused_.end() || refused->second < kMostAttempts);
    return may_be_recorded ? nb::object(nb::bool_(false)) : nb::none();
  }

  // Records a block whose code ran with holes, if all runs made the same.
  void record(nb::handle block,
              const mx::array& x,
              nb::handle cache,
              const std::vector<Run>& runs) {
    auto to = Cache::of(cache);
    if (!to || !to->has_room()) {
      return;
    }
    Recording made{State(block, kind_),
                   x.shape(),
                   x.dtype(),
                   CacheForm(*to->keys),
                   CacheForm(*to->values),
                   to->update,
                   mx::default_stream(mx::default_device()),
                   nullptr};
    auto arrays = made.state.arrays(block);
    made.tape = arrays ? tape_of(runs, *arrays) : nullptr;
    if (made.tape && record::stream_of(*made.tape) == made.stream) {
      recordings_.push_back(std::move(made));
    } else {
      ++refused_[block.ptr()];
    }
  }

 private:
  // The most recordings of a class: states of the blocks of many models.
  static constexpr size_t kMost = 256;
  // A block may be recorded after a change.
  static constexpr int kMostAttempts = 8;

  std::optional<mx::array> replayed(const Recording& r,
                                    nb::handle block,
                                    const mx::array& x,
                                    const Cache& cache,
                                    const mx::Stream& stream) {
    bool fits = r.shape == x.shape() && r.dtype == x.dtype() &&
                r.update.is(cache.update) && r.stream == stream &&
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

  nb::object kind_;
  std::list<Recording> recordings_;
  // By the address of a block: where to look first, and failed attempts.
  std::unordered_map<PyObject*, std::list<Recording>::iterator> last_;
  std::unordered_map<PyObject*, int> refused_;
};

}  // namespace

void bind_steps(nb::module_& m) {
  nb::class_<Steps>(
      m, "Steps", "The recordings of decoder blocks of one class.")
      .def(nb::init<nb::object>(), "kind"_a)
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

#include "csrc/bindings_cache.h"

#include <algorithm>

#include "csrc/bindings_state.h"
#include "mlx/dtype.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace nibble::python {
namespace {

struct Names {
  PyObject *keys = interned("keys"), *values = interned("values"),
           *offset = interned("offset"), *_offset = interned("_offset"),
           *_idx = interned("_idx"), *max_size = interned("max_size"),
           *keep = interned("keep"), *rotated = interned("rotated"),
           *left_padding = interned("left_padding"),
           *_lengths = interned("_lengths"),
           *_right_padding = interned("_right_padding"),
           *group_size = interned("group_size"), *bits = interned("bits");
};

const Names& names() {
  static const Names& all = *new Names;
  return all;
}

// Appends an array, or all of a tuple or list. Returns whether they are arrays.
bool append(nb::handle object, std::vector<mx::array*>& arrays) {
  if (mx::array* one = array_in(object)) {
    arrays.push_back(one);
    return true;
  }
  bool many = object.is_valid() && (PyTuple_CheckExact(object.ptr()) ||
                                    PyList_CheckExact(object.ptr()));
  for (size_t i = 0; many && i < nb::len(object); ++i) {
    arrays.push_back(array_in(object[i]));
    many = arrays.back() != nullptr;
  }
  return many;
}

}  // namespace

// Reads attributes, and counts those that it found.
struct Cache::Reader {
  nb::handle attributes;
  size_t found = 0;

  nb::handle get(PyObject* name) {
    nb::handle value = find(attributes, name);
    found += value.is_valid();
    return value;
  }

  std::optional<int> number(PyObject* name) {
    nb::handle value = get(name);
    bool is_number = value.is_valid() && PyLong_CheckExact(value.ptr());
    return is_number ? std::optional(nb::cast<int>(value)) : std::nullopt;
  }

  // True unless there is a value that is not None.
  bool is_none(PyObject* name) {
    nb::handle value = get(name);
    return !value.is_valid() || value.is_none();
  }
};

std::optional<Cache> Cache::of(nb::handle cache) {
  Cache made;
  made.attributes_ = attributes_of(cache);
  if (!made.attributes_.is_valid()) {
    return std::nullopt;
  }
  made.type_ = nb::borrow(cache.type());
  Reader read{made.attributes_};
  const Names& n = names();
  bool fits = append(read.get(n.keys), made.arrays_) &&
              append(read.get(n.values), made.arrays_) &&
              read.is_none(n._lengths) && read.is_none(n._right_padding);
  auto is_cache = [&](const mx::array* a) {
    const mx::array& first = *made.arrays_[0];
    return a->ndim() == 4 && a->shape(2) == first.shape(2) && !a->is_tracer();
  };
  if (!fits || !std::ranges::all_of(made.arrays_, is_cache)) {
    return std::nullopt;
  }
  auto is_counter = [&](const mx::array* a) {
    return a && a->ndim() == 1 && a->dtype() == mx::int32 &&
           a->shape(0) == made.arrays_[0]->shape(0) && !a->is_tracer();
  };

  // The tokens so far, and the row after the last one's.
  auto idx = read.number(n._idx), all = read.number(n._offset);
  nb::handle offset = read.get(n.offset);
  if (is_counter(array_in(offset))) {
    made.counters_.push_back({n.offset, array_in(offset), 1});
    all = all ? all : idx;
  } else if (offset.is_valid() && PyLong_CheckExact(offset.ptr()) && !all) {
    all = made.position_ = nb::cast<int>(offset);
    made.numbers_.emplace_back(n.offset, *all + 1);
  } else {
    return std::nullopt;
  }
  int room = made.arrays_[0]->shape(2);
  made.row_ = idx.value_or(all.value_or(-1));
  for (PyObject* name : {n.group_size, n.bits, n.keep}) {
    made.settings_.push_back(read.number(name).value_or(0));
  }
  auto window = read.number(n.max_size);
  nb::handle rotated = read.get(n.rotated);
  if (window) {
    bool grows = *all >= room && room < *window;
    if (grows || room > *window) {
      return std::nullopt;
    }
    if (made.row_ == *window) {
      made.row_ = made.settings_.back();
      made.rotates_ = rotated.is_valid();
    }
  }
  made.keys_ = all ? std::min(*all + 1, room) : 0;
  if (!all || *all <= 0 || made.row_ < 0 || made.row_ >= made.keys_ ||
      (!window && made.row_ != *all)) {
    return std::nullopt;
  }
  if (idx) {
    made.numbers_.emplace_back(n._idx, made.row_ + 1);
  }
  if (find(read.attributes, n._offset)) {
    made.numbers_.emplace_back(n._offset, *all + 1);
  }
  nb::handle padding = read.get(n.left_padding);
  if (made.rotates_ || rotated.is(Py_True)) {
    made.counters_.push_back({n.left_padding, array_in(padding), -1});
  }
  bool known = read.found == nb::len(made.attributes_) &&
               std::ranges::all_of(made.counters_, [&](const Counter& c) {
                 return is_counter(c.array);
               });
  return known ? std::optional(std::move(made)) : std::nullopt;
}

record::Token Cache::token(const std::optional<mx::array>& mask) const {
  record::Token token{.caches = arrays_,
                      .mask = mask,
                      .row = row_,
                      .keys = keys_,
                      .position = position_};
  for (const Counter& counter : counters_) {
    token.counters.push_back(*counter.array);
    token.counted.push_back(counter.added);
  }
  return token;
}

void Cache::advance(const std::vector<mx::array>& counters) const {
  auto set = [&](PyObject* name, nb::object value) {
    if (PyDict_SetItem(attributes_.ptr(), name, value.ptr()) != 0) {
      nb::raise_python_error();
    }
  };
  for (auto [name, value] : numbers_) {
    set(name, nb::int_(value));
  }
  if (rotates_) {
    set(names().rotated, nb::bool_(true));
  }
  for (size_t i = 0; i < counters_.size(); ++i) {
    if (counters_[i].added > 0) {
      set(counters_[i].name, nb::cast(counters[i]));
    } else {  // mlx-lm's code subtracts in place
      counters_[i].array->overwrite_descriptor(counters[i]);
    }
  }
}

nb::object token_of(nb::handle cache) {
  auto found = Cache::of(cache);
  if (!found) {
    return nb::none();
  }
  nb::dict numbers, added;
  for (auto [name, value] : found->numbers_) {
    numbers[nb::handle(name)] = value;
  }
  if (found->rotates_) {
    numbers[nb::handle(names().rotated)] = true;
  }
  for (const Cache::Counter& counter : found->counters_) {
    added[nb::handle(counter.name)] = counter.added;
  }
  return nb::make_tuple(found->keys_, numbers, added);
}

}  // namespace nibble::python

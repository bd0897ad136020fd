#include "csrc/bindings_state.h"

#include <unordered_map>

#include "csrc/mlx/facts/symmetric.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace nibble {
namespace python {

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

mx::array* array_in(nb::handle object) {
  static const nb::handle type = nb::type<mx::array>();
  return object.is_valid() && object.type().is(type)
             ? nb::inst_ptr<mx::array>(object)
             : nullptr;
}

nb::object attributes_of(nb::handle object) {
  PyObject* attributes = PyObject_GenericGetDict(object.ptr(), nullptr);
  if (!attributes) {
    PyErr_Clear();
  }
  return nb::steal(attributes);
}

}  // namespace python

namespace {

using python::array_in;
using python::attributes_of;
using python::find;
using python::interned;

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

// The attribute of modules that says what is trained.
bool is_for_training(nb::handle name) {
  static PyObject* const no_grad = interned("_no_grad");
  return name.ptr() == no_grad;
}

}  // namespace

State::State(nb::handle block, nb::handle members) {
  for (nb::handle member : members) {
    members_.push_back(
        {nb::object(member[0]), nb::object(member[1]), nb::object(member[2])});
  }
  add(block);
}

std::optional<std::vector<mx::array>> State::arrays(nb::handle block) const {
  std::vector<mx::array> found;
  found.reserve(parameters_.size());
  bool fits = matches(0, block, found) && members_match();
  for (auto [one, other] : aliases_) {
    fits = fits && found[one].id() == found[other].id();
  }
  return fits ? std::optional(std::move(found)) : std::nullopt;
}

void State::keep_aliases(const std::vector<mx::array>& arrays) {
  std::unordered_map<std::uintptr_t, size_t> seen;
  for (size_t i = 0; i < arrays.size(); ++i) {
    auto [first, is_new] = seen.emplace(arrays[i].id(), i);
    if (!is_new) {
      aliases_.emplace_back(first->second, i);
    }
  }
}

bool State::members_match() const {
  for (const Member& m : members_) {
    bool same = PyDict_Check(m.owner.ptr())
                    ? find(m.owner, m.name.ptr()) == m.value.ptr()
                    : nb::getattr(m.owner, m.name, nb::none()).is(m.value);
    if (!same) {
      return false;
    }
  }
  return true;
}

State::Item State::item(nb::handle value) {
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

size_t State::add(nb::handle object) {
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

void State::add_module(nb::handle module, Node& node) {
  nb::object attributes = attributes_of(module);
  for (auto [key, value] : nb::borrow<nb::dict>(attributes)) {
    Item made;
    made.key = nb::borrow(key);
    made.value = nb::borrow(value);
    node.attributes.push_back(std::move(made));
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

bool State::matches(size_t index,
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

bool State::item_matches(const Item& item,
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

bool State::attributes_match(const Node& node, nb::handle module) {
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

}  // namespace nibble

// The state of a block that a recording is for (acceleration/blocks.py).
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <utility>
#include <vector>

#include "csrc/mlx/fusion/record.h"

namespace nibble {

namespace python {

// A name that dictionaries find by its address.
PyObject* interned(const char* name);
// The value of a key; null without it.
PyObject* find(nanobind::handle dict, PyObject* name);
// The array of a Python object; null for another object.
mlx::core::array* array_in(nanobind::handle object);
// The __dict__ of an object; an invalid object if it has none.
nanobind::object attributes_of(nanobind::handle object);

}  // namespace python

// All that a block's code may read: the tree of its modules with their classes,
// numbers and texts, the forms of their arrays, and the functions it reaches.
class State {
 public:
  // `members` are (class or globals, name, value), which must stay.
  State(nanobind::handle block, nanobind::handle members);

  // The arrays of a block in this state, as nodes take them; nullopt if it is
  // in another state.
  std::optional<std::vector<mlx::core::array>> arrays(
      nanobind::handle block) const;

  // A recording knows arrays by identity. Where it saw one array twice,
  // arrays() asks for one from now on.
  void keep_aliases(const std::vector<mlx::core::array>& arrays);

 private:
  struct Member {
    nanobind::object owner, name, value;
  };
  enum class Holds : uint8_t { kArray, kNode, kValue };
  struct Item {
    nanobind::object key;    // of a dict
    nanobind::object value;  // of kValue
    Holds holds = Holds::kValue;
    size_t index = 0;  // of the parameter or the node
  };
  // A module, a dict or a list.
  struct Node {
    nanobind::object type;
    std::vector<Item> items, attributes;
    bool is_module = false;
    int bits = 0;  // of a matrix that has biases
    bool is_symmetric = false;
  };
  // A module's arrays, as far as they are checked.
  struct Arrays {
    const void* packed = nullptr;  // the memory of its repacked matrix
    const mlx::core::array *scales = nullptr, *biases = nullptr;
  };

  Item item(nanobind::handle value);
  size_t add(nanobind::handle object);
  static void add_module(nanobind::handle module, Node& node);

  bool members_match() const;
  bool matches(size_t index,
               nanobind::handle object,
               std::vector<mlx::core::array>& found) const;
  bool item_matches(const Item& item,
                    nanobind::handle value,
                    Arrays& arrays,
                    std::vector<mlx::core::array>& found) const;
  static bool attributes_match(const Node& node, nanobind::handle module);

  std::vector<Member> members_;
  std::vector<Node> nodes_;  // the block's own first
  std::vector<record::Parameter> parameters_;
  std::vector<std::pair<size_t, size_t>> aliases_;  // of parameters
};

}  // namespace nibble

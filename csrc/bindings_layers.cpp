// Layers of the Python package in one call each. A layer is a dict of its
// arrays, whose attributes are the format. Reading both here takes a third of
// the time of passing each as an argument.
#include <mlx/ops.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <optional>
#include <string>

#include "csrc/bindings.h"
#include "csrc/mlx/ops.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

// A name that dictionaries find by its address.
PyObject* interned(const char* name) {
  return PyUnicode_InternFromString(name);
}

// Converts the value that a layer has under a name.
template <typename T>
T cast(nb::handle value, PyObject* name) {
  try {
    return nb::cast<T>(value);
  } catch (const nb::cast_error&) {
    std::string text = "[quantized_matmul] A layer's " +
                       nb::cast<std::string>(nb::handle(name)) +
                       " must have another type than " +
                       nb::cast<std::string>(nb::str(value.type())) + ".";
    throw nb::type_error(text.c_str());
  }
}

const mx::array* find(nb::handle layer, PyObject* name) {
  PyObject* found = PyDict_GetItemWithError(layer.ptr(), name);
  if (!found || found == Py_None) {
    if (PyErr_Occurred()) {
      nb::raise_python_error();
    }
    return nullptr;
  }
  return &cast<const mx::array&>(nb::handle(found), name);
}

const mx::array& get(nb::handle layer, PyObject* name) {
  const mx::array* found = find(layer, name);
  if (!found) {
    PyErr_SetObject(PyExc_KeyError, name);
    nb::raise_python_error();
  }
  return *found;
}

std::optional<mx::array> maybe(const mx::array* a) {
  return a ? std::optional(*a) : std::nullopt;
}

template <typename T>
T attribute(nb::handle layer, PyObject* name) {
  return cast<T>(nb::getattr(layer, nb::handle(name)), name);
}

ops::QuantArgs args_of(nb::handle layer) {
  static PyObject* const group_size = interned("group_size");
  static PyObject* const bits = interned("bits");
  static PyObject* const mode = interned("mode");
  return {attribute<std::optional<int>>(layer, group_size),
          attribute<std::optional<int>>(layer, bits),
          attribute<std::string>(layer, mode)};
}

mx::array linear(const nb::dict& layer,
                 const mx::array& x,
                 const ops::MatmulOptions& options,
                 mx::StreamOrDevice s) {
  static PyObject* const weight = interned("weight");
  static PyObject* const scales = interned("scales");
  static PyObject* const biases = interned("biases");
  static PyObject* const bias = interned("bias");
  const mx::array* addend = find(layer, bias);
  bool fused = addend && addend->dtype() == x.dtype();
  mx::array y = ops::quantized_matmul(
      x,
      {get(layer, weight), get(layer, scales), maybe(find(layer, biases))},
      true,
      args_of(layer),
      options,
      {fused ? std::optional(*addend) : std::nullopt, std::nullopt},
      s);
  return addend && !fused ? mx::add(y, *addend, s) : y;
}

}  // namespace

void bind_layers(nb::module_& m) {
  if (!nb::type<ops::MatmulOptions>().is_valid()) {
    nb::class_<ops::MatmulOptions>(
        m, "MatmulOptions", "The options of a layer's products.")
        .def(
            "__init__",
            [](ops::MatmulOptions* self,
               int activation_bits,
               bool batch_invariant,
               int tuning) {
              new (self) ops::MatmulOptions{
                  .activations = activations_of(activation_bits),
                  .batch_invariant = batch_invariant,
                  .tuning = tuning};
            },
            "activation_bits"_a,
            "batch_invariant"_a,
            "tuning"_a);
  }
  m.def("linear",
        &linear,
        "layer"_a,
        "x"_a,
        "options"_a,
        "stream"_a = nb::none(),
        "Compute x @ w_hat.T + bias with the arrays and the format of a layer. "
        "See mlx_nibble.nn.QuantizedLinear.");
}

}  // namespace nibble

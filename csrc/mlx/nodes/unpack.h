// The arrays of a packed matrix (facts/repack.h) in MLX's layout, as nodes.
#pragma once

#include <utility>
#include <vector>

#include "csrc/mlx/facts/repack.h"
#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// One array. It has no inputs. Any thread may evaluate it, so it computes on
// that thread and not on a stream of the thread that built it.
class Unpack : public mx::Primitive {
 public:
  explicit Unpack(repack::Part part);
  ~Unpack() override { repack::leave(this); }

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;

  const char* name() const override { return "NibbleUnpack"; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  repack::Part part_;
};

// Rows of one array of a matrix [N, K]. Input {rows}: int32 of any shape.
class UnpackRows : public mx::Primitive {
 public:
  UnpackRows(mx::Stream stream, repack::Part part)
      : Primitive(stream), part_(std::move(part)) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs,
      const std::vector<int>& axes) override;
  const char* name() const override { return "NibbleUnpackRows"; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  repack::Part part_;
};

namespace repack {

// A matrix with lazy arrays of its own in the place of those that pack() made.
// A graph must not hold these: another thread may evaluate them meanwhile, and
// MLX does not let two threads evaluate one array.
ops::QuantizedArrays own_arrays(const ops::QuantizedArrays& q);

// The inputs of a node with lazy arrays in the place of the stand-ins of the
// matrix at inputs[first], if it has stand-ins.
std::vector<mx::array> unpacked(std::vector<mx::array> inputs, int first);

}  // namespace repack
}  // namespace nibble

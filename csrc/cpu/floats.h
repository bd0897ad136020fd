// Arrays of fp32 that the kernels read and write.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace nibble::cpu {

struct FreeFloats {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;

// Has room for one more vector, as the kernels need. Much memory lies in large
// pages (pages.h), where products of 256 rows take 0.9 times as long (4 bits,
// two cores of a virtual Xeon). Throws std::bad_alloc.
Floats make_floats(size_t count);

}  // namespace nibble::cpu

// SIMT_ENTRY for CUDA; entry.h describes it.
#pragma once

#include "simt/metal.h"

namespace simt {

struct Bindings {
  ulong buffers[32];
};

template <class Parameter>
struct Address;
template <class T>
struct Address<T*> {
  static T* at(ulong p) { return (T*)p; }
};
template <class T>
struct Address<T&> {
  static T& at(ulong p) { return *(T*)p; }
};

template <int i>
struct buffer {
  template <class P>
  static P get(const Bindings& all) {
    return Address<P>::at(all.buffers[i]);
  }
};

extern __shared__ uint4 shared_memory[];

template <int i>
struct threadgroup_memory {
  static_assert(i == 0, "CUDA has one dynamic shared memory");
  template <class P>
  static P get(const Bindings&) {
    return (P)shared_memory;
  }
};

template <class P>
struct Position {
  static P of(uint x, uint, uint) { return P(x); }
};
template <class T>
struct Position<metal::vec<T, 2>> {
  static metal::vec<T, 2> of(uint x, uint y, uint) { return {T(x), T(y)}; }
};
template <class T>
struct Position<metal::vec<T, 3>> {
  static metal::vec<T, 3> of(uint x, uint y, uint z) {
    return {T(x), T(y), T(z)};
  }
};

#define SIMT_BIND_3(name, i)                    \
  struct name {                                 \
    template <class P>                          \
    static P get(const Bindings&) {             \
      return Position<P>::of(i(x), i(y), i(z)); \
    }                                           \
  };
#define SIMT_GROUP(d) blockIdx.d
#define SIMT_THREAD(d) threadIdx.d
#define SIMT_GRID(d) blockIdx.d* blockDim.d + threadIdx.d
#define SIMT_SIZE(d) blockDim.d
#define SIMT_GROUPS(d) gridDim.d
#define SIMT_THREADS(d) gridDim.d* blockDim.d
SIMT_BIND_3(threadgroup_position_in_grid, SIMT_GROUP)
SIMT_BIND_3(thread_position_in_threadgroup, SIMT_THREAD)
SIMT_BIND_3(thread_position_in_grid, SIMT_GRID)
SIMT_BIND_3(threads_per_threadgroup, SIMT_SIZE)
SIMT_BIND_3(threadgroups_per_grid, SIMT_GROUPS)
SIMT_BIND_3(threads_per_grid, SIMT_THREADS)
#undef SIMT_BIND_3

#define SIMT_BIND_1(name, value)    \
  struct name {                     \
    template <class P>              \
    static P get(const Bindings&) { \
      return P(value);              \
    }                               \
  };
SIMT_BIND_1(thread_index_in_threadgroup, rt::thread_index())
SIMT_BIND_1(simdgroup_index_in_threadgroup, rt::thread_index() / 32)
SIMT_BIND_1(thread_index_in_simdgroup, rt::lane())
SIMT_BIND_1(quadgroup_index_in_threadgroup, rt::thread_index() / 4)
SIMT_BIND_1(thread_index_in_quadgroup, rt::lane() % 4)
#undef SIMT_BIND_1

template <class... Binders>
struct List {};

template <auto function, class... Binders, class... Parameters>
inline void call(List<Binders...>,
                 void (*)(Parameters...),
                 const Bindings& all) {
  function(Binders::template get<Parameters>(all)...);
}

}  // namespace simt

#define SIMT_ENTRY(name, function, ...)                             \
  extern "C" __global__ void simt_cuda_##name(                      \
      const __grid_constant__ simt::Bindings all) {                 \
    simt::call<function>(simt::List<__VA_ARGS__>{}, function, all); \
  }

#define SIMT_TYPE(...) __VA_ARGS__
#define SIMT_THREADGROUP_VARIABLE(site, T, name, dimensions) \
  __shared__ T name dimensions

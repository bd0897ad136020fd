// Makes a kernel a function that the executor can call. The translator
// (../source.py) reads a kernel's attributes and writes, with one binder for
// each parameter in order:
//
//   SIMT_ENTRY(host_name, &nibble::contiguous<ushort>,
//              simt::buffer<0>, ..., simt::thread_index_in_simdgroup)
#pragma once

#include "simt/metal.h"

namespace simt {

// Addresses by index: 32 [[buffer(i)]], then 8 [[threadgroup(i)]].
using Bindings = __global const ulong*;
constexpr int kBuffers = 32;

template <class Parameter>
struct Address;
template <class T>
struct Address<__global T*> {
  static __global T* at(ulong p) { return (__global T*)p; }
};
template <class T>
struct Address<__constant T*> {
  static __constant T* at(ulong p) { return (__constant T*)p; }
};
template <class T>
struct Address<__local T*> {
  static __local T* at(ulong p) { return (__local T*)p; }
};
template <class T>
struct Address<__global T&> {
  static __global T& at(ulong p) { return *(__global T*)p; }
};
template <class T>
struct Address<__constant T&> {
  static __constant T& at(ulong p) { return *(__constant T*)p; }
};

template <int i>
struct buffer {
  template <class P>
  static P get(Bindings all) {
    return Address<P>::at(all[i]);
  }
};
template <int i>
struct threadgroup_memory {
  template <class P>
  static P get(Bindings all) {
    return Address<P>::at(all[kBuffers + i]);
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

#define SIMT_BIND_3(name, at_i)                                               \
  struct name {                                                               \
    static uint at(__global const SimtThreadIds* ids, int i) { return at_i; } \
    template <class P>                                                        \
    static P get(Bindings) {                                                  \
      auto ids = simt_ids();                                                  \
      return Position<P>::of(at(ids, 0), at(ids, 1), at(ids, 2));             \
    }                                                                         \
  };
SIMT_BIND_3(threadgroup_position_in_grid, ids->group_in_grid[i])
SIMT_BIND_3(thread_position_in_threadgroup, ids->thread_in_group[i])
SIMT_BIND_3(thread_position_in_grid,
            ids->group_in_grid[i] * ids->group_size[i] +
                ids->thread_in_group[i])
SIMT_BIND_3(threads_per_threadgroup, ids->group_size[i])
SIMT_BIND_3(threadgroups_per_grid, ids->grid_size[i])
SIMT_BIND_3(threads_per_grid, ids->grid_size[i] * ids->group_size[i])
#undef SIMT_BIND_3

#define SIMT_BIND_1(name, value) \
  struct name {                  \
    template <class P>           \
    static P get(Bindings) {     \
      auto ids = simt_ids();     \
      return P(value);           \
    }                            \
  };
SIMT_BIND_1(thread_index_in_threadgroup, ids->index)
SIMT_BIND_1(simdgroup_index_in_threadgroup, ids->simdgroup)
SIMT_BIND_1(thread_index_in_simdgroup, ids->lane)
SIMT_BIND_1(quadgroup_index_in_threadgroup, ids->index / 4)
SIMT_BIND_1(thread_index_in_quadgroup, ids->lane % 4)
SIMT_BIND_1(simdgroups_per_threadgroup, (ids->threads + 31) / 32)
SIMT_BIND_1(threads_per_simdgroup, 32)
#undef SIMT_BIND_1

template <class... Binders>
struct List {};

template <class... Binders, class... Parameters>
inline void call(List<Binders...>, void (*f)(Parameters...), Bindings all) {
  static_assert(sizeof...(Binders) == sizeof...(Parameters),
                "every parameter of a kernel needs an attribute");
  f(Binders::template get<Parameters>(all)...);
}

}  // namespace simt

// The label keeps an entry distinct from a kernel of the same name.
#define SIMT_ENTRY(name, function, ...)                                     \
  extern "C" __attribute__((visibility("default"))) void simt_entry_##name( \
      simt::Bindings all) __asm__(#name);                                   \
  extern "C" void simt_entry_##name(simt::Bindings all) {                   \
    simt::call(simt::List<__VA_ARGS__>{}, function, all);                   \
  }

// `threadgroup T name[n];` inside a function, as the translator writes it.
#define SIMT_THREADGROUP_VARIABLE(site, T, name, dimensions)    \
  using simt_type_of_##name = T dimensions;                     \
  __local simt_type_of_##name& name =                           \
      *(__local simt_type_of_##name*)simt_threadgroup_variable( \
          #name, site, sizeof(simt_type_of_##name))
// A type with commas in it, as one argument of the macro above.
#define SIMT_TYPE(...) __VA_ARGS__

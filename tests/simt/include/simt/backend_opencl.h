// The CPU, through clang's C++ for OpenCL: the compiler checks address spaces
// as types, and the object file is ordinary x86 code. The executor
// (../executor) defines the functions declared here.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable

using int8_t = signed char;
using uint8_t = unsigned char;
using uchar = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using ushort = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using uint = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using ulong = unsigned long;
using size_t = unsigned long;
// `half` is the compiler's own type.

#define device __global
#define threadgroup __local
#define thread __private
#define constant __constant const
#define kernel

#define SIMT_DEVICE
#define SIMT_ANY_SPACE __generic
#define SIMT_STATIC_CONST __constant
#define SIMT_EACH_SPACE(f) f(__global) f(__local) f(__constant) f(__private)
#define SIMT_BUILTIN(name) __builtin_##name##f
#define SIMT_COPY __builtin_memcpy

// The place of a call in the kernel's text. Default arguments take the line of
// the caller.
#define SIMT_SITE \
  int line = __builtin_LINE(), const __constant char *file = __builtin_FILE()
#define SIMT_AT line, file

// Mirrors of ../executor/runtime.h.
extern "C" {
struct SimtThreadIds {
  uint32_t lane, simdgroup, index, threads;
  uint32_t thread_in_group[3], group_in_grid[3], group_size[3], grid_size[3];
};
__global const SimtThreadIds* simt_ids();
void simt_threadgroup_barrier(uint32_t flags,
                              int line,
                              const __constant char* file);
void simt_simdgroup_barrier(uint32_t flags,
                            int line,
                            const __constant char* file);
__global const uint8_t* simt_exchange(const __private void* value,
                                      uint32_t bytes,
                                      uint32_t op,
                                      int line,
                                      const __constant char* file);
__local void* simt_threadgroup_variable(const __constant char* name,
                                        int site,
                                        uint32_t bytes);
}

namespace rt {

// Operations that the executor counts apart; ../executor/runtime.h.
// kFixed: a shuffle that Apple GPUs have one instruction for.
enum Op : uint32_t { kShuffle = 1, kReduce = 2, kMatrix = 3, kFixed = 5 };

constexpr uint32_t kSlotBytes = 16;

inline int lane() {
  return static_cast<int>(simt_ids()->lane);
}

inline void threadgroup_barrier(uint32_t flags, SIMT_SITE) {
  simt_threadgroup_barrier(flags, SIMT_AT);
}
inline void simdgroup_barrier(uint32_t flags, SIMT_SITE) {
  simt_simdgroup_barrier(flags, SIMT_AT);
}

template <typename T>
inline T slot(__global const uint8_t* slots, int lane) {
  return *(__global const T*)(slots + kSlotBytes * (lane & 31));
}

#ifdef SIMT_REGISTERS
// For the study of the compiler's code alone (../../build.py): values that
// lanes exchange stay in registers, as on a GPU.
template <typename T, Op, typename From>
inline T exchange(T value, From, SIMT_SITE) {
  uint32_t words[(sizeof(T) + 3) / 4] = {};
  __builtin_memcpy(words, &value, sizeof(T));
#pragma clang loop unroll(full)
  for (uint32_t i = 0; i < (sizeof(T) + 3) / 4; ++i) {
    asm volatile("" : "+r"(words[i]));
  }
  __builtin_memcpy((__private void*)&value, words, sizeof(T));
  return value;
}

template <typename T>
inline T sum(T value, SIMT_SITE) {
  return exchange<T, kReduce>(value, [](int) { return 0; });
}

inline void multiply_add_8x8(float a0,
                             float a1,
                             float b0,
                             float b1,
                             __private float& d0,
                             __private float& d1,
                             int,
                             int,
                             SIMT_SITE) {
  float low = d0, high = d1;
  asm volatile("" : "+x"(low), "+x"(high) : "x"(a0), "x"(a1), "x"(b0), "x"(b1));
  d0 = low;
  d1 = high;
}
#else
template <typename T, Op op, typename From>
SIMT_HARDWARE T exchange(T value, From from, SIMT_SITE) {
  static_assert(sizeof(T) <= kSlotBytes, "a slot holds 16 bytes");
  auto slots = simt_exchange(&value, sizeof(T), op, SIMT_AT);
  return slot<T>(slots, from(lane()));
}

// The order of the hardware's sum is not documented; a tree is the most likely.
template <typename T>
SIMT_HARDWARE T sum(T value, SIMT_SITE) {
  auto slots = simt_exchange(&value, sizeof(T), kReduce, SIMT_AT);
  T all[32];
  for (int i = 0; i < 32; ++i) {
    all[i] = slot<T>(slots, i);
  }
  for (int half_way = 16; half_way > 0; half_way /= 2) {
    for (int i = 0; i < half_way; ++i) {
      all[i] = T(all[i] + all[i + half_way]);
    }
  }
  return all[0];
}

// d += a @ b for 8x8 matrices. Each lane holds two neighbours of a row, by
// fragment_row() and fragment_column() of simdgroup_matrix.h.
inline void multiply_add_8x8(float a0,
                             float a1,
                             float b0,
                             float b1,
                             __private float& d0,
                             __private float& d1,
                             int row,
                             int column,
                             SIMT_SITE) {
  float mine[4] = {a0, a1, b0, b1};
  auto held = (__global const float*)simt_exchange(
      mine, sizeof(mine), kMatrix, SIMT_AT);
  auto lane_of = [](int r, int c) {
    return (r & 4) << 2 | (r & 3) << 1 | (c & 4) << 1 | (c & 2) >> 1;
  };
  for (int k = 0; k < 8; ++k) {
    float a = held[4 * lane_of(row, k) + (k & 1)];
    int b = 4 * lane_of(k, column);
    d0 += a * held[b + 2];
    d1 += a * held[b + 3];
  }
}
#endif

}  // namespace rt

// The C interface of the shared library. Compiled kernels call the first part,
// as
// ../include/simt/backend_opencl.h declares it. Python calls the second part
// from
// ../executor.py.
#pragma once

#include <cstdint>

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

// ---- called by kernels ----------------------------------------------------

struct SimtThreadIds {
  uint32_t lane;       // in the simdgroup
  uint32_t simdgroup;  // in the threadgroup
  uint32_t index;      // of the thread in the threadgroup
  uint32_t threads;    // of the threadgroup
  uint32_t thread_in_group[3];
  uint32_t group_in_grid[3];
  uint32_t group_size[3];
  uint32_t grid_size[3];
};

SIMT_EXPORT const SimtThreadIds* simt_ids();

// `flags` are Metal's mem_flags: 1 device, 2 threadgroup.
SIMT_EXPORT void simt_threadgroup_barrier(uint32_t flags,
                                          int line,
                                          const char* file);
SIMT_EXPORT void simt_simdgroup_barrier(uint32_t flags,
                                        int line,
                                        const char* file);

// Waits until every lane of the simdgroup has called it from the same place.
// Returns 32 slots of 16 bytes with the lanes' values.
SIMT_EXPORT const uint8_t* simt_exchange(
    const void* value, uint32_t bytes, uint32_t op, int line, const char* file);

// Returns the variable declared at `site`, the same for all threads.
SIMT_EXPORT void* simt_threadgroup_variable(const char* name,
                                            int site,
                                            uint32_t bytes);

// ---- called by Python -----------------------------------------------------

using SimtEntry = void (*)(const uint64_t* bindings);

constexpr int kSimtBuffers = 32;

struct SimtBuffer {
  const char* name;
  void* data;  // copied in, and out again if writable
  uint64_t bytes;
  uint32_t writable;
  uint32_t alignment;  // of its first byte: 16 or a smaller power of two
};

enum SimtFlags : uint32_t {
  // Lanes that have returned or never existed may miss a simdgroup operation.
  kSimtPartialSimdgroups = 1,
  // The kernel was compiled with -fsanitize=thread: watch its accesses.
  kSimtInstrumented = 2,
  // Unordered writes of the same value to the same place are no race.
  kSimtRedundantWrites = 4,
};

struct SimtDispatch {
  const char* kernel;
  SimtEntry entry;
  const SimtBuffer* buffers;
  uint32_t buffer_count;
  uint32_t threadgroup_bytes;  // of [[threadgroup(0)]]
  uint32_t grid[3];            // threadgroups
  uint32_t threads[3];         // of one threadgroup
  uint32_t max_threads;        // the device's limits
  uint32_t max_threadgroup_bytes;
  uint32_t flags;
  uint64_t seed;  // of the order in which threads run
};

// Runs a dispatch. Returns a JSON object {"findings": [...], "counters": {...}}
// that stays valid until the next call. A correct dispatch has no findings.
SIMT_EXPORT const char* simt_dispatch(const SimtDispatch* dispatch);

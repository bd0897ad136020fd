// Each kernel breaks one rule of memory that only the instrumented build checks. A
// mark shows the place that the message must name. 128 threads, four simdgroups.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void missing_barrier(device const float* a [[buffer(0)]],
                                device float* out [[buffer(1)]],
                                threadgroup float* shared [[threadgroup(0)]],
                                uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = a[tid];  // here
  out[tid] = shared[127 - tid];
}

[[kernel]] void barrier_of_the_wrong_memory(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    threadgroup float* shared [[threadgroup(0)]],
    uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = a[tid];
  threadgroup_barrier(mem_flags::mem_device);
  out[tid] = shared[127 - tid];  // here
}

[[kernel]] void barrier_of_no_memory(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    threadgroup float* shared [[threadgroup(0)]],
    uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = a[tid];
  threadgroup_barrier(mem_flags::mem_none);
  out[tid] = shared[127 - tid];  // here
}

// Orders the lanes of a simdgroup only; thread 127 - tid is in another.
[[kernel]] void barrier_of_the_wrong_scope(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    threadgroup float* shared [[threadgroup(0)]],
    uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = a[tid];  // here
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[tid] = shared[127 - tid];
}

// A shuffle synchronizes lanes, but does not order memory.
[[kernel]] void shuffle_is_no_barrier(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    threadgroup float* shared [[threadgroup(0)]],
    uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = a[tid];
  float one = simd_shuffle_xor(1.0f, 1);
  out[tid] = one * shared[tid ^ 1];  // here
}

// The second round writes while others still read the values of the first.
[[kernel]] void reuses_memory_too_early(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    threadgroup float* shared [[threadgroup(0)]],
    uint tid [[thread_index_in_threadgroup]]) {
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    shared[tid] = a[tid];  // here
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += shared[127 - tid];
  }
  out[tid] = sum;
}

[[kernel]] void reads_what_nobody_wrote(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    threadgroup float* shared [[threadgroup(0)]],
    uint tid [[thread_index_in_threadgroup]]) {
  if (tid != 5) {
    shared[tid] = a[tid];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[tid] = shared[tid];  // here
}

[[kernel]] void accumulates_onto_nothing(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] += a[tid];  // here
}

[[kernel]] void two_threads_one_output(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = a[tid];
  out[tid / 2] = a[tid];  // here
}

// Two threadgroups run it, and nothing orders them.
[[kernel]] void two_threadgroups_one_output(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = a[tid];  // here
}

// Metal does not define it, but all write one value, which an option allows.
[[kernel]] void one_value_by_many_threads(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = a[tid];
  out[0] = a[0];  // here
}

// Past the end, but inside memory that alignment leaves accessible.
[[kernel]] void reads_one_past_an_odd_end(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    device const char* odd [[buffer(2)]],
    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = a[tid] + float(odd[tid % 14]);  // here
}

[[kernel]] void correct_rounds(device const float* a [[buffer(0)]],
                               device float* out [[buffer(1)]],
                               threadgroup float* shared [[threadgroup(0)]],
                               uint tid [[thread_index_in_threadgroup]]) {
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    shared[tid] = a[tid];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += shared[127 - tid];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  out[tid] = sum;
}

[[kernel]] void correct_neighbours(device const float* a [[buffer(0)]],
                                   device float* out [[buffer(1)]],
                                   threadgroup float* shared [[threadgroup(0)]],
                                   uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = a[tid];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[tid] = shared[tid ^ 1];
}

// Accesses to neighbouring bytes do not race.
[[kernel]] void correct_bytes(device const float* a [[buffer(0)]],
                              device float* out [[buffer(1)]],
                              threadgroup uchar* shared [[threadgroup(0)]],
                              uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = uchar(a[tid]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[tid] = float(shared[127 - tid]);
}

// Each quad reversed, and the value of its second lane.
[[kernel]] void correct_quads(const device float* a [[buffer(0)]],
                              device float* out [[buffer(1)]],
                              uint i [[thread_index_in_threadgroup]]) {
  const float reversed = quad_shuffle(a[i], ushort(3 - i % 4));
  out[i] = reversed + 1000.0f * quad_broadcast(a[i], 1);
}

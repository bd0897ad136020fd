// Each kernel breaks one rule that every build of the bench checks. A mark shows the
// place that the message must name.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void divergent_barrier(device const float* a [[buffer(0)]],
                                  device float* out [[buffer(1)]],
                                  uint tid [[thread_index_in_threadgroup]]) {
  if (tid < 64) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // here
  } else {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  out[tid] = a[tid];
}

[[kernel]] void barrier_in_a_branch(device const float* a [[buffer(0)]],
                                    device float* out [[buffer(1)]],
                                    uint tid [[thread_index_in_threadgroup]]) {
  if (tid < 64) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // here
  }
  out[tid] = a[tid];
}

[[kernel]] void exit_before_barrier(device const float* a [[buffer(0)]],
                                    device float* out [[buffer(1)]],
                                    uint tid [[thread_index_in_threadgroup]]) {
  if (tid >= 100) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // here
  out[tid] = a[tid];
}

[[kernel]] void divergent_simd_operation(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  float v = a[tid];
  if (tid & 1) {
    v = simd_sum(v);
  } else {
    v = simd_max(v);
  }
  out[tid] = v;
}

[[kernel]] void exit_before_simd_operation(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = 0.0f;
  if (tid >= 100) return;
  out[tid] = simd_sum(a[tid]);  // here
}

[[kernel]] void reads_past_the_end(device const float* a [[buffer(0)]],
                                   device float* out [[buffer(1)]],
                                   uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = a[tid + 1];  // here
}

[[kernel]] void writes_before_the_start(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = a[tid];
  if (tid == 0) {
    *(out - 1) = 0.0f;
  }
}

[[kernel]] void writes_to_its_input(device const float* a [[buffer(0)]],
                                    device float* out [[buffer(1)]],
                                    uint tid [[thread_index_in_threadgroup]]) {
  out[tid] = a[tid];
  ((device float*)a)[tid] = 0.0f;  // here
}

[[kernel]] void overruns_threadgroup_memory(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    threadgroup float* shared [[threadgroup(0)]],
    uint tid [[thread_index_in_threadgroup]]) {
  shared[tid + 1] = a[tid];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[tid] = shared[tid];
}

[[kernel]] void misaligned_vector(device const float* a [[buffer(0)]],
                                  device float* out [[buffer(1)]],
                                  uint tid [[thread_index_in_threadgroup]]) {
  float4 v = *(device const float4*)(a + tid % 16);  // here
  out[tid] = v.x + v.w;
}

[[kernel]] void leaves_outputs_unwritten(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  if (tid != 77) {
    out[tid] = a[tid];
  }
}

[[kernel]] void too_much_threadgroup_memory(
    device const float* a [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint tid [[thread_index_in_threadgroup]]) {
  threadgroup float big[8193];
  big[tid] = a[tid];
  out[tid] = big[tid];
}

[[kernel]] void too_much_stack(device const float* a [[buffer(0)]],
                                  device float* out [[buffer(1)]],
                                  uint tid [[thread_index_in_threadgroup]]) {
  float big[1 << 17];
  for (int i = 0; i < (1 << 17); ++i) {
    big[i] = a[(tid + i) % 128];  // here
  }
  simdgroup_barrier(mem_flags::mem_none);
  out[tid] = big[int(a[tid])];
}

[[kernel]] void correct(device const float* a [[buffer(0)]],
                        device float* out [[buffer(1)]],
                        threadgroup float* shared [[threadgroup(0)]],
                        uint tid [[thread_index_in_threadgroup]]) {
  shared[tid] = a[tid];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[tid] = shared[127 - tid];
}

// Products of the tensor cores of compute capability 9.0 (wgmma): 128 threads
// multiply, and go on while the tensor cores compute.
#pragma once

#include "kernels/cuda/types.h"

namespace nibble {

// Describes a matrix in shared memory to the tensor cores. A row is 128 bytes,
// eight rows take 1024, and 16 bytes are swizzled as in a box of a TensorMap.
NIBBLE_DEVICE unsigned long long descriptor(uint32 address) {
  return (address & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// Orders the registers of sums before the products that follow.
NIBBLE_DEVICE void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// The products since the last commit are a group; all but the last `groups`
// groups are waited for.
NIBBLE_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int groups>
NIBBLE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}

#define NIBBLE_SUMS4(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define NIBBLE_SUMS16(i)                                     \
  NIBBLE_SUMS4(i), NIBBLE_SUMS4(i + 4), NIBBLE_SUMS4(i + 8), \
      NIBBLE_SUMS4(i + 12)
#define NIBBLE_SUMS64(i)                                          \
  NIBBLE_SUMS16(i), NIBBLE_SUMS16(i + 16), NIBBLE_SUMS16(i + 32), \
      NIBBLE_SUMS16(i + 48)
#define NIBBLE_WGMMA256(type)                                                 \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type   \
               " "                                                            \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "                    \
               "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "           \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "           \
               "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "           \
               "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "           \
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "           \
               "%60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "           \
               "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
               "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, "           \
               "%90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "           \
               "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, " \
               "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, " \
               "%120, %121, %122, %123, %124, %125, %126, %127}, "            \
               "{%128, %129, %130, %131}, %132, 1, 1, 1, 0;"                  \
               : NIBBLE_SUMS64(0), NIBBLE_SUMS64(64)                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define NIBBLE_WGMMA128(type)                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " "                                                          \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "                  \
               "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "         \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "         \
               "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "         \
               "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "         \
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "         \
               "%60, %61, %62, %63}, "                                      \
               "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"                     \
               : NIBBLE_SUMS64(0)                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d += a @ b^T for a [64, 16] in registers and b [256, 16] or [128, 16]. A lane
// has two rows of the 16 of its warp: l / 4, and eight below. a[0] and a[2] are
// the columns 2 * (l % 4) and 8 more of the first, a[1] and a[3] of the other.
// d[4 * j] and the next are columns 8 * j + 2 * (l % 4) of the first.
template <typename T>
NIBBLE_DEVICE void wgmma(float (&d)[128],
                         const uint32 (&a)[4],
                         unsigned long long b) {
  if constexpr (T::kWide) {
    NIBBLE_WGMMA256("bf16");
  } else {
    NIBBLE_WGMMA256("f16");
  }
}
template <typename T>
NIBBLE_DEVICE void wgmma(float (&d)[64],
                         const uint32 (&a)[4],
                         unsigned long long b) {
  if constexpr (T::kWide) {
    NIBBLE_WGMMA128("bf16");
  } else {
    NIBBLE_WGMMA128("f16");
  }
}

#undef NIBBLE_WGMMA128
#undef NIBBLE_WGMMA256
#undef NIBBLE_SUMS64
#undef NIBBLE_SUMS16
#undef NIBBLE_SUMS4

// A barrier in shared memory. Its phases are numbered 0, 1, 0, ...
NIBBLE_DEVICE void barrier_begin(uint32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier),
               "r"(arrivals));
}
NIBBLE_DEVICE void barrier_arrive(uint32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier)
               : "memory");
}
NIBBLE_DEVICE void barrier_wait(uint32 barrier, int phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n"
      "}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
// Makes barriers that begin now visible to copies.
NIBBLE_DEVICE void barriers_begun() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// CUtensorMap: a matrix in global memory, and the box that a copy takes of it.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};
// Arrives at a barrier, which then also waits for `bytes` of copies.
NIBBLE_DEVICE void barrier_expect(uint32 barrier, uint32 bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
      "r"(bytes)
      : "memory");
}
// Starts the copy of the box at this column and row. It has zeros where the
// matrix ends, and tells the barrier.
NIBBLE_DEVICE void copy_box(
    uint32 to, const TensorMap& from, int column, int row, uint32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile"
      ".mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&from),
      "r"(column),
      "r"(row),
      "r"(barrier)
      : "memory");
}

// The registers of each thread of this warpgroup, from now on.
template <int registers>
NIBBLE_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
NIBBLE_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

}  // namespace nibble

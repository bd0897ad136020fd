// Products of the tensor cores of compute capability 9.0 (wgmma): 128 threads
// multiply matrices in shared memory, and go on while the tensor core computes.
#pragma once

#include "kernels/cuda/types.h"

namespace nibble {

// The rows of a matrix in shared memory are 64 numbers, 128 bytes, long. The
// 16 bytes `chunk` of a row are stored elsewhere, so that eight rows of a
// column lie in different banks.
NIBBLE_DEVICE uint32 swizzled(int row, int chunk) {
  return uint32(row * 128 + (chunk ^ row % 8) * 16);
}

// What the tensor core must know of a matrix of such rows: where it begins,
// that eight rows take 1024 bytes, and how they are swizzled.
NIBBLE_DEVICE unsigned long long descriptor(uint32 address) {
  return (address & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// Orders the registers of sums before the products that follow.
NIBBLE_DEVICE void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// The products since the last commit are a group; all but the last `kGroups`
// groups are waited for.
NIBBLE_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kGroups>
NIBBLE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Makes what this thread wrote to shared memory visible to the tensor core.
NIBBLE_DEVICE void fence_for_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Starts a copy to shared memory: `bytes`, and zeros up to kBytes.
template <int kBytes>
NIBBLE_DEVICE void copy_ahead(uint32 to, const void* from, int bytes) {
  const size_t address = __cvta_generic_to_global(from);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(address),
                 "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to),
                 "l"(address),
                 "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
}
NIBBLE_DEVICE void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroups>
NIBBLE_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#define NIBBLE_SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define NIBBLE_SUMS16(i) \
  NIBBLE_SUMS4(i), NIBBLE_SUMS4(i + 4), NIBBLE_SUMS4(i + 8), NIBBLE_SUMS4(i + 12)
#define NIBBLE_SUMS32(i) NIBBLE_SUMS16(i), NIBBLE_SUMS16(i + 16)
#define NIBBLE_SUMS64(i) NIBBLE_SUMS32(i), NIBBLE_SUMS32(i + 32)
#define NIBBLE_SUMS128(i) NIBBLE_SUMS64(i), NIBBLE_SUMS64(i + 64)

#define NIBBLE_WGMMA64(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, " \
               "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, " \
               "%26, %27, %28, %29, %30, %31" \
               "}, %32, %33, 1, 1, 1, 0, 0;" \
               : NIBBLE_SUMS32(0) \
               : "l"(a), "l"(b))
#define NIBBLE_WGMMA128(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, " \
               "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, " \
               "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
               "%62, %63" \
               "}, %64, %65, 1, 1, 1, 0, 0;" \
               : NIBBLE_SUMS64(0) \
               : "l"(a), "l"(b))
#define NIBBLE_WGMMA256(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, " \
               "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, " \
               "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
               "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, " \
               "%74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
               "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, " \
               "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, " \
               "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, " \
               "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
               "}, %128, %129, 1, 1, 1, 0, 0;" \
               : NIBBLE_SUMS128(0) \
               : "l"(a), "l"(b))

// d += a @ b^T for a [64, 16] and b [kColumns, 16]. Thread 32 * w + l has rows
// 16 * w + l / 4 and eight more of columns 8 * j + l % 4 * 2 and the next:
// d[4 * j] to d[4 * j + 3], row by row.
template <int kColumns, bool kBFloat16>
NIBBLE_DEVICE void wgmma(float (&d)[kColumns / 2],
                         unsigned long long a,
                         unsigned long long b) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 256);
  if constexpr (kColumns == 64 && kBFloat16) {
    NIBBLE_WGMMA64("bf16");
  } else if constexpr (kColumns == 64) {
    NIBBLE_WGMMA64("f16");
  } else if constexpr (kColumns == 128 && kBFloat16) {
    NIBBLE_WGMMA128("bf16");
  } else if constexpr (kColumns == 128) {
    NIBBLE_WGMMA128("f16");
  } else if constexpr (kColumns == 256 && kBFloat16) {
    NIBBLE_WGMMA256("bf16");
  } else if constexpr (kColumns == 256) {
    NIBBLE_WGMMA256("f16");
  }
}

#undef NIBBLE_WGMMA64
#undef NIBBLE_WGMMA128
#undef NIBBLE_WGMMA256
#undef NIBBLE_SUMS4
#undef NIBBLE_SUMS16
#undef NIBBLE_SUMS32
#undef NIBBLE_SUMS64
#undef NIBBLE_SUMS128

}  // namespace nibble

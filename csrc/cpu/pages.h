// The pages that memory lies in.
#pragma once

#include <cstddef>

namespace nibble::cpu {

// Asks the system for large pages in a range that is not written yet. Virtual
// machines look addresses up twice, so small pages can cost more than the
// memory itself: two cores of an Intel Xeon in one read 9 GB/s from pages of
// 4 KB and 36 GB/s from pages of 2 MB. Linux only.
void want_large_pages(void* begin, size_t bytes);

// Moves the large pages that a range lies in together: memory of this process
// that was written, and its neighbours in these pages. Others may use it
// meanwhile. A page of 2 MB takes 0.6 ms, and 3 us if it is one already (a
// virtual machine on an Intel Xeon). Linux 6.1 or later only.
void move_to_large_pages(const void* begin, size_t bytes);

// Gives whole pages of a range back to the system. Nobody may read it again
// before it is written. Linux only.
void discard(void* begin, size_t bytes);

}  // namespace nibble::cpu

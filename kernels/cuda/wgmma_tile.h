// The sizes of cuda_qmm_wgmma, for the kernel and the planner.
#pragma once

// Columns of y of a block of threads, columns of w in a step, rows of x that
// are copied together, and bytes of shared memory for steps.
#define NIBBLE_WGMMA_COLUMNS 128
#define NIBBLE_WGMMA_STEP 64
#define NIBBLE_WGMMA_BOX_ROWS 64
#define NIBBLE_WGMMA_STAGE_BYTES (6 * (256 * 128 + 128 * 32))
// One group of 128 threads copies, and each pair of groups multiplies.
#define NIBBLE_WGMMA_THREADS(pairs) (128 + 256 * (pairs))

# The CPU backend. The same kernels are compiled once for each instruction set of
# the target's architecture, and one is chosen at run time.
find_package(Threads REQUIRED)
add_library(nibble_cpu STATIC
  csrc/cpu/attention.cpp
  csrc/cpu/attention_gradient.cpp
  csrc/cpu/cache_rows.cpp
  csrc/cpu/dense.cpp
  csrc/cpu/floats.cpp
  csrc/cpu/gather.cpp
  csrc/cpu/gather_dense.cpp
  csrc/cpu/gradient.cpp
  csrc/cpu/isa.cpp
  csrc/cpu/layers.cpp
  csrc/cpu/matmul.cpp
  csrc/cpu/packed.cpp
  csrc/cpu/pages.cpp
  csrc/cpu/peak.cpp
  csrc/cpu/recurrence.cpp
  csrc/cpu/rotations.cpp
  csrc/cpu/rows.cpp
  csrc/cpu/thread_pool.cpp)
target_link_libraries(nibble_cpu PUBLIC nibble_core PRIVATE Threads::Threads)

# wheel_macos.py --quick sets -O0: the kernels take most of the time of a compiler.
set(NIBBLE_KERNEL_OPTIONS "" CACHE STRING "Options of the CPU's kernels alone")

# Adds csrc/cpu/FILE.cpp, compiled with these options.
function(add_kernels file)
  set(source csrc/cpu/${file}.cpp)
  target_sources(nibble_cpu PRIVATE ${source})
  set_source_files_properties(${source} PROPERTIES
    COMPILE_OPTIONS "${ARGN};${NIBBLE_KERNEL_OPTIONS}")
endfunction()

add_kernels(kernels_scalar)
add_kernels(layers_scalar)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
      -mprefer-vector-width=512)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's AVX-512 headers pass an undefined register where it is not read.
    list(APPEND avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  add_kernels(kernels_avx2 ${avx2})
  add_kernels(kernels_avx2_vnni ${avx2} -mavxvnni)
  add_kernels(kernels_avx512 ${avx512})
  add_kernels(kernels_avx512_vnni ${avx512} -mavx512vnni)
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag("-mamx-tile -mamx-int8" NIBBLE_HAS_AMX)
  if(NIBBLE_HAS_AMX)
    add_kernels(kernels_amx ${avx512} -mavx512vnni -mamx-tile -mamx-int8)
    target_compile_definitions(nibble_cpu PRIVATE NIBBLE_HAS_AMX)
  endif()
  set(amx_bfloat -mamx-bf16 -mavx512vbmi -mavx512fp16)
  list(JOIN amx_bfloat " " flags)
  check_cxx_compiler_flag("-mamx-tile ${flags}" NIBBLE_HAS_AMX_BFLOAT)
  if(NIBBLE_HAS_AMX AND NIBBLE_HAS_AMX_BFLOAT)
    add_kernels(kernels_amx_bfloat ${avx512} -mavx512vnni -mamx-tile -mamx-int8
      ${amx_bfloat})
    target_compile_definitions(nibble_cpu PRIVATE NIBBLE_HAS_AMX_BFLOAT)
  endif()
  add_kernels(layers_avx2 ${avx2})
  add_kernels(layers_avx512 ${avx512})
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  # zig's clang spells architectures differently.
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag(-march=armv8.2-a+dotprod+i8mm NIBBLE_HAS_MARCH)
  if(NIBBLE_HAS_MARCH)
    set(armv8_2 -march=armv8.2-a)
  else()
    set(armv8_2 -mcpu=generic+v8_2a)
  endif()
  add_kernels(kernels_neon)
  add_kernels(kernels_neon_dotprod ${armv8_2}+dotprod)
  add_kernels(kernels_neon_i8mm ${armv8_2}+dotprod+i8mm)
  add_kernels(layers_neon)
endif()

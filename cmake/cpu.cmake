# The CPU backend: the same kernels compiled once for each instruction set of
# the target's architecture, chosen at run time.
find_package(Threads REQUIRED)
add_library(nibble_cpu STATIC
  csrc/cpu/attention.cpp
  csrc/cpu/isa.cpp
  csrc/cpu/kernels_scalar.cpp
  csrc/cpu/layers.cpp
  csrc/cpu/layers_scalar.cpp
  csrc/cpu/matmul.cpp
  csrc/cpu/thread_pool.cpp)
target_link_libraries(nibble_cpu PUBLIC nibble_core PRIVATE Threads::Threads)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_sources(nibble_cpu PRIVATE
    csrc/cpu/kernels_avx2.cpp
    csrc/cpu/kernels_avx512.cpp
    csrc/cpu/layers_avx2.cpp
    csrc/cpu/layers_avx512.cpp)
  set(avx2 "-mavx2;-mfma;-mf16c")
  set_source_files_properties(
    csrc/cpu/kernels_avx2.cpp csrc/cpu/layers_avx2.cpp
    PROPERTIES COMPILE_OPTIONS "${avx2}")
  set_source_files_properties(
    csrc/cpu/kernels_avx512.cpp csrc/cpu/layers_avx512.cpp
    PROPERTIES COMPILE_OPTIONS
    "${avx2};-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mprefer-vector-width=512")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's own AVX-512 headers pass an undefined register where none is read.
    set_property(SOURCE
      csrc/cpu/kernels_avx512.cpp csrc/cpu/layers_avx512.cpp APPEND
      PROPERTY COMPILE_OPTIONS -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
endif()

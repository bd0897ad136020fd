# The CPU backend: the same kernels compiled once for each instruction set of
# the target's architecture, chosen at run time.
find_package(Threads REQUIRED)
add_library(nibble_cpu STATIC
  csrc/cpu/attention.cpp
  csrc/cpu/isa.cpp
  csrc/cpu/kernels_scalar.cpp
  csrc/cpu/layers.cpp
  csrc/cpu/matmul.cpp
  csrc/cpu/thread_pool.cpp)
target_link_libraries(nibble_cpu PUBLIC nibble_core PRIVATE Threads::Threads)

# kernels_ISA.cpp, compiled with these options.
function(add_kernels isa)
  set(source csrc/cpu/kernels_${isa}.cpp)
  target_sources(nibble_cpu PRIVATE ${source})
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${ARGN}")
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's own AVX-512 headers pass an undefined register where none is read.
    list(APPEND avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  add_kernels(avx2 ${avx2})
  add_kernels(avx2_vnni ${avx2} -mavxvnni)
  add_kernels(avx512 ${avx512} -mprefer-vector-width=512)
  add_kernels(avx512_vnni ${avx512} -mavx512vnni -mprefer-vector-width=512)
endif()

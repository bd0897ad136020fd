# The CPU backend: one file per instruction set, chosen at run time.
find_package(Threads REQUIRED)
add_library(nibble_cpu STATIC
  csrc/cpu/matmul.cpp)
target_link_libraries(nibble_cpu PUBLIC nibble_core PRIVATE Threads::Threads)

# The layers that know MLX, and the one Python extension that links them all.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
include(cmake/mlx.cmake)

execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE
  OUTPUT_VARIABLE nanobind_ROOT)
find_package(nanobind CONFIG REQUIRED)

include(cmake/metal.cmake)

# mlx: arrays, ops, primitives.
add_library(nibble_mlx STATIC
  csrc/mlx/attention.cpp
  csrc/mlx/bench.cpp
  csrc/mlx/bridge.cpp
  csrc/mlx/cpu_task.cpp
  csrc/mlx/dequantize.cpp
  csrc/mlx/evaluation.cpp
  csrc/mlx/fast_primitives.cpp
  csrc/mlx/gather_ops.cpp
  csrc/mlx/gather_qmm.cpp
  csrc/mlx/heads.cpp
  csrc/mlx/joint.cpp
  csrc/mlx/log_sum_exp.cpp
  csrc/mlx/norms.cpp
  csrc/mlx/ops.cpp
  csrc/mlx/quantized_matmul.cpp
  csrc/mlx/repack.cpp
  csrc/mlx/residual_norm.cpp
  csrc/mlx/rope.cpp
  csrc/mlx/self_check.cpp
  csrc/mlx/swiglu.cpp
  csrc/mlx/swiglu_matmul.cpp
  csrc/mlx/symmetric.cpp
  csrc/mlx/transforms.cpp
  csrc/mlx/tuning.cpp
  csrc/mlx/validate.cpp)
target_compile_definitions(nibble_mlx
  PUBLIC NIBBLE_MLX_VERSION="${NIBBLE_MLX_VERSION}")
target_link_libraries(nibble_mlx
  PUBLIC nibble_core mlx PRIVATE nibble_cpu nibble_metal)

# Split mode: one abi3 file for every CPython from 3.10. The domain and the
# backend's ABI tag are what lets it exchange mx.array with mlx.core.
nanobind_add_module(_ext BACKEND_MODULE nanobind_backend NB_DOMAIN mlx
  csrc/bindings.cpp
  csrc/bindings_bench.cpp
  csrc/bindings_self_check.cpp
  csrc/bindings_tuning.cpp)
target_link_libraries(_ext PRIVATE nibble_mlx)

if(APPLE)
  set(origin "@loader_path")
else()
  set(origin "$ORIGIN")
endif()
set_target_properties(_ext PROPERTIES
  BUILD_WITH_INSTALL_RPATH ON
  INSTALL_RPATH "${origin}/../mlx/lib")
install(TARGETS _ext LIBRARY DESTINATION mlx_nibble)

# Set by editable installs; wheels leave it out.
option(NIBBLE_TESTING "Build what the tests need besides" OFF)
if(NIBBLE_TESTING)
  add_subdirectory(tests/cpu)
  add_subdirectory(tests/metal)
endif()

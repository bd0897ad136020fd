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
  csrc/mlx/bridge.cpp
  csrc/mlx/cpu_task.cpp
  csrc/mlx/facts/machine.cpp
  csrc/mlx/facts/repack.cpp
  csrc/mlx/facts/self_check.cpp
  csrc/mlx/facts/symmetric.cpp
  csrc/mlx/facts/tuning.cpp
  csrc/mlx/nodes/attention.cpp
  csrc/mlx/nodes/dequantize.cpp
  csrc/mlx/nodes/evaluation.cpp
  csrc/mlx/nodes/fast_node.cpp
  csrc/mlx/nodes/gather_qmm.cpp
  csrc/mlx/nodes/layers.cpp
  csrc/mlx/nodes/projected_heads.cpp
  csrc/mlx/nodes/quantized_matmul.cpp
  csrc/mlx/nodes/residual_norm.cpp
  csrc/mlx/nodes/swiglu_matmul.cpp
  csrc/mlx/nodes/transforms.cpp
  csrc/mlx/fusion/gated_products.cpp
  csrc/mlx/fusion/heads.cpp
  csrc/mlx/fusion/joint.cpp
  csrc/mlx/fusion/residual_norm.cpp
  csrc/mlx/ops/attention.cpp
  csrc/mlx/ops/dequantize.cpp
  csrc/mlx/ops/gather_qmm.cpp
  csrc/mlx/ops/layers.cpp
  csrc/mlx/ops/quantized_matmul.cpp
  csrc/mlx/ops/steps.cpp
  csrc/mlx/ops/swiglu.cpp
  csrc/mlx/ops/validate.cpp
  csrc/mlx/plans.cpp)
target_compile_definitions(nibble_mlx
  PUBLIC NIBBLE_MLX_VERSION="${NIBBLE_MLX_VERSION}")
target_link_libraries(nibble_mlx
  PUBLIC nibble_core mlx PRIVATE nibble_cpu nibble_metal)

# Split mode: one abi3 file for every CPython from 3.10. The domain and the
# backend's ABI tag are what lets it exchange mx.array with mlx.core.
nanobind_add_module(_ext BACKEND_MODULE nanobind_backend NB_DOMAIN mlx
  csrc/bindings.cpp
  csrc/bindings_ops.cpp
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

if(NIBBLE_TESTING)
  add_subdirectory(tests/metal)
endif()

# Finds the MLX that the extension is compiled against: the one installed for
# this Python, or MLX_ROOT (an mlx package folder) when cross-building.
# pyproject.toml states its version.
file(READ pyproject.toml pyproject)
string(REGEX MATCH "\"mlx==([^;]+);" pin "${pyproject}")
set(NIBBLE_MLX_VERSION "${CMAKE_MATCH_1}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS pyproject.toml)

if(NOT MLX_ROOT)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m mlx --cmake-dir
    OUTPUT_STRIP_TRAILING_WHITESPACE
    OUTPUT_VARIABLE MLX_ROOT
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "mlx ${NIBBLE_MLX_VERSION} is not installed for "
                        "${Python_EXECUTABLE}")
  endif()
endif()
find_package(MLX CONFIG REQUIRED PATHS "${MLX_ROOT}" NO_DEFAULT_PATH)

# The C++ ABI is not stable between patch releases.
if(NOT MLX_VERSION VERSION_EQUAL NIBBLE_MLX_VERSION)
  message(FATAL_ERROR "mlx ${NIBBLE_MLX_VERSION} is required but "
                      "${MLX_VERSION} was found in ${MLX_ROOT}")
endif()

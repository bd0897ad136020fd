# The Python extension, once for each mlx: libmlx's C++ ABI changes between patch
# releases. Without MLX_ROOTS the one mlx that is installed is taken.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
    "import sysconfig as s; print(int(bool(s.get_config_var('Py_GIL_DISABLED'))))"
  OUTPUT_STRIP_TRAILING_WHITESPACE
  OUTPUT_VARIABLE free_threaded)
if(free_threaded)
  message(FATAL_ERROR "a CPython with the global interpreter lock is required but "
                      "${Python_EXECUTABLE} is free-threaded: it has no stable ABI")
endif()

execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE
  OUTPUT_VARIABLE nanobind_ROOT)
find_package(nanobind CONFIG REQUIRED)

# pyproject.toml states the versions of mlx, and the package's own.
file(READ pyproject.toml pyproject)
string(REGEX MATCH "\nversion = \"([^\"]*)\"" _ "${pyproject}")
set(NIBBLE_VERSION "${CMAKE_MATCH_1}")
string(REGEX MATCH "\nmlx-versions = \\[([^]]*)\\]" _ "${pyproject}")
string(REGEX MATCHALL "[0-9][0-9.]*" NIBBLE_MLX_VERSIONS "${CMAKE_MATCH_1}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS pyproject.toml)

set(MLX_ROOTS "" CACHE STRING "Folders of mlx packages, a semicolon between two")
set(roots ${MLX_ROOTS})
if(NOT roots)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m mlx --cmake-dir
    OUTPUT_STRIP_TRAILING_WHITESPACE
    OUTPUT_VARIABLE roots
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "mlx is required but ${Python_EXECUTABLE} has none")
  endif()
endif()

set(at 0)
foreach(MLX_ROOT IN LISTS roots)
  add_subdirectory(csrc "${CMAKE_CURRENT_BINARY_DIR}/mlx_${at}")
  math(EXPR at "${at} + 1")
endforeach()

# The Python extension, once for each mlx: libmlx's C++ ABI changes between patch
# releases. Without MLX_FOLDER it is the one that is installed.
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

set(MLX_FOLDER "" CACHE STRING "Unpacked wheels, as tools/mlx_wheels.py leaves them")
set(roots)
if(MLX_FOLDER)
  get_filename_component(folder "${MLX_FOLDER}" ABSOLUTE)
  foreach(version IN LISTS NIBBLE_MLX_VERSIONS)
    file(GLOB found "${folder}/*-${version}/mlx/share/cmake/MLX/MLXConfig.cmake")
    if(NOT found)
      message(FATAL_ERROR "mlx ${version} is required but ${folder} has none")
    endif()
    string(REPLACE "/share/cmake/MLX/MLXConfig.cmake" "" root "${found}")
    list(APPEND roots "${root}")
  endforeach()
else()
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

# The Metal executor: MLX's device on macOS, elsewhere a file that says there
# is none.
file(STRINGS pyproject.toml version REGEX "^version = ")
string(REGEX REPLACE "version = \"(.*)\"" "\\1" NIBBLE_VERSION "${version}")

if(APPLE)
  add_library(nibble_metal STATIC
    csrc/metal/device_profile.cpp
    csrc/metal/encoder.cpp
    csrc/metal/library.cpp)
  target_compile_definitions(nibble_metal PRIVATE NIBBLE_VERSION="${NIBBLE_VERSION}")
else()
  add_library(nibble_metal STATIC
    csrc/metal/device_profile.cpp
    csrc/metal/no_metal.cpp)
endif()
target_link_libraries(nibble_metal PUBLIC nibble_core mlx)

# Writes a C++ file that carries every header of kernels/ as a string, byte for byte.
# Run as a script: cmake -DKERNELS=dir -DOUTPUT=file -P embed.cmake
file(GLOB headers RELATIVE "${KERNELS}" "${KERNELS}/*.h" "${KERNELS}/cuda/*.h")
list(SORT headers)

set(entries "")
foreach(header IN LISTS headers)
  file(READ "${KERNELS}/${header}" text)
  string(APPEND entries "      {\"${header}\", R\"nibble(${text})nibble\"},\n")
endforeach()

file(WRITE "${OUTPUT}.new"
  "// Made by cmake/embed.cmake from kernels/*.h.\n"
  "#include \"csrc/core/kernel_source.h\"\n\n"
  "namespace nibble {\n\n"
  "const std::vector<EmbeddedFile>& embedded_kernels() {\n"
  "  static const std::vector<EmbeddedFile> files = {\n${entries}  };\n"
  "  return files;\n}\n\n"
  "}  // namespace nibble\n")
file(RENAME "${OUTPUT}.new" "${OUTPUT}")

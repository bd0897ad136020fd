#include "csrc/core/kernel_source.h"

#include <cassert>
#include <set>
#include <sstream>

#include "csrc/core/tiles.h"

namespace nibble {
namespace {

constexpr std::string_view kInclude = "#include \"kernels/";

std::string_view text_of(std::string_view name) {
  for (const EmbeddedFile& file : embedded_kernels()) {
    if (file.name == name) {
      return file.text;
    }
  }
  assert(false && "a kernel includes a header that is not embedded");
  return {};
}

// Metal compiles a string without an include path. So each sibling is pasted in
// at its first include; <metal_stdlib> stays. With #line, a compiler's message
// names the original file and line.
void flatten(std::string_view name,
             std::set<std::string, std::less<>>& seen,
             std::ostringstream& out) {
  if (!seen.emplace(name).second) {
    return;
  }
  std::string_view rest = text_of(name);
  out << "#line 1 \"kernels/" << name << "\"\n";
  for (int number = 1; !rest.empty(); ++number) {
    size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? "" : rest.substr(end + 1);
    if (line.starts_with(kInclude)) {
      std::string_view included = line.substr(kInclude.size());
      flatten(included.substr(0, included.find('"')), seen, out);
      out << "#line " << number + 1 << " \"kernels/" << name << "\"\n";
    } else {
      out << (line == "#pragma once" ? "" : line) << '\n';
    }
  }
}

// Adds an instance of the kernel `call`, which the host knows as `name`.
void instantiate(std::string_view name,
                 std::string_view call,
                 std::ostringstream& out) {
  out << "template [[host_name(\"" << name
      << "\")]] [[kernel]] decltype(nibble::" << call << ") nibble::" << call
      << ";\n";
}

// The threads of a block of a kernel for CUDA.
int cuda_threads(const KernelId& id) {
  switch (id.family) {
    case Family::kCudaDequantize:
      return NIBBLE_DEQUANTIZE_THREADS;
    case Family::kCudaQmmWgmma:
      return CudaWgmmaTile::threads_of(id.shape);
    default:
      return CudaTile::threads_of(id.shape);
  }
}

}  // namespace

std::string kernel_source(const std::vector<KernelId>& ids, bool fences) {
  std::ostringstream out;
  if (fences) {
    out << "#define NIBBLE_FENCES 1\n";
  }
  std::set<std::string, std::less<>> seen;
  for (const KernelId& id : ids) {
    flatten(kernel_header(id), seen, out);
  }
  for (const KernelId& id : ids) {
    instantiate(kernel_name(id), template_call(id), out);
  }
  return out.str();
}

std::string cuda_source(const KernelId& id) {
  const FamilyRow& family = row_of(id.family);
  std::ostringstream out;
  std::set<std::string, std::less<>> seen;
  flatten(kernel_header(id), seen, out);
  const QuantFormat& format = id.format;
  // The last number of a tile is that of blocks on a multiprocessor.
  int blocks = id.shape.empty() ? 1 : id.shape.back();
  out << family.entry << '(' << kernel_name(id) << ", " << cuda_threads(id)
      << ", " << blocks << ", " << family.type
      << "<nibble::" << (id.dtype == Dtype::kFloat16 ? "Float16" : "BFloat16")
      << ", nibble::" << format.info().kernel_type << '<' << format.bits << ", "
      << format.group_size << '>';
  for (size_t i = 0; i + 1 < id.shape.size(); ++i) {
    out << ", " << id.shape[i];
  }
  out << ">)\n";
  return out.str();
}

std::string cuda_contiguous_source() {
  std::ostringstream out;
  std::set<std::string, std::less<>> seen;
  flatten("cuda/contiguous.h", seen, out);
  return out.str();
}

std::string contiguous_source() {
  std::ostringstream out;
  std::set<std::string, std::less<>> seen;
  flatten("contiguous.h", seen, out);
  // Not Metal's `ushort`, whose name is in no namespace that is used here.
  instantiate(kContiguousKernel, "contiguous<unsigned short>", out);
  instantiate(kContiguousBytesKernel, "contiguous<unsigned char>", out);
  return out.str();
}

}  // namespace nibble

#include "csrc/cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "csrc/core/error.h"

namespace nibble::cpu {
namespace {

struct Isa {
  std::string_view name;
  const Kernels* kernels;
  const LayerKernels* layers;
};

// Slowest first.
std::vector<Isa> find_isas() {
  std::vector<Isa> found = {{"scalar", &kScalarKernels, &kScalarLayers}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    found.push_back({"avx2", &kAvx2Kernels, &kAvx2Layers});
    if (__builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back({"avx512", &kAvx512Kernels, &kAvx512Layers});
    }
  }
#endif
  return found;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}

const Isa& named(std::string_view origin, std::string_view name) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (isa.name == name) {
      return isa;
    }
    known += known.empty() ? "" : ", ";
    known += isa.name;
  }
  fail("cpu",
       origin,
       " must be one of ",
       known,
       " on this machine but got '",
       name,
       "'");
}

std::atomic<const Isa*>& in_use() {
  static std::atomic<const Isa*> isa = [] {
    const char* wanted = std::getenv("NIBBLE_CPU_ISA");
    return wanted && *wanted ? &named("NIBBLE_CPU_ISA", wanted)
                             : &isas().back();
  }();
  return isa;
}

}  // namespace

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const Isa& isa : isas()) {
    names.push_back(isa.name);
  }
  return names;
}

std::string_view isa() {
  return in_use().load()->name;
}

void set_isa(std::string_view name) {
  in_use() = &named("the name", name);
}

const Kernels& kernels() {
  return *in_use().load()->kernels;
}

const LayerKernels& layer_kernels() {
  return *in_use().load()->layers;
}

}  // namespace nibble::cpu

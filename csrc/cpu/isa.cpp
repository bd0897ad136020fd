#include "csrc/cpu/isa.h"

#include <cstdlib>

#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(NIBBLE_HAS_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "csrc/core/error.h"
#include "csrc/cpu/profile.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

#if defined(__aarch64__)
enum class ArmFeature { kDotProd, kI8mm };

bool has(ArmFeature feature) {
  bool dot = feature == ArmFeature::kDotProd;
#if defined(__APPLE__)
  const char* name =
      dot ? "hw.optional.arm.FEAT_DotProd" : "hw.optional.arm.FEAT_I8MM";
  int32_t value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value == 1;
#elif defined(__linux__)
  return dot ? getauxval(AT_HWCAP) >> 20 & 1    // HWCAP_ASIMDDP
             : getauxval(AT_HWCAP2) >> 13 & 1;  // HWCAP2_I8MM
#else
  return false;
#endif
}
#endif

#if defined(NIBBLE_HAS_AMX)
// Returns true if this process may use the tiles of AMX. Linux asks for
// a request, since they add 8 KB to a thread's state.
bool may_use_tiles() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return (d & kTiles) && (d & kInt8) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(NIBBLE_HAS_AMX_BFLOAT) && defined(__linux__)
// Returns true if tiles may have bfloat16, beside AVX-512 with float16 and with
// permutations of bytes.
bool has_bfloat_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kTiles = 1u << 22, kFloat16 = 1u << 23, kVbmi = 1u << 1;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) &&
         (d & kFloat16) && (c & kVbmi);
}
#endif

// The instruction sets of this machine, slowest first.
std::vector<Isa> find_isas() {
  std::vector<Isa> found = {
      {"scalar", kScalarKernels, kScalarInt8Kernels, nullptr, kScalarLayers}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c") || !__builtin_cpu_supports("bmi2")) {
    return found;
  }
  found.push_back({"avx2",
                   kAvx2Kernels,
                   kAvx2Int8Kernels,
                   &kAvx2Int16Kernels,
                   kAvx2Layers});
  if (__builtin_cpu_supports("avxvnni")) {
    found.push_back({"avx2_vnni",
                     kAvx2Kernels,
                     kAvx2VnniInt8Kernels,
                     &kAvx2VnniInt16Kernels,
                     kAvx2Layers});
  }
  if (!__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl")) {
    return found;
  }
  found.push_back({"avx512",
                   kAvx512Kernels,
                   kAvx512Int8Kernels,
                   &kAvx512Int16Kernels,
                   kAvx512Layers});
  if (__builtin_cpu_supports("avx512vnni")) {
    found.push_back({"avx512_vnni",
                     kAvx512Kernels,
                     kAvx512VnniInt8Kernels,
                     &kAvx512VnniInt16Kernels,
                     kAvx512Layers});
#if defined(NIBBLE_HAS_AMX)
    if (may_use_tiles()) {
      found.push_back({"amx",
                       kAvx512Kernels,
                       kAmxInt8Kernels,
                       &kAmxInt16Kernels,
                       kAvx512Layers});
#if defined(NIBBLE_HAS_AMX_BFLOAT) && defined(__linux__)
      if (has_bfloat_tiles()) {
        found.back().bfloat16 = &kAmxBfloatKernels;
        found.back().bfloat16_by_pair = &kAmxBfloatByPairKernels;
        found.back().bfloat16_pair = &kAmxBfloatPairKernels;
      }
#endif
    }
#endif
  }
#elif defined(__aarch64__)
  found.push_back(
      {"neon", kNeonKernels, kNeonInt8Kernels, nullptr, kNeonLayers});
  if (has(ArmFeature::kDotProd)) {
    found.push_back({"neon_dotprod",
                     kNeonKernels,
                     kNeonDotprodInt8Kernels,
                     nullptr,
                     kNeonLayers});
  }
  if (has(ArmFeature::kI8mm)) {
    found.push_back({"neon_i8mm",
                     kNeonKernels,
                     kNeonI8mmInt8Kernels,
                     nullptr,
                     kNeonLayers});
  }
#endif
  return found;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}

// The one that NIBBLE_CPU_ISA names.
const Isa& named(std::string_view name) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (isa.name == name) {
      return isa;
    }
    known += known.empty() ? "" : ", ";
    known += isa.name;
  }
  fail("cpu",
       "NIBBLE_CPU_ISA must be one of ",
       known,
       " on this machine but got '",
       name,
       "'");
}

}  // namespace

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const Isa& isa : isas()) {
    names.push_back(isa.name);
  }
  return names;
}

const Isa& isa() {
  static const Isa& in_use = [] -> const Isa& {
    const char* wanted = std::getenv("NIBBLE_CPU_ISA");
    return wanted && *wanted ? named(wanted) : isas().back();
  }();
  return in_use;
}

CpuProfile profile() {
  const Kernels& kernels = isa().kernels;
  return {thread_count(),
          kernels.few_rows,
          kernels.tile_rows,
          kernels.packed_rows,
          isa().int8.packed_rows,
          isa().int16 ? isa().int16->packed_rows : 0,
          isa().int16 != nullptr,
          isa().bfloat16 != nullptr};
}

}  // namespace nibble::cpu

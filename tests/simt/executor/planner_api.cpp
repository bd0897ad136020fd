// The project's own planner and kernel texts for Python. The bench runs the
// plans of core, not the assumptions of a test.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <list>
#include <sstream>
#include <string>

#include "csrc/core/kernel_name.h"
#include "csrc/core/kernel_source.h"
#include "csrc/core/plan/cost.h"
#include "csrc/core/planner.h"
#include "json.h"
#include "runtime.h"

// The fields of core's structs. ../plans.py has the same.
struct SimtProblem {
  int32_t M, N, K;
  int32_t batch_size, batch_count, batch_repeat;
  int32_t dtype, scale_dtype;
  int32_t bits, group_size;
  int32_t mode;
  int32_t transpose;
  int32_t batch_invariant;
  int32_t bias;
  int32_t residual;
  int32_t half_tiles;
};
struct SimtGatherProblem {
  int32_t B, M, N, K, experts;
  int32_t dtype, scale_dtype;
  int32_t bits, group_size;
  int32_t mode;
  int32_t sorted;
  int32_t transpose;
  int32_t batch_invariant;
};
struct SimtProfile {
  int32_t cuda;
  int32_t generation;
  char tier;
  uint32_t max_threads_per_threadgroup;
  uint32_t max_threadgroup_bytes;
  uint32_t cores;
  int32_t neural;
  int32_t tf32;
  int32_t wgmma;
};

namespace {

std::list<std::string> texts;  // the views of `files` point into these
std::vector<nibble::EmbeddedFile> files;

const std::string& keep_text(std::string text) {
  return texts.emplace_back(std::move(text));
}

}  // namespace

// The extension carries the kernels inside. The bench reads them at run time,
// so that an edited kernel needs no new executor.
namespace nibble {
const std::vector<EmbeddedFile>& embedded_kernels() {
  return files;
}
}  // namespace nibble

SIMT_EXPORT void simt_read_kernels(const char* directory) {
  texts.clear();
  files.clear();
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.path().extension() == ".h") {
      std::ifstream in(entry.path(), std::ios::binary);
      std::istreambuf_iterator<char> first(in), last;
      auto name = std::filesystem::relative(entry.path(), directory);
      files.push_back(
          {keep_text(name.string()), keep_text(std::string(first, last))});
    }
  }
}

namespace {

// One for each thread: several threads ask at the same time.
thread_local std::string answer;

const char* keep(std::string text) {
  answer = std::move(text);
  return answer.c_str();
}

std::string to_json(const nibble::Dim3& d) {
  std::ostringstream out;
  out << '[' << d.x << ", " << d.y << ", " << d.z << ']';
  return out.str();
}

std::string to_json(const nibble::LaunchPlan& plan) {
  std::ostringstream out;
  out << "{\"kernel\": " << simt::quoted(plan.kernel)
      << ", \"threadgroups\": " << to_json(plan.threadgroups)
      << ", \"threads\": " << to_json(plan.threads) << ", \"buffers\": [";
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    out << (i ? ", " : "")
        << simt::quoted(std::string(to_string(plan.buffers[i])));
  }
  out << "], \"params\": \"" << std::hex;
  for (std::byte b : plan.params) {
    auto value = static_cast<unsigned>(b);
    out << (value >> 4) << (value & 15);
  }
  out << std::dec << "\", \"threadgroup_bytes\": " << plan.threadgroup_bytes
      << ", \"sums_bytes\": " << plan.sums_bytes << "}";
  return out.str();
}

std::string to_json(const std::string& text) {
  return simt::quoted(text);
}

template <typename Item>
std::string to_json(const std::vector<Item>& items) {
  std::string out = "[";
  for (const Item& item : items) {
    out += (out.size() > 1 ? ", " : "") + to_json(item);
  }
  return out + "]";
}

nibble::DeviceProfile device_of(const SimtProfile& profile) {
  return {profile.cuda ? nibble::Api::kCuda : nibble::Api::kMetal,
          profile.generation,
          profile.tier,
          profile.max_threads_per_threadgroup,
          profile.max_threadgroup_bytes,
          profile.cores,
          profile.neural != 0,
          profile.tf32 != 0,
          profile.wgmma != 0};
}

template <typename Problem>
nibble::Product product_of(const Problem& p) {
  nibble::Product product;
  product.dtype = static_cast<nibble::Dtype>(p.dtype);
  product.scale_dtype = static_cast<nibble::Dtype>(p.scale_dtype);
  product.format = {p.bits, p.group_size, static_cast<nibble::Mode>(p.mode)};
  product.M = p.M;
  product.N = p.N;
  product.K = p.K;
  product.transpose = p.transpose != 0;
  product.batch_invariant = p.batch_invariant != 0;
  return product;
}

nibble::MatmulProblem matmul_of(const SimtProblem& p) {
  return {product_of(p),
          {p.batch_size, p.batch_count, p.batch_repeat},
          p.half_tiles != 0,
          {p.bias != 0, p.residual != 0},
          {}};
}

nibble::GatherProblem gather_of(const SimtGatherProblem& p) {
  return {product_of(p), p.B, p.experts, 1, p.sorted != 0};
}

// M counts the rows of the matrix.
nibble::DequantizeProblem dequantize_of(const SimtProblem& p) {
  return {product_of(p), p.M, p.K};
}

std::string to_json(
    const std::optional<std::vector<nibble::LaunchPlan>>& launches) {
  return launches ? to_json(*launches) : "null";
}

}  // namespace

SIMT_EXPORT const char* simt_plan_gather(const SimtGatherProblem* p,
                                         const SimtProfile* profile) {
  return keep(to_json(nibble::plan(gather_of(*p), device_of(*profile))));
}

SIMT_EXPORT const char* simt_columns_for_mlx(const SimtProblem* p,
                                             const SimtProfile* profile) {
  return keep(std::to_string(
      nibble::columns_for_mlx(matmul_of(*p), device_of(*profile))));
}

SIMT_EXPORT const char* simt_left_to_mlx(const SimtProblem* p,
                                         const SimtProfile* profile) {
  return mlx_is_faster(matmul_of(*p), device_of(*profile)) ? "true" : "false";
}

SIMT_EXPORT const char* simt_gather_left_to_mlx(const SimtGatherProblem* p,
                                                const SimtProfile* profile) {
  return mlx_is_faster(gather_of(*p), device_of(*profile)) ? "true" : "false";
}

// [[fixed, arithmetic, simdgroups, resident], ...]: qmm_skinny, the tiles of
// qmm and of gather_qmm, MLX's of both, and gradients.
SIMT_EXPORT const char* simt_tile_costs(int mode, int bits) {
  nibble::QuantFormat format{bits, 64, static_cast<nibble::Mode>(mode)};
  std::vector<nibble::TileCost> costs{nibble::skinny_cost(format)};
  for (const nibble::Tile& tile : nibble::kTiles) {
    costs.push_back(nibble::cost_of(tile, format));
  }
  for (const nibble::Tile& tile : nibble::kGatherTiles) {
    costs.push_back(nibble::sorted_cost_of(tile, format));
  }
  costs.insert(costs.end(),
               {nibble::mlx_cost(format),
                nibble::mlx_sorted_cost(format),
                nibble::kGradientCost});
  std::ostringstream out;
  for (const nibble::TileCost& cost : costs) {
    out << (out.tellp() > 0 ? ", [" : "[[") << cost.fixed << ", "
        << cost.arithmetic << ", " << cost.simdgroups << ", " << cost.resident
        << "]";
  }
  out << "]";
  return keep(out.str());
}

SIMT_EXPORT double simt_occupancy(double simdgroups) {
  return nibble::occupancy(simdgroups);
}

SIMT_EXPORT const char* simt_plan_swiglu(const SimtProblem* p,
                                         const SimtProfile* profile) {
  return keep(to_json(nibble::plan_swiglu(matmul_of(*p), device_of(*profile))));
}

SIMT_EXPORT const char* simt_plan_gather_swiglu(const SimtGatherProblem* p,
                                                const SimtProfile* profile) {
  return keep(to_json(nibble::plan_swiglu(gather_of(*p), device_of(*profile))));
}

SIMT_EXPORT const char* simt_plan_gradient(const SimtProblem* p,
                                           const SimtProfile* profile) {
  return keep(
      to_json(nibble::plan_gradient(matmul_of(*p), device_of(*profile))));
}

SIMT_EXPORT const char* simt_plan_gather_gradient(const SimtGatherProblem* p,
                                                  const SimtProfile* profile) {
  return keep(
      to_json(nibble::plan_gradient(gather_of(*p), device_of(*profile))));
}

SIMT_EXPORT const char* simt_gradient_left_to_mlx(const SimtProblem* p,
                                                  const SimtProfile* profile) {
  return dense_gradient_is_faster(matmul_of(*p), device_of(*profile)) ? "true"
                                                                      : "false";
}

SIMT_EXPORT const char* simt_gather_gradient_left_to_mlx(
    const SimtGatherProblem* p, const SimtProfile* profile) {
  return dense_gradient_is_faster(gather_of(*p), device_of(*profile)) ? "true"
                                                                      : "false";
}

SIMT_EXPORT const char* simt_plan_joint(const SimtProblem* p,
                                        int count,
                                        const SimtProfile* profile) {
  std::vector<nibble::MatmulProblem> products;
  for (int i = 0; i < count; ++i) {
    products.push_back(matmul_of(p[i]));
  }
  return keep(to_json(nibble::plan_joint(products, device_of(*profile))));
}

SIMT_EXPORT const char* simt_plan_matmul(const SimtProblem* p,
                                         const SimtProfile* profile) {
  return keep(to_json(nibble::plan(matmul_of(*p), device_of(*profile))));
}

// The plan where a tuned table has this choice.
SIMT_EXPORT const char* simt_plan_choice(const SimtProblem* p,
                                         const SimtProfile* profile,
                                         const char* choice) {
  nibble::MatmulProblem problem = matmul_of(*p);
  problem.choice = choice;
  return keep(to_json(nibble::plan(problem, device_of(*profile))));
}

// Every plan that may be the fastest, the default first.
SIMT_EXPORT const char* simt_candidates(const SimtProblem* p,
                                        const SimtProfile* profile) {
  return keep(to_json(nibble::candidates(matmul_of(*p), device_of(*profile))));
}

SIMT_EXPORT const char* simt_plan_dequantize(const SimtProblem* p,
                                             const SimtProfile* profile) {
  return keep(to_json(nibble::plan(dequantize_of(*p), device_of(*profile))));
}

// `planner` is a nibble::Planner.
SIMT_EXPORT const char* simt_kernels_of_any_shape(const SimtProblem* p,
                                                  const SimtProfile*,
                                                  int planner) {
  auto which = static_cast<nibble::Planner>(planner);
  return keep(to_json(which == nibble::Planner::kDequantize
                          ? nibble::kernels_of_any_shape(dequantize_of(*p))
                          : nibble::kernels_of_any_shape(
                                matmul_of(*p), nibble::Api::kMetal, which)));
}

SIMT_EXPORT const char* simt_gather_kernels_of_any_shape(
    const SimtGatherProblem* p, const SimtProfile*, int planner) {
  return keep(to_json(
      nibble::kernels_of_any_shape(gather_of(*p),
                                   nibble::Api::kMetal,
                                   static_cast<nibble::Planner>(planner))));
}

// [{"name": ..., "header": ...}, ...], every kernel that a plan can name.
SIMT_EXPORT const char* simt_instances(int cuda) {
  std::string out = "[";
  for (const nibble::KernelId& id :
       nibble::instances(cuda ? nibble::Api::kCuda : nibble::Api::kMetal)) {
    out += (out.size() > 1 ? ", " : "") + std::string("{\"name\": ") +
           simt::quoted(kernel_name(id)) +
           ", \"header\": " + simt::quoted(kernel_header(id)) + "}";
  }
  return keep(out + "]");
}

// The text that a Mac, or NVRTC, would compile for the kernel; "" if there is
// no such kernel. Call simt_read_kernels() first.
SIMT_EXPORT const char* simt_kernel_source(const char* name) {
  if (name == nibble::kCudaContiguousKernel) {
    return keep(nibble::cuda_contiguous_source());
  }
  auto id = nibble::parse_kernel_name(name);
  if (!id) {
    return keep("");
  }
  bool cuda = nibble::row_of(id->family).api == nibble::Api::kCuda;
  return keep(cuda ? nibble::cuda_source(*id) : nibble::kernel_source({*id}));
}

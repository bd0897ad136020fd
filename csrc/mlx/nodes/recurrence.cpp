#include "csrc/mlx/nodes/recurrence.h"

#include <optional>

#include "csrc/core/error.h"
#include "csrc/cpu/recurrence.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"

namespace nibble {
namespace {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;

// The rows of an array and their type, for a task.
struct Rows {
  explicit Rows(const mx::array& a) : dtype(*to_dtype(a.dtype())), strided(a) {}

  cpu::RowsOf get() { return {dtype, strided.grid()}; }

  Dtype dtype;
  StridedRows strided;
};

// The gates of a state-space model, and the memory that they are in.
struct Gates {
  std::vector<float> beta, decay;
};

Gates gates_of(const RecurrenceOptions& options,
               const cpu::Recurrence& p,
               std::vector<RowContiguous>& rest) {
  size_t count = size_t(p.B) * p.T * p.Hv;
  Gates made{std::vector<float>(count), std::vector<float>(count)};
  cpu::gates({int64_t(p.B) * p.T,
              p.Hv,
              options.least,
              options.most,
              rest[0].as<float>(),
              rest[1].as<float>(),
              rest[2].as<float>(),
              made.beta.data(),
              made.decay.data()});
  return made;
}

}  // namespace

void RecurrencePrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                   std::vector<mx::array>& outputs) {
  for (mx::array& out : outputs) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
  }
  const mx::array &q = inputs[0], &v = inputs[2], &y = outputs[0];
  bool rwkv = options_.kind == RecurrenceOptions::kRwkv7;
  bool space = options_.kind == RecurrenceOptions::kStateSpace;
  // Rows as grids, then arrays that are read whole.
  bool vectors = rwkv || (!space && inputs[4].ndim() == 4);
  size_t end = inputs.size() - options_.has_state - options_.has_mask;
  std::vector<Rows> rows;
  std::vector<RowContiguous> rest;
  for (size_t i = 0; i < end; ++i) {
    bool as_rows = i < 3 || rwkv || (vectors && i == 4);
    if (as_rows) {
      rows.emplace_back(inputs[i]);
    } else {
      rest.emplace_back(inputs[i]);
    }
  }
  std::optional<RowContiguous> state, mask;
  if (options_.has_state) {
    state.emplace(inputs[end]);
  }
  if (options_.has_mask) {
    mask.emplace(inputs.back());
  }
  cpu::Recurrence problem{};
  problem.rule = rwkv    ? cpu::Rule::kReplace
                 : space ? cpu::Rule::kAdd
                         : cpu::Rule::kDelta;
  problem.B = q.shape(0);
  problem.T = q.shape(1);
  problem.Hk = q.shape(2);
  problem.Hv = v.shape(2);
  problem.Dk = q.shape(3);
  problem.Dv = v.shape(3);
  problem.dtype = *to_dtype(y.dtype());
  problem.y = outputs[0].data<void>();
  problem.new_state = outputs[1].data<float>();
  cpu_task::dispatch(stream(),
                     outputs,
                     [options = options_,
                      problem,
                      rows = std::move(rows),
                      rest = std::move(rest),
                      state = std::move(state),
                      mask = std::move(mask)]() mutable {
                       cpu::Recurrence& p = problem;
                       p.q = rows[0].get();
                       p.k = rows[1].get();
                       p.v = rows[2].get();
                       Gates made;
                       switch (options.kind) {
                         case RecurrenceOptions::kGatedDelta:
                           p.beta = rest[0].as<float>();
                           if (rows.size() > 3) {
                             p.decay_rows = rows[3].get();
                           } else {
                             p.decay = rest[1].as<float>();
                           }
                           break;
                         case RecurrenceOptions::kStateSpace:
                           made = gates_of(options, p, rest);
                           p.beta = made.beta.data();
                           p.decay = made.decay.data();
                           p.skip = rest[3].as<float>();
                           break;
                         case RecurrenceOptions::kRwkv7:
                           p.removed = rows[3].get();
                           p.added = rows[4].get();
                           p.decay_rows = rows[5].get();
                           break;
                       }
                       p.state = state ? state->as<float>() : nullptr;
                       p.mask = mask ? mask->as<uint8_t>() : nullptr;
                       cpu::recur(p);
                     });
}

void RecurrencePrimitive::eval_gpu(const std::vector<mx::array>&,
                                   std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

void SelectiveScanPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                      std::vector<mx::array>& outputs) {
  for (mx::array& out : outputs) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
  }
  const mx::array &x = inputs[1], &b = inputs[2];
  cpu::SelectiveScan problem{};
  problem.B = x.shape(0);
  problem.T = x.shape(1);
  problem.channels = x.shape(2);
  problem.N = b.shape(2);
  problem.dtype = *to_dtype(outputs[0].dtype());
  problem.y = outputs[0].data<void>();
  problem.new_state = outputs[1].data<float>();
  cpu_task::dispatch(stream(),
                     outputs,
                     [problem,
                      has_state = has_state_,
                      delta = Rows(inputs[0]),
                      x = Rows(x),
                      b = Rows(b),
                      c = Rows(inputs[3]),
                      rates = RowContiguous(inputs[4]),
                      skip = RowContiguous(inputs[5]),
                      state = RowContiguous(inputs.back())]() mutable {
                       problem.delta = delta.get();
                       problem.x = x.get();
                       problem.b = b.get();
                       problem.c = c.get();
                       problem.rates = rates.as<float>();
                       problem.skip = skip.as<float>();
                       problem.state = has_state ? state.as<float>() : nullptr;
                       cpu::scan(problem);
                     });
}

void SelectiveScanPrimitive::eval_gpu(const std::vector<mx::array>&,
                                      std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

}  // namespace nibble

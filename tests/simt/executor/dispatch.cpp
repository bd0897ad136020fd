// simt_dispatch(): allocates memory, runs the threadgroups one after another
// and reports. Also the functions that kernels call.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fault.h"
#include "findings.h"
#include "json.h"
#include "memory.h"
#include "monitor.h"
#include "runtime.h"
#include "threadgroup.h"

namespace simt {
namespace {

constexpr int kThreadgroupArguments = 8;

class Dispatch {
 public:
  explicit Dispatch(const SimtDispatch& what);

  void run();
  void* threadgroup_variable(const char* name, int site, uint32_t bytes);

  const std::vector<Finding>& findings() const { return findings_; }
  const Counters& counters() const { return counters_; }
  const Monitor* monitor() const { return monitor_.get(); }

 private:
  bool fits_device();
  void bind();
  void run_grid();
  void run_group(Threadgroup& group, const uint32_t position[3]);
  Finding explain(void* address, int signal, bool write) const;
  void look_for_damage(const uint32_t position[3]);
  void copy_out();
  void found(std::string kind, std::string text);

  const SimtDispatch& what_;
  std::vector<GuardedMemory> buffers_;
  std::vector<std::unique_ptr<GuardedMemory>> threadgroup_memory_;
  std::map<int, GuardedMemory*> variables_;
  uint64_t bindings_[kSimtBuffers + kThreadgroupArguments] = {};
  std::vector<Finding> findings_;
  Counters counters_;
  std::unique_ptr<Monitor> monitor_;
  uint64_t groups_run_ = 0;
};

Dispatch* active_dispatch = nullptr;

Dispatch::Dispatch(const SimtDispatch& what) : what_(what) {
  if (what.flags & kSimtInstrumented) {
    uint32_t threads = what.threads[0] * what.threads[1] * what.threads[2];
    monitor_ =
        std::make_unique<Monitor>(reinterpret_cast<const void*>(what.entry),
                                  (threads + kLanes - 1) / kLanes,
                                  (what.flags & kSimtRedundantWrites) != 0);
  }
}

void Dispatch::found(std::string kind, std::string text) {
  Finding finding{.kind = std::move(kind), .text = std::move(text)};
  findings_.push_back(std::move(finding));
}

bool Dispatch::fits_device() {
  uint64_t threads =
      uint64_t{what_.threads[0]} * what_.threads[1] * what_.threads[2];
  if (threads == 0 || threads > what_.max_threads) {
    found("limits",
          std::to_string(threads) + " threads in a threadgroup of " +
              "at most " + std::to_string(what_.max_threads));
  }
  if (what_.threadgroup_bytes > what_.max_threadgroup_bytes) {
    found("limits",
          std::to_string(what_.threadgroup_bytes) +
              " bytes of threadgroup memory where there are " +
              std::to_string(what_.max_threadgroup_bytes));
  }
  return findings_.empty();
}

void Dispatch::bind() {
  buffers_.reserve(what_.buffer_count);
  for (uint32_t i = 0; i < what_.buffer_count; ++i) {
    const SimtBuffer& buffer = what_.buffers[i];
    buffers_.emplace_back(buffer.name, buffer.bytes, buffer.alignment);
    GuardedMemory& memory = buffers_.back();
    if (buffer.bytes) {
      std::memcpy(memory.data(), buffer.data, buffer.bytes);
    }
    if (!buffer.writable) {
      memory.make_read_only();
    }
    bindings_[i] = reinterpret_cast<uint64_t>(memory.data());
    if (monitor_) {
      monitor_->watch_buffer(memory, buffer.writable);
    }
  }
  if (what_.threadgroup_bytes) {
    threadgroup_memory_.push_back(std::make_unique<GuardedMemory>(
        "threadgroup(0)", what_.threadgroup_bytes, 16));
    GuardedMemory& memory = *threadgroup_memory_.back();
    bindings_[kSimtBuffers] = reinterpret_cast<uint64_t>(memory.data());
    counters_.threadgroup_bytes = memory.size();
    if (monitor_) {
      monitor_->watch_threadgroup(memory);
    }
  }
}

void Dispatch::run() {
  if (!fits_device()) {
    return;
  }
  bind();
  active_dispatch = this;
  run_grid();
  active_dispatch = nullptr;
  if (monitor_) {
    const auto& seen = monitor_->findings();
    findings_.insert(findings_.begin(), seen.begin(), seen.end());
  }
  copy_out();
}

void Dispatch::run_grid() {
  FaultHandler faults([this](void* address, int signal, bool write) {
    return explain(address, signal, write);
  });
  Threadgroup group(what_, bindings_, counters_, monitor_.get());
  uint32_t at[3];
  for (at[2] = 0; at[2] < what_.grid[2]; ++at[2]) {
    for (at[1] = 0; at[1] < what_.grid[1]; ++at[1]) {
      for (at[0] = 0; at[0] < what_.grid[0]; ++at[0]) {
        run_group(group, at);
        if (!findings_.empty()) {
          return;
        }
      }
    }
  }
}

void Dispatch::run_group(Threadgroup& group, const uint32_t position[3]) {
  for (auto& memory : threadgroup_memory_) {
    memory->poison();
  }
  if (monitor_) {
    monitor_->begin_threadgroup(position);
  }
  // Knuth's multiplier gives each threadgroup another order.
  uint64_t seed = (what_.seed + groups_run_++) * 6364136223846793005u >> 33;
  auto stopped = group.run(position, seed);
  if (monitor_) {
    monitor_->end_threadgroup();
  }
  ++counters_.threadgroups;
  counters_.threads += what_.threads[0] * what_.threads[1] * what_.threads[2];
  if (stopped) {
    findings_.push_back(*stopped);
  }
  look_for_damage(position);
}

void Dispatch::look_for_damage(const uint32_t position[3]) {
  auto look = [&](const GuardedMemory& memory) {
    std::string damage = memory.damage();
    if (!damage.empty()) {
      found("out of bounds", "a write at " + damage);
      std::copy_n(position, 3, findings_.back().group);
    }
  };
  for (const auto& memory : threadgroup_memory_) {
    look(*memory);
  }
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (what_.buffers[i].writable) {
      look(buffers_[i]);
    }
  }
}

Finding Dispatch::explain(void* address, int signal, bool write) const {
  if (signal == SIGILL) {
    return {.kind = "misaligned", .text = "an access off its type's alignment"};
  }
  std::string access = write ? "a write at " : "a read at ";
  auto explain_by = [&](const GuardedMemory& memory) -> Finding {
    auto at = static_cast<std::byte*>(address);
    bool inside = at >= memory.data() && at < memory.data() + memory.size();
    return {.kind = inside ? "write to input" : "out of bounds",
            .text = access + memory.describe(address)};
  };
  for (const GuardedMemory& memory : buffers_) {
    if (memory.owns(address)) {
      return explain_by(memory);
    }
  }
  for (const auto& memory : threadgroup_memory_) {
    if (memory->owns(address)) {
      return explain_by(*memory);
    }
  }
  if (active_threadgroup->stack_overflowed_to(address)) {
    return {.kind = "stack overflow", .text = "a thread used over 256 KB"};
  }
  return {.kind = "out of bounds",
          .text = access + "an address outside every buffer"};
}

void* Dispatch::threadgroup_variable(const char* name,
                                     int site,
                                     uint32_t bytes) {
  GuardedMemory*& variable = variables_[site];
  if (!variable) {
    threadgroup_memory_.push_back(
        std::make_unique<GuardedMemory>(name, bytes, 16));
    variable = threadgroup_memory_.back().get();
    variable->poison();
    counters_.threadgroup_bytes += bytes;
    if (counters_.threadgroup_bytes > what_.max_threadgroup_bytes) {
      active_threadgroup->stop(
          {.kind = "limits",
           .text = std::string(name) + " makes it " +
                   std::to_string(counters_.threadgroup_bytes) +
                   " bytes of threadgroup memory where there are " +
                   std::to_string(what_.max_threadgroup_bytes)});
    }
    if (monitor_) {
      monitor_->watch_threadgroup(*variable);
    }
  }
  return variable->data();
}

void Dispatch::copy_out() {
  for (uint32_t i = 0; i < what_.buffer_count; ++i) {
    const SimtBuffer& buffer = what_.buffers[i];
    if (buffer.writable && buffer.bytes) {
      std::memcpy(buffer.data, buffers_[i].data(), buffer.bytes);
    }
  }
}

}  // namespace
}  // namespace simt

using simt::active_threadgroup;
using simt::Op;

const char* simt_dispatch(const SimtDispatch* what) {
  simt::Dispatch dispatch(*what);
  dispatch.run();
  static std::string report;
  report = simt::to_json(
      dispatch.findings(), dispatch.counters(), dispatch.monitor());
  return report.c_str();
}

const SimtThreadIds* simt_ids() {
  return &active_threadgroup->current();
}

void simt_threadgroup_barrier(uint32_t flags, int line, const char* file) {
  active_threadgroup->threadgroup_barrier({file, line, Op::kThreadgroupBarrier},
                                          flags);
}

void simt_simdgroup_barrier(uint32_t flags, int line, const char* file) {
  active_threadgroup->simdgroup_barrier({file, line, Op::kSimdgroupBarrier},
                                        flags);
}

const uint8_t* simt_exchange(const void* value,
                             uint32_t bytes,
                             uint32_t op,
                             int line,
                             const char* file) {
  return active_threadgroup->exchange(
      {file, line, static_cast<Op>(op)}, value, bytes);
}

void* simt_threadgroup_variable(const char* name, int site, uint32_t bytes) {
  return simt::active_dispatch->threadgroup_variable(name, site, bytes);
}

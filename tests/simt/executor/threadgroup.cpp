#include "threadgroup.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "monitor.h"

namespace simt {

Threadgroup* active_threadgroup = nullptr;

namespace {

const char* name_of(Op op) {
  switch (op) {
    case Op::kSimdgroupBarrier:
      return "simdgroup_barrier";
    case Op::kShuffle:
    case Op::kFixedShuffle:
      return "simd shuffle";
    case Op::kReduce:
      return "simd reduction";
    case Op::kMatrix:
      return "simdgroup matrix product";
    case Op::kThreadgroupBarrier:
      return "threadgroup_barrier";
  }
  return "?";
}

}  // namespace

bool Site::operator==(const Site& other) const {
  return line == other.line && op == other.op &&
         (file == other.file || std::strcmp(file, other.file) == 0);
}

std::string Site::to_string() const {
  return std::string(name_of(op)) + " at " + file + ":" + std::to_string(line);
}

Threadgroup::Threadgroup(const SimtDispatch& dispatch,
                         const uint64_t* bindings,
                         Counters& counters,
                         Monitor* monitor)
    : dispatch_(dispatch),
      bindings_(bindings),
      counters_(counters),
      monitor_(monitor) {
  const uint32_t* size = dispatch.threads;
  uint32_t count = size[0] * size[1] * size[2];
  threads_.resize(count);
  simdgroups_.resize((count + kLanes - 1) / kLanes);
  order_.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    SimtThreadIds& ids = threads_[i].ids;
    ids.lane = i % kLanes;
    ids.simdgroup = i / kLanes;
    ids.index = i;
    ids.threads = count;
    ids.thread_in_group[0] = i % size[0];
    ids.thread_in_group[1] = i / size[0] % size[1];
    ids.thread_in_group[2] = i / (size[0] * size[1]);
    std::copy_n(size, 3, ids.group_size);
    std::copy_n(dispatch.grid, 3, ids.grid_size);
  }
}

std::optional<Finding> Threadgroup::run(const uint32_t position[3],
                                        uint64_t seed) {
  start(position, seed);
  active_threadgroup = this;
  running_ = order_[0];
  simt_switch(&outside_, threads_[running_].fiber.stack_pointer);
  running_ = kNone;
  active_threadgroup = nullptr;
  if (stopped_) {
    std::copy_n(position, 3, stopped_->group);
  }
  return std::exchange(stopped_, std::nullopt);
}

void Threadgroup::start(const uint32_t position[3], uint64_t seed) {
  exited_ = 0;
  at_barrier_ = 0;
  // Shuffle the simdgroups, and the lanes of each: a kernel that is correct
  // only if thread 0 runs first fails for some seed.
  std::minstd_rand random(static_cast<uint32_t>(seed) | 1);
  std::vector<uint32_t> groups(simdgroups_.size());
  std::iota(groups.begin(), groups.end(), 0);
  std::shuffle(groups.begin(), groups.end(), random);
  auto count = static_cast<uint32_t>(threads_.size());
  uint32_t place = 0;
  for (uint32_t g : groups) {
    Simdgroup& group = simdgroups_[g];
    group.first = place;
    group.size = std::min(kLanes, count - g * kLanes);
    group.live = group.size;
    group.arrived = 0;
    group.waiting_at_barrier = 0;
    std::memset(group.slots, 0, sizeof group.slots);
    auto lanes = order_.begin() + place;
    std::iota(lanes, lanes + group.size, g * kLanes);
    std::shuffle(lanes, lanes + group.size, random);
    place += group.size;
  }
  for (uint32_t p = 0; p < count; ++p) {
    Thread& t = threads_[order_[p]];
    t.place = p;
    t.state = State::kReady;
    t.fiber.reset(&Threadgroup::thread_main, order_[p]);
    std::copy_n(position, 3, t.ids.group_in_grid);
  }
}

void Threadgroup::thread_main() {
  Threadgroup& group = *active_threadgroup;
  group.dispatch_.entry(group.bindings_);
  group.exit_current();
}

void Threadgroup::switch_to(uint32_t thread) {
  uint32_t from = std::exchange(running_, thread);
  simt_switch(&threads_[from].fiber.stack_pointer,
              threads_[thread].fiber.stack_pointer);
}

// Takes the own simdgroup first, so that 32 stacks stay in the cache.
void Threadgroup::run_another() {
  if (monitor_) {
    monitor_->thread_pauses();
  }
  auto try_places = [&](uint32_t first, uint32_t size, uint32_t after) {
    for (uint32_t step = 1; step <= size; ++step) {
      uint32_t thread = order_[first + (after - first + step) % size];
      if (threads_[thread].state == State::kReady) {
        switch_to(thread);
        return true;
      }
    }
    return false;
  };
  const Thread& me = threads_[running_];
  const Simdgroup& own = simdgroups_[me.ids.simdgroup];
  auto all = static_cast<uint32_t>(order_.size());
  if (try_places(own.first, own.size, me.place) ||
      try_places(0, all, own.first + own.size - 1)) {
    return;
  }
  if (exited_ == all) {
    leave();
  }
  report_deadlock();
}

void Threadgroup::exit_current() {
  Thread& me = threads_[running_];
  Simdgroup& group = simdgroups_[me.ids.simdgroup];
  me.state = State::kExited;
  ++exited_;
  --group.live;
  if (group.arrived != 0 && group.arrived == group.live) {
    fail_if_partial(group, group.site);
    release(group);
  }
  run_another();
  __builtin_unreachable();
}

void Threadgroup::threadgroup_barrier(Site site, uint32_t flags) {
  Thread& me = threads_[running_];
  me.site = site;
  if (at_barrier_ == 0) {
    barrier_ = site;
  } else if (!(barrier_ == site)) {
    stop({.kind = "divergence",
          .text = site.to_string() + ", while " + std::to_string(at_barrier_) +
                  " threads wait for " + barrier_.to_string()});
  }
  if (++at_barrier_ < threads_.size()) {
    me.state = State::kWaiting;
    run_another();
    return;
  }
  at_barrier_ = 0;
  ++counters_.threadgroup_barriers;
  if (monitor_) {
    monitor_->threadgroup_barrier(flags);
  }
  for (Thread& t : threads_) {
    t.state = State::kReady;
  }
}

void Threadgroup::simdgroup_barrier(Site site, uint32_t flags) {
  uint32_t group = threads_[running_].ids.simdgroup;
  if (simdgroups_[group].arrived + 1 == simdgroups_[group].live) {
    ++counters_.simdgroup_barriers;
    if (monitor_) {
      monitor_->simdgroup_barrier(group, flags);
    }
  }
  arrive(site);
}

const uint8_t* Threadgroup::exchange(Site site,
                                     const void* value,
                                     uint32_t bytes) {
  const Thread& me = threads_[running_];
  Simdgroup& group = simdgroups_[me.ids.simdgroup];
  auto& slots = group.slots[group.round % 2];
  std::memcpy(slots[me.ids.lane], value, bytes);
  if (arrive(site)) {
    switch (site.op) {
      case Op::kReduce:
        ++counters_.reductions;
        break;
      case Op::kMatrix:
        ++counters_.matrix_products;
        break;
      case Op::kFixedShuffle:
        counters_.fixed_shuffles += (bytes + 3) / 4;
        break;
      default:
        counters_.shuffles += (bytes + 3) / 4;
    }
  }
  return &slots[0][0];
}

// Waits for the rest of the simdgroup. Returns true for the lane that came
// last.
bool Threadgroup::arrive(Site site) {
  Thread& me = threads_[running_];
  Simdgroup& group = simdgroups_[me.ids.simdgroup];
  me.site = site;
  if (group.arrived == 0) {
    group.site = site;
  } else if (!(group.site == site)) {
    stop({.kind = "divergence",
          .text = site.to_string() + ", while " +
                  std::to_string(group.arrived) + " lanes wait for " +
                  group.site.to_string()});
  }
  if (++group.arrived < group.live) {
    me.state = State::kWaiting;
    run_another();
    return false;
  }
  fail_if_partial(group, site);
  release(group);
  return true;
}

// Lets the lanes continue. The slots of missing lanes read as zero.
void Threadgroup::release(Simdgroup& group) {
  uint32_t first = threads_[order_[group.first]].ids.simdgroup * kLanes;
  for (uint32_t lane = 0; lane < group.size; ++lane) {
    Thread& t = threads_[first + lane];
    if (t.state == State::kExited) {
      std::memset(group.slots[group.round % 2][lane], 0, 16);
    } else {
      t.state = State::kReady;
    }
  }
  group.arrived = 0;
  ++group.round;
  if (monitor_) {
    monitor_->lanes_met(first / kLanes);
  }
}

void Threadgroup::fail_if_partial(const Simdgroup& group, const Site& site) {
  if (group.live == kLanes || dispatch_.flags & kSimtPartialSimdgroups) {
    return;
  }
  stop({.kind = "divergence",
        .text = site.to_string() + " is reached by " +
                std::to_string(group.live) + " of 32 lanes; " +
                std::to_string(group.size - group.live) + " have returned"});
}

void Threadgroup::report_deadlock() {
  std::map<std::string, uint32_t> places;
  for (const Thread& t : threads_) {
    ++places[t.state == State::kExited ? "have returned"
                                       : "wait for " + t.site.to_string()];
  }
  std::string text = "no thread can go on:";
  const char* separator = " ";
  for (const auto& [place, count] : places) {
    text += separator + std::to_string(count) + " " + place;
    separator = ", ";
  }
  Finding finding{.kind = "divergence", .text = text};
  finding.thread = -2;
  stop(finding);
}

void Threadgroup::stop(Finding finding) {
  if (finding.thread == -1) {
    finding.thread = static_cast<int>(threads_[running_].ids.index);
  }
  stopped_ = std::move(finding);
  leave();
}

// Returns to run() and abandons the fibers. Kernels own nothing to release.
void Threadgroup::leave() {
  void* nowhere;
  simt_switch(&nowhere, outside_);
  __builtin_unreachable();
}

bool Threadgroup::stack_overflowed_to(const void* address) const {
  return running_ != kNone && threads_[running_].fiber.guards(address);
}

}  // namespace simt

#include "monitor.h"

#include <algorithm>
#include <sstream>

#include "json.h"

namespace simt {

Monitor* active_monitor = nullptr;

namespace {

// Metal's mem_flags, and the index of their memory in epoch_.
constexpr uint32_t kMemDevice = 1;
constexpr uint32_t kMemThreadgroup = 2;
constexpr size_t kDeviceEpoch = 0;
constexpr size_t kThreadgroupEpoch = 1;

// Findings to report, enough to understand a mistake; the rest are only
// counted.
constexpr size_t kMaxFindings = 16;

}  // namespace

Monitor::Monitor(const void* origin, size_t simdgroups, bool forgive)
    : origin_(static_cast<const char*>(origin)),
      forgive_redundant_(forgive),
      accesses_(simdgroups) {
  for (auto& epochs : simdgroup_epoch_) {
    epochs.assign(simdgroups, 0);
  }
  active_monitor = this;
}

Monitor::~Monitor() {
  active_monitor = nullptr;
}

void Monitor::watch_buffer(const GuardedMemory& memory, bool writable) {
  watch(memory, true, writable);
}

void Monitor::watch_threadgroup(const GuardedMemory& memory) {
  watch(memory, false, true);
}

void Monitor::watch(const GuardedMemory& memory, bool device, bool shadowed) {
  Region& region = regions_.emplace_back();
  region.memory = &memory;
  region.device = device;
  if (shadowed) {
    region.shadow.emplace_back(memory.size(), device);
  }
  if (device) {
    region.was_read.resize(memory.size());
    region.was_written.resize(memory.size());
  }
  counts_.emplace_back();
}

void Monitor::begin_threadgroup(const uint32_t position[3]) {
  std::copy_n(position, 3, position_);
  ++threadgroup_;
}

void Monitor::end_threadgroup() {
  judge_last_write();
  settle_all();
}

void Monitor::threadgroup_barrier(uint32_t flags) {
  epoch_[kDeviceEpoch] += (flags & kMemDevice) != 0;
  epoch_[kThreadgroupEpoch] += (flags & kMemThreadgroup) != 0;
  settle_all();
}

void Monitor::simdgroup_barrier(uint32_t simdgroup, uint32_t flags) {
  simdgroup_epoch_[kDeviceEpoch][simdgroup] += (flags & kMemDevice) != 0;
  simdgroup_epoch_[kThreadgroupEpoch][simdgroup] +=
      (flags & kMemThreadgroup) != 0;
}

void Monitor::lanes_met(uint32_t simdgroup) {
  accesses_[simdgroup].settle(counts_);
}

void Monitor::settle_all() {
  for (uint32_t i = 0; i < accesses_.size(); ++i) {
    lanes_met(i);
  }
}

Monitor::Region* Monitor::region_at(const void* address) {
  if (last_ < regions_.size() && regions_[last_].memory->owns(address)) {
    return &regions_[last_];
  }
  for (size_t i = 0; i < regions_.size(); ++i) {
    if (regions_[i].memory->owns(address)) {
      last_ = i;
      return &regions_[i];
    }
  }
  return nullptr;  // a thread's own stack, a constant, a slot
}

void Monitor::access(const void* address,
                     size_t size,
                     bool write,
                     const void* code) {
  judge_last_write();
  Region* region = region_at(address);
  if (!region) {
    return;
  }
  auto offset = static_cast<const std::byte*>(address) - region->memory->data();
  auto at = static_cast<size_t>(offset);
  if (offset < 0 || at + size > region->memory->size()) {
    out_of_bounds(*region, address, write, code);
    return;
  }
  (write ? region->bytes_written : region->bytes_read) += size;
  if (region->device) {
    auto& seen = write ? region->was_written : region->was_read;
    std::fill_n(seen.begin() + offset, size, true);
  }
  const SimtThreadIds& ids = active_threadgroup->current();
  auto place = static_cast<int32_t>(static_cast<const char*>(code) - origin_);
  accesses_[ids.simdgroup].add(ids.lane,
                               static_cast<int>(region - regions_.data()),
                               at,
                               static_cast<uint32_t>(size),
                               write,
                               place);
  if (region->shadow.empty()) {
    return;
  }
  size_t kind = region->device ? kDeviceEpoch : kThreadgroupEpoch;
  Stamp now{threadgroup_,
            epoch_[kind],
            simdgroup_epoch_[kind][ids.simdgroup],
            static_cast<uint16_t>(ids.index),
            place};
  Shadow& shadow = region->shadow.front();
  auto conflict =
      write ? shadow.write(at, size, now) : shadow.read(at, size, now);
  if (conflict.kind == Shadow::Conflict::Kind::kNone) {
    return;
  }
  if (write && conflict.other_wrote && forgive_redundant_) {
    auto from = static_cast<const std::byte*>(address);
    last_write_.push_back({region, conflict, now, from, {from, from + size}});
  } else {
    report(*region, conflict, write, now);
  }
}

// Two threads may write the same value to the same place if the option allows
// it.
void Monitor::judge_last_write() {
  for (const ConflictingWrite& w : last_write_) {
    if (!std::equal(w.before.begin(), w.before.end(), w.address)) {
      report(*w.region, w.conflict, true, w.now);
    }
  }
  last_write_.clear();
}

void Monitor::report(const Region& region,
                     const Shadow::Conflict& conflict,
                     bool write,
                     const Stamp& now) {
  using Kind = Shadow::Conflict::Kind;
  std::ostringstream text;
  Finding finding;
  finding.code = {origin_ + now.code - 1};
  text << (write ? "a write" : "a read");
  const std::byte* at = region.memory->data() + conflict.offset;
  text << " at " << region.memory->describe(at);
  if (conflict.kind == Kind::kUninitialised) {
    finding.kind = "uninitialised";
    text << ", which no thread has written";
  } else {
    finding.kind = "race";
    text << ", unordered with a " << (conflict.other_wrote ? "write" : "read")
         << " by thread " << conflict.other.thread;
    if (conflict.kind == Kind::kBetweenThreadgroups) {
      text << " of another threadgroup";
    }
    finding.code.push_back(origin_ + conflict.other.code - 1);
  }
  finding.text = text.str();
  finding.thread = now.thread;
  add(std::move(finding));
}

void Monitor::out_of_bounds(const Region& region,
                            const void* address,
                            bool write,
                            const void* code) {
  Finding finding;
  finding.kind = "out of bounds";
  finding.text = std::string(write ? "a write" : "a read") + " at " +
                 region.memory->describe(address);
  finding.thread = static_cast<int>(active_threadgroup->current().index);
  finding.code = {static_cast<const char*>(code) - 1};
  add(std::move(finding));
}

// One mistake at the same lines is one finding with a count.
void Monitor::add(Finding finding) {
  for (Finding& known : findings_) {
    if (known.kind == finding.kind && known.code == finding.code) {
      ++known.count;
      return;
    }
  }
  if (findings_.size() < kMaxFindings) {
    std::copy_n(position_, 3, finding.group);
    findings_.push_back(std::move(finding));
  }
}

std::string Monitor::to_json() const {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < regions_.size(); ++i) {
    const Region& r = regions_[i];
    const RequestCounts& c = counts_[i];
    auto set = [](const std::vector<bool>& bits) {
      return std::count(bits.begin(), bits.end(), true);
    };
    out << (i ? ", " : "") << "{\"name\": " << quoted(r.memory->name())
        << ", \"space\": " << (r.device ? "\"device\"" : "\"threadgroup\"")
        << ", \"bytes\": " << r.memory->size() << ", \"read\": " << r.bytes_read
        << ", \"written\": " << r.bytes_written
        << ", \"unique_read\": " << set(r.was_read)
        << ", \"unique_written\": " << set(r.was_written)
        << ", \"requests\": " << c.requests
        << ", \"requested_bytes\": " << c.bytes
        << ", \"lines_64\": " << c.lines_64
        << ", \"ideal_lines_64\": " << c.ideal_lines_64
        << ", \"lines_128\": " << c.lines_128
        << ", \"ideal_lines_128\": " << c.ideal_lines_128
        << ", \"bank_rounds\": " << c.bank_rounds
        << ", \"ideal_bank_rounds\": " << c.ideal_bank_rounds << "}";
  }
  out << "]";
  return out.str();
}

}  // namespace simt

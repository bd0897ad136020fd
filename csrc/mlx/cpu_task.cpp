#include "csrc/mlx/cpu_task.h"

#include <chrono>
#include <unordered_map>

namespace nibble::cpu_task {
namespace {

// The stream must not run dry while the next node is built, which takes 10 us.
// A node that writes this many bytes takes at least 50 us.
constexpr size_t kAheadBytes = size_t{4} << 20;

// The time limit of a wait. The stream may itself wait for another stream whose
// work this thread has yet to submit. Then we must spend the memory.
constexpr std::chrono::milliseconds kPatience{100};

thread_local Collection* collecting = nullptr;

}  // namespace

Collection::Collection() {
  collecting = this;
}

Collection::~Collection() {
  collecting = nullptr;
}

Collection* Collection::current() {
  return collecting;
}

Backlog& Backlog::of(const mx::Stream& stream) {
  // Never destroyed: a stream's thread may outlive static objects.
  static auto& all = *new std::unordered_map<int, Backlog>;
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  return all[stream.index];
}

void Backlog::add(size_t bytes) {
  std::lock_guard lock(mutex_);
  bytes_ += bytes;
  ++tasks_;
}

void Backlog::finish(size_t bytes) {
  {
    std::lock_guard lock(mutex_);
    bytes_ -= bytes;
    --tasks_;
  }
  finished_.notify_all();
}

bool Backlog::wait() {
  std::unique_lock lock(mutex_);
  return finished_.wait_for(
      lock, kPatience, [&] { return bytes_ <= kAheadBytes || tasks_ <= 1; });
}

}  // namespace nibble::cpu_task

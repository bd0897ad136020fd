#include "csrc/cpu/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "csrc/core/error.h"

namespace nibble::cpu {
namespace {

// A worker waits actively for this time before it sleeps. To wake a thread
// costs some 10 to 50 us, and the products of one layer of a small model follow
// each other within that time.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kMaxThreads = 1024;

int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return CPU_COUNT(&set);
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

int wanted_threads() {
  const char* text = std::getenv("NIBBLE_NUM_THREADS");
  if (!text || !*text) {
    int cpus = usable_cpus();
    return cpus < 1 ? 1 : cpus < kMaxThreads ? cpus : kMaxThreads;
  }
  int count = 0;
  const char* end = text + std::strlen(text);
  auto [rest, error] = std::from_chars(text, end, count);
  require(
      error == std::errc() && rest == end && count >= 1 && count <= kMaxThreads,
      "cpu",
      "NIBBLE_NUM_THREADS must be an integer from 1 to ",
      kMaxThreads,
      " but got '",
      text,
      "'");
  return count;
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  explicit Pool(int workers) {
    threads_.reserve(workers);
    try {
      for (int i = 0; i < workers; ++i) {
        threads_.emplace_back([this] { work(); });
      }
    } catch (const std::exception&) {
      // The system gives no more threads: the existing ones do the work.
    }
  }

  ~Pool() {
    stop_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  // Returns false if another caller uses the pool.
  bool run(int count, void (*body)(void*, int), void* context) {
    std::unique_lock lock(caller_, std::try_to_lock);
    if (!lock.owns_lock()) {
      return false;
    }
    body_ = body;
    context_ = context;
    count_ = count;
    next_ = 0;
    epoch_.fetch_add(1);
    if (asleep_ > 0) {
      epoch_.notify_all();
    }
    take();
    // A worker that is still asleep is not waited for.
    next_ = kClosed;
    for (int tries = 0; active_ > 0; ++tries) {
      if (tries < 1000) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
    if (failed_.exchange(false)) {
      std::rethrow_exception(std::exchange(failure_, nullptr));
    }
    return true;
  }

 private:
  // The value of next_ while there is no work: no item has this number.
  static constexpr int kClosed = 1 << 30;

  void take() {
    try {
      for (int i; (i = next_.fetch_add(1)) < kClosed && i < count_;) {
        body_(context_, i);
      }
    } catch (...) {
      next_ = kClosed;
      if (!failed_.exchange(true)) {
        failure_ = std::current_exception();
      }
    }
  }

  void work() {
    uint32_t seen = 0;
    for (;;) {
      wait_for_other(seen);
      seen = epoch_;
      if (stop_) {
        return;
      }
      // The order matters: if a caller has closed next_ and then finds active_
      // at 0, no worker will read the other members.
      active_.fetch_add(1);
      take();
      active_.fetch_sub(1);
    }
  }

  void wait_for_other(uint32_t seen) {
    using Clock = std::chrono::steady_clock;
    auto is_same = [&] {
      return epoch_.load(std::memory_order_acquire) == seen;
    };
    auto deadline = Clock::now() + kSpin;
    while (is_same()) {
      for (int i = 0; i < 32 && is_same(); ++i) {
        pause();
      }
      if (Clock::now() > deadline) {
        asleep_.fetch_add(1);
        epoch_.wait(seen);
        asleep_.fetch_sub(1);
      }
    }
  }

  std::mutex caller_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stop_ = false;
  std::atomic<int> asleep_ = 0;

  void (*body_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int count_ = 0;
  std::atomic<bool> failed_ = false;
  std::exception_ptr failure_;                   // the first of this call
  alignas(64) std::atomic<uint32_t> epoch_ = 0;  // number of calls so far
  alignas(64) std::atomic<int> next_ = kClosed;  // the next item
  alignas(64) std::atomic<int> active_ = 0;      // workers that take items
};

// The pool starts at its first use and is joined at exit. A forked child has
// none of its parent's threads, so it forgets the pool and starts its own.
class LazyPool {
 public:
  ~LazyPool() { delete pool_.exchange(nullptr); }

  Pool* get() {
    Pool* pool = pool_.load(std::memory_order_acquire);
    return pool ? pool : start();
  }

  void forget() {
    pool_ = nullptr;
    new (&starting_) std::mutex;
  }

 private:
  Pool* start();

  std::atomic<Pool*> pool_ = nullptr;
  std::mutex starting_;
};

LazyPool lazy_pool;

Pool* LazyPool::start() {
  std::lock_guard lock(starting_);
  if (!pool_) {
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { lazy_pool.forget(); });
    static_cast<void>(registered);
    pool_ = new Pool(thread_count() - 1);
  }
  return pool_;
}

void run_alone(int count, void (*body)(void*, int), void* context) {
  for (int i = 0; i < count; ++i) {
    body(context, i);
  }
}

}  // namespace

int thread_count() {
  static const int count = wanted_threads();
  return count;
}

void parallel_for(int count, void (*body)(void*, int), void* context) {
  if (count == 1 || thread_count() == 1 ||
      !lazy_pool.get()->run(count, body, context)) {
    run_alone(count, body, context);
  }
}

}  // namespace nibble::cpu

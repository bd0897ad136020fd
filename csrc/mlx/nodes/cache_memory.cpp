#include "csrc/mlx/nodes/cache_memory.h"

#include <atomic>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "csrc/cpu/pages.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/allocator.h"

namespace nibble::cache_memory {
namespace {

// The number of arrays that are the array `a`. MLX tells only whether it is 1
// and nobody has the memory, not even a task that is done soon.
template <auto Description>
struct Opened {
  friend long references(const mx::array& a) {
    return (a.*Description).use_count();
  }
};
long references(const mx::array& a);
template struct Opened<&mx::array::array_desc_>;

// Memory of which less is not worth a large page.
constexpr size_t kLeastMoved = size_t{64} << 10;

// The facts about the memory of caches.
class Known {
 public:
  // The steps that have yet to write to some memory, and for each of which MLX
  // keeps the memory until its task is done.
  static std::shared_ptr<void> add_writer(const mx::array& a) {
    auto state = of(a, true);
    ++state->writers;
    return {nullptr, [state](void*) { --state->writers; }};
  }

  // True if only `a` and these steps have the memory of `a`. The stream runs
  // tasks in turn, so another step may then write to it.
  static bool alone(const mx::array& a) {
    // In this order: a step that ends in between makes it false.
    long uses = a.data_shared_ptr().use_count();
    auto state = of(a, false);
    return uses - (state ? state->writers.load() : 0) == 1;
  }

  // Moves the memory of `a` to large pages, once.
  static void move(const mx::array& a) {
    if (a.nbytes() >= kLeastMoved && !of(a, true)->moved.exchange(true)) {
      cpu::move_to_large_pages(a.data<void>(), a.nbytes());
    }
  }

 private:
  struct State {
    std::atomic<long> writers = 0;
    std::atomic<bool> moved = false;
  };
  struct Entry {
    std::weak_ptr<mx::array::Data> memory;
    std::shared_ptr<State> state;
  };

  static std::shared_ptr<State> of(const mx::array& a, bool make) {
    static std::mutex mutex;
    // Never destroyed: a stream's thread may outlive static objects.
    static auto& entries = *new std::unordered_map<const void*, Entry>;
    static size_t next_sweep = 256;
    std::lock_guard lock(mutex);
    const std::shared_ptr<mx::array::Data>& memory = a.data_shared_ptr();
    auto found = entries.find(memory.get());
    if (found != entries.end() && !found->second.memory.expired()) {
      return found->second.state;
    }
    if (!make) {
      return nullptr;
    }
    if (entries.size() >= next_sweep) {
      std::erase_if(entries,
                    [](const auto& e) { return e.second.memory.expired(); });
      next_sweep = 2 * entries.size() + 256;
    }
    Entry entry{memory, std::make_shared<State>()};
    entries[memory.get()] = entry;
    return entry.state;
  }
};

// True if MLX may write to this memory. Before 0.32.4 it had no other.
template <typename Data>
bool is_writable(const Data& data) {
  if constexpr (requires { data.is_owned(); }) {
    return data.is_owned();
  }
  return true;
}

}  // namespace

std::shared_ptr<void> add_writer(const mx::array& a) {
  return Known::add_writer(a);
}

void take_over(const mx::array& in, mx::array& out, const mx::Stream& stream) {
  if (in.flags().row_contiguous && is_writable(*in.data_shared_ptr()) &&
      references(in) == 1 && Known::alone(in)) {
    out.copy_shared_buffer(in);
    Known::move(out);
    return;
  }
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream,
                     {},
                     [from = bridge::RowContiguous(in),
                      to = out.data<std::byte>(),
                      count = out.nbytes()]() mutable {
                       std::memcpy(to, from.data(), count);
                     });
}

}  // namespace nibble::cache_memory

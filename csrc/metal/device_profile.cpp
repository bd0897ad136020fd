#include "csrc/metal/device_profile.h"

#include <mutex>
#include <optional>

namespace nibble::metal {
namespace {

constexpr std::string_view kPrefix = "applegpu_g";

constexpr bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

struct Facts {
  std::mutex mutex;
  std::function<GpuFacts()> find;
  std::optional<GpuFacts> known;
};

Facts& facts() {
  static Facts the_facts;
  return the_facts;
}

}  // namespace

DeviceProfile parse_architecture(std::string_view architecture) {
  DeviceProfile profile;
  if (!architecture.starts_with(kPrefix)) {
    return profile;
  }
  std::string_view suffix = architecture.substr(kPrefix.size());
  if (suffix.size() < 3 || suffix.size() > 4) {
    return profile;
  }
  char tier = suffix.back();
  if (tier != 'g' && tier != 's' && tier != 'd' && tier != 'p') {
    return profile;
  }
  int generation = 0;
  for (char c : suffix.substr(0, suffix.size() - 1)) {
    if (!is_digit(c)) {
      return profile;
    }
    generation = generation * 10 + (c - '0');
  }
  profile.generation = generation;
  profile.tier = tier;
  return profile;
}

void set_facts(std::function<GpuFacts()> find) {
  Facts& f = facts();
  std::lock_guard lock(f.mutex);
  f.find = std::move(find);
  f.known.reset();
}

DeviceProfile with_facts(DeviceProfile profile) {
  Facts& f = facts();
  std::function<GpuFacts()> find;
  {
    std::lock_guard lock(f.mutex);
    find = f.known ? nullptr : f.find;
  }
  // It runs Python code, so it must not run under the lock. Two threads may
  // both ask; they get the same answer.
  std::optional<GpuFacts> found;
  if (find) {
    found = find();
  }
  std::lock_guard lock(f.mutex);
  if (found) {
    f.known = found;
  }
  if (f.known) {
    profile.cores = f.known->cores;
    profile.neural = f.known->neural;
    profile.tf32 = f.known->tf32;
  }
  return profile;
}

}  // namespace nibble::metal

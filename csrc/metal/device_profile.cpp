#include "csrc/metal/device_profile.h"

namespace nibble::metal {
namespace {

constexpr std::string_view kPrefix = "applegpu_g";

constexpr bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

}  // namespace

DeviceProfile parse_architecture(std::string_view architecture) {
  DeviceProfile profile;
  if (!architecture.starts_with(kPrefix)) {
    return profile;
  }
  std::string_view suffix = architecture.substr(kPrefix.size());
  if (suffix.size() != 3 || !is_digit(suffix[0]) || !is_digit(suffix[1])) {
    return profile;
  }
  char tier = suffix[2];
  if (tier != 'g' && tier != 's' && tier != 'd' && tier != 'p') {
    return profile;
  }
  profile.generation = (suffix[0] - '0') * 10 + (suffix[1] - '0');
  profile.tier = tier;
  return profile;
}

}  // namespace nibble::metal

// The wording of all our errors: "[op] what was required but got X."
#pragma once

#include <sstream>
#include <stdexcept>
#include <string_view>

namespace nibble {

// Throws std::invalid_argument, which reaches Python as ValueError.
template <typename... Parts>
[[noreturn]] void fail(std::string_view op, const Parts&... parts) {
  std::ostringstream message;
  message << '[' << op << "] ";
  (message << ... << parts);
  message << '.';
  throw std::invalid_argument(message.str());
}

template <typename... Parts>
void require(bool condition, std::string_view op, const Parts&... parts) {
  if (!condition) {
    fail(op, parts...);
  }
}

}  // namespace nibble

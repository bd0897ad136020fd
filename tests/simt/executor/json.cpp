#include "json.h"

#include <dlfcn.h>

#include <cstdio>
#include <sstream>

#include "monitor.h"

namespace simt {
namespace {

// Writes {"object": path, "offset": n} for an address in a loaded library.
std::string place(const void* code) {
  Dl_info info{};
  std::ostringstream out;
  if (dladdr(code, &info) && info.dli_fname) {
    auto offset = static_cast<const char*>(code) -
                  static_cast<const char*>(info.dli_fbase);
    out << "{\"object\": " << quoted(info.dli_fname)
        << ", \"offset\": " << offset << "}";
  } else {
    out << "null";
  }
  return out.str();
}

void write(std::ostringstream& out, const Finding& f) {
  out << "{\"kind\": " << quoted(f.kind) << ", \"text\": " << quoted(f.text)
      << ", \"group\": [" << f.group[0] << ", " << f.group[1] << ", "
      << f.group[2] << "], \"thread\": " << f.thread
      << ", \"count\": " << f.count << ", \"code\": [";
  for (size_t i = 0; i < f.code.size(); ++i) {
    out << (i ? ", " : "") << place(f.code[i]);
  }
  out << "]}";
}

}  // namespace

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string to_json(const std::vector<Finding>& findings,
                    const Counters& c,
                    const Monitor* monitor) {
  std::ostringstream out;
  out << "{\"findings\": [";
  for (size_t i = 0; i < findings.size(); ++i) {
    out << (i ? ", " : "");
    write(out, findings[i]);
  }
  out << "], \"counters\": {\"threadgroups\": " << c.threadgroups
      << ", \"threads\": " << c.threads
      << ", \"threadgroup_barriers\": " << c.threadgroup_barriers
      << ", \"simdgroup_barriers\": " << c.simdgroup_barriers
      << ", \"shuffles\": " << c.shuffles
      << ", \"fixed_shuffles\": " << c.fixed_shuffles
      << ", \"reductions\": " << c.reductions
      << ", \"matrix_products\": " << c.matrix_products
      << ", \"threadgroup_bytes\": " << c.threadgroup_bytes << "}";
  if (monitor) {
    out << ", \"memory\": " << monitor->to_json();
  }
  out << "}";
  return out.str();
}

}  // namespace simt

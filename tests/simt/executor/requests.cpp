#include "requests.h"

#include <algorithm>
#include <map>
#include <unordered_map>

namespace simt {
namespace {

constexpr uint64_t kBlock = 16;   // the widest load of a lane
constexpr size_t kLookBack = 16;  // last accesses that may belong to a vector
constexpr uint64_t kBanks = 32;
constexpr uint64_t kBankBytes = 4;

struct Span {
  uint64_t first, last;  // addresses, the last one inside
};

// Number of distinct aligned units of `unit` bytes that the spans touch.
uint64_t touched(std::vector<Span> spans, uint64_t unit) {
  std::vector<uint64_t> units;
  for (const Span& s : spans) {
    for (uint64_t u = s.first / unit; u <= s.last / unit; ++u) {
      units.push_back(u);
    }
  }
  std::sort(units.begin(), units.end());
  auto end = std::unique(units.begin(), units.end());
  return static_cast<uint64_t>(end - units.begin());
}

uint64_t distinct_bytes(std::vector<Span>& spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return a.first < b.first;
  });
  uint64_t bytes = 0, next = 0;
  for (const Span& s : spans) {
    uint64_t from = std::max(s.first, next);
    if (s.last + 1 > from) {
      bytes += s.last + 1 - from;
      next = s.last + 1;
    }
  }
  return bytes;
}

// The largest number of words that one bank serves. It serves a word once for
// all lanes.
uint64_t bank_rounds(const std::vector<Span>& spans, uint64_t* words_wanted) {
  std::vector<uint64_t> words;
  for (const Span& s : spans) {
    for (uint64_t w = s.first / kBankBytes; w <= s.last / kBankBytes; ++w) {
      words.push_back(w);
    }
  }
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  std::array<uint64_t, kBanks> load{};
  for (uint64_t w : words) {
    ++load[w % kBanks];
  }
  *words_wanted = words.size();
  return *std::max_element(load.begin(), load.end());
}

constexpr uint64_t ceil_div(uint64_t a, uint64_t b) {
  return (a + b - 1) / b;
}

void count(std::vector<Span>& spans, RequestCounts& to) {
  uint64_t bytes = distinct_bytes(spans);
  uint64_t words = 0;
  ++to.requests;
  to.bytes += bytes;
  to.lines_64 += touched(spans, 64);
  to.ideal_lines_64 += ceil_div(bytes, 64);
  to.lines_128 += touched(spans, 128);
  to.ideal_lines_128 += ceil_div(bytes, 128);
  to.bank_rounds += bank_rounds(spans, &words);
  to.ideal_bank_rounds += ceil_div(words, kBanks);
}

}  // namespace

void SimdgroupAccesses::add(uint32_t lane,
                            int region,
                            uint64_t address,
                            uint32_t size,
                            bool write,
                            int32_t code) {
  auto& log = lanes_[lane];
  size_t oldest = log.size() > kLookBack ? log.size() - kLookBack : 0;
  for (size_t i = log.size(); i > oldest; --i) {
    Access& a = log[i - 1];
    uint64_t first = std::min(a.address, address);
    uint64_t end = std::max(a.address + a.size, address + size);
    bool touch = address <= a.address + a.size && a.address <= address + size;
    if (touch && a.region == region && a.write == write &&
        first / kBlock == (end - 1) / kBlock) {
      a.address = first;
      a.size = static_cast<uint32_t>(end - first);
      return;
    }
  }
  log.push_back({address, size, code, static_cast<int16_t>(region), write});
}

void SimdgroupAccesses::settle(std::vector<RequestCounts>& counts) {
  struct Request {
    int region;
    std::vector<Span> spans;
  };
  // By place in the kernel and by the number of the access there.
  std::unordered_map<uint64_t, Request> requests;
  std::unordered_map<int32_t, uint32_t> turns;
  for (auto& log : lanes_) {
    turns.clear();
    for (const Access& a : log) {
      uint64_t key =
          uint64_t{static_cast<uint32_t>(a.code)} << 32 | turns[a.code]++;
      Request& request = requests[key];
      request.region = a.region;
      request.spans.push_back({a.address, a.address + a.size - 1});
    }
    log.clear();
  }
  for (auto& [key, request] : requests) {
    count(request.spans, counts[static_cast<size_t>(request.region)]);
  }
}

}  // namespace simt

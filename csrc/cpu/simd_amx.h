// AVX-512 with VNNI, and AMX: registers with 16 rows of 64 bytes.
#pragma once

#include "csrc/cpu/simd_avx512_vnni.h"

namespace nibble::cpu {
namespace {

struct Amx : Avx512Vnni {
  // One row of 65536 x 4096, 4 bits, is read with 38 GB/s by two cores of
  // a Xeon. One stream with prefetches 8 KB ahead reaches 19.
  static constexpr int kRowStreams = 4;
  static constexpr int kAhead = 2 * 1024;

  // While an object lives, left tiles have `rows` rows of `depth` bytes, right
  // tiles depth / 4 rows of 16 words, and tiles of sums `rows` rows of 16
  // words.
  class Tiles {
   public:
    Tiles(int rows, int depth) {
      struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
      } config;
      auto set = [&](int tile, int tile_rows, int bytes) {
        config.rows[tile] = static_cast<uint8_t>(tile_rows);
        config.row_bytes[tile] = static_cast<uint16_t>(bytes);
      };
      for (int sum = 0; sum < 4; ++sum) set(sum, rows, 64);
      for (int i = 0; i < 2; ++i) {
        set(4 + i, rows, depth);    // left
        set(6 + i, depth / 4, 64);  // right
      }
      // The compiler may not know that all of it is read.
      asm volatile("" : : "r"(&config) : "memory");
      _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
  };

  // GCC takes numbers of tiles as they are: 0 to 3 are sums [left, right], 4
  // and 5 left tiles, 6 and 7 right ones.

  template <int kLeft, int kRight>
  static void clear_tile() {
    if constexpr (kLeft == 0 && kRight == 0) _tile_zero(0);
    if constexpr (kLeft == 0 && kRight == 1) _tile_zero(1);
    if constexpr (kLeft == 1 && kRight == 0) _tile_zero(2);
    if constexpr (kLeft == 1 && kRight == 1) _tile_zero(3);
  }

  // Rows `stride` bytes apart.
  template <int kLeft>
  static void load_left(const void* p, size_t stride) {
    if constexpr (kLeft == 0) _tile_loadd(4, p, stride);
    if constexpr (kLeft == 1) _tile_loadd(5, p, stride);
  }

  template <int kRight>
  static void load_right(const int32_t* p) {
    if constexpr (kRight == 0) _tile_loadd(6, p, 64);
    if constexpr (kRight == 1) _tile_loadd(7, p, 64);
  }

  // sums [kLeft, kRight] += the products of the two tiles of signed and
  // unsigned bytes.
  template <int kLeft, int kRight>
  static void add_tile() {
    if constexpr (kLeft == 0 && kRight == 0) _tile_dpbsud(0, 4, 6);
    if constexpr (kLeft == 0 && kRight == 1) _tile_dpbsud(1, 4, 7);
    if constexpr (kLeft == 1 && kRight == 0) _tile_dpbsud(2, 5, 6);
    if constexpr (kLeft == 1 && kRight == 1) _tile_dpbsud(3, 5, 7);
  }

  template <int kLeft, int kRight>
  static void store_tile(void* p, size_t stride) {
    if constexpr (kLeft == 0 && kRight == 0) _tile_stored(0, p, stride);
    if constexpr (kLeft == 0 && kRight == 1) _tile_stored(1, p, stride);
    if constexpr (kLeft == 1 && kRight == 0) _tile_stored(2, p, stride);
    if constexpr (kLeft == 1 && kRight == 1) _tile_stored(3, p, stride);
  }

  // Keeps loads and stores of tiles in order with others: GCC's intrinsics do
  // not say that they read and write memory.
  static void in_order() { asm volatile("" ::: "memory"); }
};

}  // namespace
}  // namespace nibble::cpu

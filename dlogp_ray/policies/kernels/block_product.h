// Products of bfloat16 blocks with sums in float32: what the kernels here are made of.
//
// A block of B's columns is packed once, as pairs of neighbours along the inner size:
// [pairs, COLUMNS, 2], which is what one instruction multiplies. Many rows of A then go over it.
// Measured on one core with two 512-bit units, where 490 GFLOP/s are the most that such sums reach:
// a linear layer's product 450 (torch's own 420), an lm head's of 128 rows 440 (torch's block
// product, brgemm, 360).

#pragma once

#include <c10/util/BFloat16.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace dlogp_ray {

using c10::BFloat16;

constexpr int64_t COLUMNS = 64;  // of a packed block: four vectors of sums
constexpr int64_t ROWS = 6;      // at a time: 24 of 32 registers hold sums
constexpr int64_t LANES = 16;    // of a vector

// The first `count` lanes; all of them where it is more.
inline __mmask16 first_of(int64_t count) {
  return static_cast<__mmask16>(count < LANES ? (1u << count) - 1 : 0xffff);
}

struct Free {
  void operator()(uint32_t* memory) const { std::free(memory); }
};
using Packed = std::unique_ptr<uint32_t, Free>;

inline Packed allocate_packed(int64_t blocks, int64_t pairs) {
  Packed packed(static_cast<uint32_t*>(std::aligned_alloc(64, blocks * pairs * COLUMNS * 4)));
  if (!packed) throw std::bad_alloc();
  return packed;
}

// 16 x 16 pairs, transposed; rows beyond `rows` and pairs beyond `pairs` count as 0.
inline void transpose16(const BFloat16* from, int64_t stride, int64_t rows, int64_t pairs,
                        uint32_t* to) {
  const auto kept = first_of(pairs);
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) {
    a[i] = i < rows ? _mm512_maskz_loadu_epi32(kept, from + i * stride) : _mm512_setzero_si512();
  }
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
    a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
  }
  for (int i = 0; i < pairs; ++i) _mm512_store_si512(to + i * COLUMNS, a[i]);
}

// Columns of B that lie as rows: [columns, 2 * pairs] with `stride` -> [pairs, COLUMNS, 2].
inline void pack_rows(const BFloat16* from, int64_t stride, int64_t columns, int64_t pairs,
                      uint32_t* to) {
  for (int64_t j = 0; j < columns; j += LANES) {
    for (int64_t pair = 0; pair < pairs; pair += LANES) {
      transpose16(from + j * stride + 2 * pair, stride, std::min(LANES, columns - j),
                  std::min(LANES, pairs - pair), to + pair * COLUMNS + j);
    }
  }
}

// B as it is: [rows, columns] with `stride` -> [(rows + 1) / 2, COLUMNS, 2], an odd row with zeros.
inline void pack_columns(const BFloat16* from, int64_t stride, int64_t columns, int64_t rows,
                         uint32_t* to) {
  for (int64_t row = 0; row < rows; row += 2) {
    for (int64_t j = 0; j < columns; j += LANES) {
      const auto kept = first_of(columns - j);
      const auto* one = from + row * stride + j;
      const __m256i first = _mm256_maskz_loadu_epi16(kept, one);
      const __m256i second = row + 1 < rows ? _mm256_maskz_loadu_epi16(kept, one + stride)
                                            : _mm256_setzero_si256();
      const __m512i pairs = _mm512_or_si512(
          _mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
      _mm512_store_si512(to + row / 2 * COLUMNS + j, pairs);
    }
  }
}

// A row of 16 sums, its first `count` of them, as float32 or rounded to bfloat16.
inline void store(float* to, __m512 sums, __mmask16 count) { _mm512_mask_storeu_ps(to, count, sums); }
inline void store(BFloat16* to, __m512 sums, __mmask16 count) {
  _mm256_mask_storeu_epi16(to, count, (__m256i)_mm512_cvtneps_pbh(sums));
}

template <int M, int VECTORS, typename Out>
inline void multiply_rows(int64_t pairs, const BFloat16* a, int64_t a_stride, const uint32_t* packed,
                          Out* out, int64_t out_stride, __mmask16 last, const char* next,
                          int64_t step) {
  __m512 sums[M][VECTORS];
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < VECTORS; ++j) sums[i][j] = _mm512_setzero_ps();
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    _mm_prefetch(next + pair * step, _MM_HINT_T1);
    __m512bh b[VECTORS];
    for (int j = 0; j < VECTORS; ++j) {
      b[j] = (__m512bh)_mm512_load_si512(packed + pair * COLUMNS + j * LANES);
    }
    for (int i = 0; i < M; ++i) {
      int32_t both;
      std::memcpy(&both, a + i * a_stride + 2 * pair, sizeof(both));
      const __m512bh row = (__m512bh)_mm512_set1_epi32(both);
      for (int j = 0; j < VECTORS; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], row, b[j]);
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < VECTORS; ++j) {
      store(out + i * out_stride + j * LANES, sums[i][j], j + 1 < VECTORS ? first_of(LANES) : last);
    }
  }
}

template <int VECTORS, typename Out>
void multiply_block(int64_t rows, int64_t pairs, const BFloat16* a, int64_t a_stride,
                    const uint32_t* packed, Out* out, int64_t out_stride, __mmask16 last,
                    const char* next, int64_t next_bytes) {
  // Each pair of each group of rows asks for a little more of what is packed next.
  const int64_t step = next_bytes * ROWS / (std::max(rows, ROWS) * pairs) + (next_bytes > 0);
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) {
    multiply_rows<ROWS, VECTORS>(pairs, a + row * a_stride, a_stride, packed,
                                 out + row * out_stride, out_stride, last, next, step);
    next += step * pairs;
  }
  const auto* rest = a + row * a_stride;
  Out* to = out + row * out_stride;
  switch (rows - row) {
#define DLOGP_RAY_ROWS(M) \
  case M: \
    return multiply_rows<M, VECTORS>(pairs, rest, a_stride, packed, to, out_stride, last, next, step);
    DLOGP_RAY_ROWS(1) DLOGP_RAY_ROWS(2) DLOGP_RAY_ROWS(3) DLOGP_RAY_ROWS(4) DLOGP_RAY_ROWS(5)
#undef DLOGP_RAY_ROWS
  }
}

// out[rows, columns] = A[rows, 2 * pairs] times one packed block, of which `columns` are real.
// `next`: memory that is packed next, and is asked for meanwhile.
template <typename Out>
void multiply(int64_t rows, int64_t columns, int64_t pairs, const BFloat16* a, int64_t a_stride,
              const uint32_t* packed, Out* out, int64_t out_stride, const void* next = nullptr,
              int64_t next_bytes = 0) {
  const auto last = first_of((columns - 1) % LANES + 1);
  const auto* soon = static_cast<const char*>(next);
  switch ((columns + LANES - 1) / LANES) {
#define DLOGP_RAY_VECTORS(N)                                                                  \
  case N:                                                                                     \
    return multiply_block<N>(rows, pairs, a, a_stride, packed, out, out_stride, last, soon,   \
                             next_bytes);
    DLOGP_RAY_VECTORS(1) DLOGP_RAY_VECTORS(2) DLOGP_RAY_VECTORS(3) DLOGP_RAY_VECTORS(4)
#undef DLOGP_RAY_VECTORS
  }
}

}  // namespace dlogp_ray

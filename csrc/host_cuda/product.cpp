#include "host_cuda/product.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <cmath>
#include <cstring>

namespace ik::host_cuda {
namespace {

// To 24 bits of mantissa, towards zero. (Below float's normal range the cast that follows rounds once more.)
double cut_off(double v) {
  constexpr uint64_t kBelowFloat = (uint64_t{1} << 29) - 1;
  return std::bit_cast<double>(std::bit_cast<uint64_t>(v) & ~kBelowFloat);
}

float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
uint32_t bits_of(float v) { return std::bit_cast<uint32_t>(v); }

template <typename T>
uint32_t bits_of_pair(const T (&pair)[2]) {
  uint32_t bits;
  memcpy(&bits, pair, sizeof bits);
  return bits;
}

template <typename Pack>
uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c, Operand operand, Pack pack) {
  double result[2];
  for (int i = 0; i < 2; ++i) {
    const auto value = [&](uint32_t pair) { return operand_value(static_cast<uint16_t>(pair >> (16 * i)), operand); };
    result[i] = std::fma(value(a), value(b), value(c));
  }
  return pack(result[0], result[1]);
}

}  // namespace

double operand_value(uint16_t bits, Operand operand) {
  if (operand == Operand::kBf16) return float_of(static_cast<uint32_t>(bits) << 16);
  __half value;
  memcpy(&value, &bits, sizeof value);
  return __half2float(value);
}

double tf32_value(uint32_t bits) {
  constexpr uint32_t kIgnored = 0x1fff;
  return float_of(bits & ~kIgnored);
}

void multiply(double* d, const double* a, const double* b, int rows, int N, int depth, int kept) {
  for (int row = 0; row < rows; ++row) {
    double* sums = d + int64_t{row} * N;
    for (int first = 0; first < depth; first += kept) {
      for (int k = first; k < first + kept; ++k) {
        const double factor = a[row * depth + k];
        for (int n = 0; n < N; ++n) sums[n] += factor * b[int64_t{k} * N + n];
      }
      for (int n = 0; n < N; ++n) sums[n] = cut_off(sums[n]);
    }
  }
}

uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return fma_pairs(a, b, c, Operand::kBf16, [](double low, double high) {
    const __nv_bfloat16 pair[] = {__double2bfloat16(low), __double2bfloat16(high)};
    return bits_of_pair(pair);
  });
}

uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c) {
  return fma_pairs(a, b, c, Operand::kFp16, [](double low, double high) {
    const __half pair[] = {__double2half(low), __double2half(high)};
    return bits_of_pair(pair);
  });
}

uint32_t round_to_tf32(float v) {
  constexpr uint32_t kExponent = 0x7f800000, kHalf = 0x1000, kIgnored = 0x1fff;
  const uint32_t bits = bits_of(v);
  return (bits & kExponent) == kExponent ? bits : (bits + kHalf) & ~kIgnored;
}

}  // namespace ik::host_cuda

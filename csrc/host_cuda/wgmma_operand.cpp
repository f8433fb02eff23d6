#include "host_cuda/wgmma_operand.h"

#include "host_cuda/machine.h"
#include "host_cuda/memory.h"
#include "host_cuda/product.h"
#include "host_cuda/swizzle.h"

namespace ik::host_cuda {
namespace {

constexpr int kChunkElements = 8;  // 16 bytes

struct Layout {
  uint32_t start, leading, stride;
  int swizzle;

  explicit Layout(uint64_t descriptor)
      : start(field(descriptor, 0)), leading(field(descriptor, 16)), stride(field(descriptor, 32)) {
    constexpr int kModes[] = {kSwizzleNone, kSwizzle128, kSwizzle64, kSwizzle32};
    swizzle = kModes[descriptor >> 62];
  }

  // Where 16 bytes begin: `line` counts along the strided dimension, `chunk` along the contiguous one.
  uint32_t chunk_k_major(int row, int chunk) const {
    const uint32_t group = static_cast<uint32_t>(row / 8) * stride;
    const uint32_t line = static_cast<uint32_t>(row % 8) * swizzle_span(swizzle);
    const uint32_t column = static_cast<uint32_t>(chunk) * (swizzle == kSwizzleNone ? leading : 16);
    return swizzled(start + group + line + column, swizzle);
  }
  uint32_t chunk_mn_major(int k, int chunk) const {
    const uint32_t span_chunks = swizzle_span(swizzle) / 16;
    const uint32_t span = static_cast<uint32_t>(chunk) / span_chunks;
    const uint32_t within = static_cast<uint32_t>(chunk) % span_chunks * 16;
    const uint32_t group = static_cast<uint32_t>(k / 8);
    const uint32_t line = static_cast<uint32_t>(k % 8) * swizzle_span(swizzle);
    const bool plain = swizzle == kSwizzleNone;
    const uint32_t along_mn = span * (plain ? stride : leading);
    const uint32_t along_k = group * (plain ? leading : stride);
    return swizzled(start + along_mn + along_k + line + within, swizzle);
  }

 private:
  static uint32_t field(uint64_t descriptor, int shift) {
    constexpr uint64_t kMask = 0x3fff;
    return static_cast<uint32_t>((descriptor >> shift) & kMask) << 4;
  }
};

// Calls body(address, first row, first k) for every 16 bytes of the operand.
template <typename Body>
void for_chunks(const WgmmaOperand& operand, Body body) {
  const Layout layout(operand.descriptor);
  const int lines = operand.transpose ? 16 : operand.rows;
  const int chunks = (operand.transpose ? operand.rows : 16) / kChunkElements;
  for (int line = 0; line < lines; ++line) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first = chunk * kChunkElements;
      if (operand.transpose) {
        body(layout.chunk_mn_major(line, chunk), first, line);
      } else {
        body(layout.chunk_k_major(line, chunk), line, first);
      }
    }
  }
}

// The descriptor has no room for the block's rank: operands are the block's own.
uint32_t in_this_block(uint32_t address) { return static_cast<uint32_t>(running->block->rank) << 24 | address; }

template <typename Store>
void load(const WgmmaOperand& operand, Store store) {
  for_chunks(operand, [&](uint32_t address, int row, int k) {
    uint16_t bits[kChunkElements];
    memcpy(bits, shared_pointer(in_this_block(address)), sizeof bits);
    for (int i = 0; i < kChunkElements; ++i) {
      const double value = operand_value(bits[i], operand.type);
      if (operand.transpose) {
        store(row + i, k, value);
      } else {
        store(row, k + i, value);
      }
    }
  });
}

}  // namespace

void check_operand(const WgmmaOperand& operand, const Accessor& accessor, const Site& site) {
  const Layout layout(operand.descriptor);
  const uint32_t pattern = 8 * swizzle_span(layout.swizzle);
  if (layout.swizzle != kSwizzleNone && layout.start % pattern >= swizzle_span(layout.swizzle)) {
    report("wgmma", site, "a swizzled operand begins in row %u of its pattern of 8, not in row 0",
           layout.start % pattern / swizzle_span(layout.swizzle));
  }
  for_chunks(operand, [&](uint32_t address, int, int) {
    check_shared(in_this_block(address), sizeof(uint16_t) * kChunkElements, false, accessor, site);
  });
}

std::vector<double> load_rows(const WgmmaOperand& operand) {
  std::vector<double> values(static_cast<size_t>(operand.rows * 16));
  load(operand, [&](int row, int k, double value) { values[static_cast<size_t>(row * 16 + k)] = value; });
  return values;
}

std::vector<double> load_columns(const WgmmaOperand& operand) {
  std::vector<double> values(static_cast<size_t>(operand.rows * 16));
  load(operand, [&](int row, int k, double value) { values[static_cast<size_t>(k * operand.rows + row)] = value; });
  return values;
}

}  // namespace ik::host_cuda

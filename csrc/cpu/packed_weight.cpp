#include "cpu/packed_weight.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace ik::cpu {
namespace {

constexpr uint32_t kMagic = 0x504b4949;  // "IIKP"

struct Header {
  uint32_t magic;
  int32_t format;
  PackedKind kind;
  int32_t C, K, R, S;
  // The order of a dense convolution's weights may depend on these.
  int32_t stride_h, stride_w, dilation_h, dilation_w;
  char name[20];
};
static_assert(sizeof(Header) == kPackedHeaderBytes);

Header make_header(const KernelTable& table, PackedKind kind, const ConvShape& shape) {
  Header header{};
  header.magic = kMagic;
  header.format = table.format;
  header.kind = kind;
  header.C = static_cast<int32_t>(shape.C);
  if (kind != PackedKind::kDepthwise) header.K = static_cast<int32_t>(shape.K);
  if (kind != PackedKind::kPointwise) {
    header.R = static_cast<int32_t>(shape.R);
    header.S = static_cast<int32_t>(shape.S);
  }
  if (kind == PackedKind::kConv2d) {
    header.stride_h = static_cast<int32_t>(shape.stride_h);
    header.stride_w = static_cast<int32_t>(shape.stride_w);
    header.dilation_h = static_cast<int32_t>(shape.dilation_h);
    header.dilation_w = static_cast<int32_t>(shape.dilation_w);
  }
  std::strncpy(header.name, table.name, sizeof header.name - 1);
  return header;
}

std::string describe(const Header& h) {
  return std::string(h.name) + ", kind " + std::to_string(static_cast<int>(h.kind)) + ", C = " + std::to_string(h.C) +
         ", K = " + std::to_string(h.K) + ", window " + std::to_string(h.R) + " x " + std::to_string(h.S) +
         ", stride " + std::to_string(h.stride_h) + " x " + std::to_string(h.stride_w) + ", dilation " +
         std::to_string(h.dilation_h) + " x " + std::to_string(h.dilation_w);
}

}  // namespace

void write_packed_header(const KernelTable& table, PackedKind kind, const ConvShape& shape, void* packed) {
  const Header header = make_header(table, kind, shape);
  std::memcpy(packed, &header, sizeof header);
}

const void* packed_payload(const KernelTable& table, PackedKind kind, const ConvShape& shape, const void* packed) {
  const Header expected = make_header(table, kind, shape);
  Header found;
  std::memcpy(&found, packed, sizeof found);
  if (std::memcmp(&expected, &found, sizeof found) != 0) {
    if (found.magic != kMagic) throw std::runtime_error("the packed weights were not written by a pack function");
    throw std::runtime_error("the weights were packed for " + describe(found) + ", but this call needs " +
                             describe(expected) + ": pack them again");
  }
  return static_cast<const char*>(packed) + kPackedHeaderBytes;
}

}  // namespace ik::cpu

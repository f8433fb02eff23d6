// Packed weights start with a header that says what they are, because their format depends on the instruction set in
// force when they were written.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/kernel_table.h"

namespace ik::cpu {

enum class PackedKind : int32_t { kConv2d = 1, kDepthwise, kPointwise };

constexpr size_t kPackedHeaderBytes = 64;

void write_packed_header(const KernelTable& table, PackedKind kind, const ConvShape& shape, void* packed);

// The weights behind the header. Throws std::runtime_error when they were not written for this table and shape.
const void* packed_payload(const KernelTable& table, PackedKind kind, const ConvShape& shape, const void* packed);

inline void* packed_payload(void* packed) { return static_cast<char*>(packed) + kPackedHeaderBytes; }

}  // namespace ik::cpu

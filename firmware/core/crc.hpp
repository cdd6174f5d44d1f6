/// Check sums.
#pragma once

#include <cstdint>

#include "bytes.hpp"

namespace fajma {

/// CRC-32 of IEEE 802.3 (reflected 0xEDB88320), as zlib's; goes on from `before`.
std::uint32_t crc32(Bytes data, std::uint32_t before = 0);

/// CRC-8 of 1-Wire devices (Maxim application note 27: x^8 + x^5 + x^4 + 1, reflected, from 0).
std::uint8_t crc8_1wire(Bytes data);

}  // namespace fajma

#include "crc.hpp"

namespace fajma {

std::uint32_t crc32(Bytes data, std::uint32_t before) {
    std::uint32_t remainder = ~before;
    for (std::size_t index = 0; index < data.size; ++index) {
        remainder ^= data.data[index];
        for (int bit = 0; bit < 8; ++bit) {
            remainder = remainder >> 1 ^ (0xEDB88320u & (0u - (remainder & 1u)));
        }
    }
    return ~remainder;
}

std::uint8_t crc8_1wire(Bytes data) {
    unsigned remainder = 0;
    for (std::size_t index = 0; index < data.size; ++index) {
        remainder ^= data.data[index];
        for (int bit = 0; bit < 8; ++bit) {
            remainder = remainder >> 1 ^ (0x8Cu & (0u - (remainder & 1u)));
        }
    }
    return static_cast<std::uint8_t>(remainder);
}

}  // namespace fajma

#include "ds18b20.hpp"

#include "crc.hpp"

namespace fajma {
namespace {

constexpr std::size_t scratchpad_bytes = 9;
constexpr std::int32_t power_on_value = 0x0550;  // 85 Cel in sixteenths
constexpr std::int32_t lowest = -55 * 16;
constexpr std::int32_t highest = 125 * 16;

bool all_are(Bytes data, std::uint8_t byte) {
    for (std::size_t index = 0; index < data.size; ++index) {
        if (data.data[index] != byte) {
            return false;
        }
    }
    return true;
}

}  // namespace

Probe read_ds18b20(Bytes scratchpad, std::int32_t& celsius) {
    if (scratchpad.size != scratchpad_bytes) {
        return Probe::garbled;
    }
    // All zero fits its CRC: a bus that is held low would be 0 Cel.
    if (all_are(scratchpad, 0x00) || all_are(scratchpad, 0xFF)) {
        return Probe::absent;
    }
    const std::uint8_t* const raw = scratchpad.data;
    const std::uint8_t configuration = raw[4];  // 0 R1 R0 1 1 1 1 1
    if (crc8_1wire({raw, scratchpad_bytes - 1}) != raw[8] || (configuration & 0x9F) != 0x1F) {
        return Probe::garbled;
    }
    const unsigned undefined = 3u - (configuration >> 5 & 3u);  // 9 to 12 bits
    std::int32_t sixteenths = static_cast<std::int16_t>(raw[1] << 8 | raw[0]);
    sixteenths &= ~static_cast<std::int32_t>((1u << undefined) - 1);
    if (sixteenths == power_on_value) {
        return Probe::power_on;
    }
    if (sixteenths < lowest || sixteenths > highest) {
        return Probe::beyond;
    }
    celsius = sixteenths * 625;
    return Probe::sound;
}

}  // namespace fajma

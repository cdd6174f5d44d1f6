#include "blood_pressure.hpp"

namespace fajma {
namespace {

constexpr std::uint8_t in_kilopascal = 1 << 0;
constexpr std::uint8_t has_time = 1 << 1;
constexpr std::uint8_t has_pulse = 1 << 2;
constexpr std::uint8_t has_user = 1 << 3;
constexpr std::uint8_t has_status = 1 << 4;
constexpr std::uint8_t reserved_flags = 0xE0;

// Of the measurement status: body movement, cuff too loose, improper measurement position.
constexpr std::uint16_t disturbances = 1 << 0 | 1 << 1 | 1 << 5;

std::uint16_t little(const std::uint8_t* at) { return static_cast<std::uint16_t>(at[0] | at[1] << 8); }

/// 1 mm[Hg] is 133.322387415 Pa (BIPM, SI Brochure, 8th edition, table 8).
std::int32_t in_mmhg(std::int32_t kilopascal) {
    const std::int64_t scaled = std::int64_t{kilopascal} * 1000000000;
    return static_cast<std::int32_t>((scaled + 133322387 / 2) / 133322387);
}

}  // namespace

bool read_sfloat(std::uint16_t raw, std::int32_t& value) {
    // Special values have the exponent 0; 0x07FF with another is an ordinary mantissa.
    if (raw >= 0x07FE && raw <= 0x0802) {
        return false;
    }
    std::int64_t scaled = static_cast<std::int16_t>(static_cast<std::uint16_t>(raw << 4)) / 16;
    int exponent = static_cast<std::int16_t>(raw) >> 12;
    for (exponent += 4; exponent > 0; --exponent) {
        scaled *= 10;
    }
    for (; exponent < 0; ++exponent) {
        scaled /= 10;
    }
    if (scaled > INT32_MAX || scaled < INT32_MIN) {
        return false;
    }
    value = static_cast<std::int32_t>(scaled);
    return true;
}

Cuff read_blood_pressure(Bytes value, BloodPressure& pressure) {
    if (value.size < 7) {
        return Cuff::malformed;
    }
    const std::uint8_t flags = value.data[0];
    const std::size_t size = std::size_t{7} + ((flags & has_time) != 0 ? 7 : 0) + ((flags & has_pulse) != 0 ? 2 : 0) +
                             ((flags & has_user) != 0 ? 1 : 0) + ((flags & has_status) != 0 ? 2 : 0);
    if ((flags & reserved_flags) != 0 || value.size != size) {
        return Cuff::malformed;
    }
    if ((flags & has_status) != 0 && (little(value.data + size - 2) & disturbances) != 0) {
        return Cuff::disturbed;
    }
    BloodPressure read;
    constexpr std::int32_t most = 1000 * 10000;  // no pressure, in either unit, and no overflow below
    if (!read_sfloat(little(value.data + 1), read.systolic) || !read_sfloat(little(value.data + 3), read.diastolic) ||
        read.systolic <= 0 || read.systolic > most || read.diastolic <= 0 || read.diastolic > most) {
        return Cuff::no_value;
    }
    if ((flags & in_kilopascal) != 0) {
        read.systolic = in_mmhg(read.systolic);
        read.diastolic = in_mmhg(read.diastolic);
    }
    if ((flags & has_pulse) != 0) {
        const std::size_t at = 7 + ((flags & has_time) != 0 ? 7 : 0);
        read.has_pulse = read_sfloat(little(value.data + at), read.pulse) && read.pulse > 0;
    }
    pressure = read;
    return Cuff::sound;
}

}  // namespace fajma

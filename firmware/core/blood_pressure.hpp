/// What a cuff says over Bluetooth: the Blood Pressure Measurement characteristic, 0x2A35 (Bluetooth SIG,
/// Blood Pressure Service 1.1.1, section 3.1), with SFLOAT of IEEE 11073-20601.
#pragma once

#include <cstdint>

#include "bytes.hpp"

namespace fajma {

/// A 16-bit float of IEEE 11073-20601: mantissa * 10^exponent. Args: `value` is in units of 1/10 000.
///
/// False for NaN, NRes, both infinities, what is reserved, and what does not fit 32 bits.
bool read_sfloat(std::uint16_t raw, std::int32_t& value);

enum class Cuff : std::uint8_t {
    sound,
    malformed,  ///< another length than its flags say, or flags that we do not know
    no_value,   ///< the cuff has measured and found nothing: NaN and its like
    disturbed,  ///< it moved, sat loose or at the wrong height: not to be believed
};

struct BloodPressure {
    std::int32_t systolic = 0;   ///< mm[Hg], in units of 1/10 000
    std::int32_t diastolic = 0;  ///< likewise
    bool has_pulse = false;
    std::int32_t pulse = 0;  ///< /min, likewise
};

/// Args: `value` is the characteristic's; `pressure` is written when `sound`.
Cuff read_blood_pressure(Bytes value, BloodPressure& pressure);

}  // namespace fajma

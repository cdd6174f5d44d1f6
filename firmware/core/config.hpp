/// What a device is told to do, beside what it does by itself.
#pragma once

#include <cstdint>

#include "bytes.hpp"
#include "identity.hpp"
#include "refusal.hpp"

namespace fajma {

/// What is in force. The limits are those of the device's own buzzer, in whole units; the defaults are the
/// high-priority bands of FAJMA's alarms for an adult (docs/alarms.md: NEWS2, and the owner's SpO2 < 90).
struct Config {
    /// The largest counter obeyed, of `config` and `ota` together; a message with none larger is refused.
    std::uint64_t counter = 0;
    std::uint32_t period_ms = 5000;       ///< between two readings, 1000 to 60000
    std::uint16_t heart_rate_low = 40;    ///< /min, 20 to 100: at most this is an alarm
    std::uint16_t heart_rate_high = 131;  ///< /min, 101 to 250: at least this is
    std::uint16_t spo2_low = 90;          ///< %, 60 to 99: below this is
};

/// Reads what was sealed on the `config` topic: all of it is obeyed, or none.
///
/// A pack whose first record is `counter`; then any of `period` (ms), `heart_rate_low`, `heart_rate_high`
/// (/min), `spo2_low` (%), each an integer within its limits. What is not stated stays. Other names are
/// ignored, as everywhere. Limits cannot be switched off.
///
/// Refuses as `Records` does, with `bad_pack`, and with `stale` when the counter is not larger.
Refusal read_config(Bytes content, const Address& device, Config& config);

}  // namespace fajma

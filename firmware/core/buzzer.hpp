/// Whether the device itself makes a noise: the last resort, with no network at all. Pure.
///
/// It guards heart rate and SpO2 only, by three of the last four readings (as FAJMA's alarms, docs/alarms.md):
/// an alarm that sounds beside the bed without anybody's judgement must be rare to be heard.
#pragma once

#include <cstdint>

#include "config.hpp"
#include "pack.hpp"

namespace fajma {

enum class Tone : std::uint8_t { silent, technical, alarm };

class Buzzer {
 public:
    static constexpr unsigned window = 4;
    static constexpr unsigned needed = 3;
    static constexpr std::uint64_t calm_ms = 30000;       ///< back inside for so long ends an alarm
    static constexpr std::uint64_t technical_ms = 60000;  ///< no usable pulse for so long is told
    static constexpr std::uint64_t hush_ms = 120000;      ///< what the button silences

    /// Takes a reading. Args: `now_ms` is monotonic.
    void take(const Reading& reading, const Config& config, std::uint64_t now_ms);

    /// The button was pressed: this tone is silent for a while. Another guard that breaks sounds all the same.
    void hush(std::uint64_t now_ms);

    /// What sounds now.
    Tone tone(std::uint64_t now_ms) const;

 private:
    static constexpr unsigned guards = 3;  // heart rate low, heart rate high, SpO2 low

    struct Guard {
        std::uint8_t history = 0;  ///< one bit a reading, the newest last
        bool sounding = false;
        std::uint64_t broken_ms = 0;  ///< when it was last broken
    };

    void judge(unsigned index, bool known, bool broken, std::uint64_t now_ms);

    Guard guards_[guards];
    bool pulse_seen_ = false;
    std::uint64_t pulse_ms_ = 0;  ///< of the last usable pulse, or of the first reading
    std::uint64_t hushed_until_ms_ = 0;
};

}  // namespace fajma

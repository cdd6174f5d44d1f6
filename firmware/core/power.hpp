/// How the device spends its battery. Pure.
///
/// It measures, judges and sounds in every mode; only the radio rests. Packs are never further apart than
/// readings may be old to count as live (60 s, docs/wire.md), and an alarm of its own goes out at once.
#pragma once

#include <cstdint>

namespace fajma {

enum class PowerMode : std::uint8_t { full, saving, last };

struct PowerPlan {
    PowerMode mode;
    bool radio_sleeps;            ///< the modem sleeps between beacons; in `last` it is off between packs
    std::uint32_t send_every_ms;  ///< 0: each reading at once
};

class PowerPolicy {
 public:
    /// Args: `battery_percent` is 0 to 100; `alarm` is whether its own buzzer has something to tell.
    PowerPlan plan(bool on_mains, unsigned battery_percent, bool alarm) {
        mode_ = on_mains ? PowerMode::full : next(battery_percent);
        const bool at_once = alarm || mode_ == PowerMode::full;
        const std::uint32_t every_ms = mode_ == PowerMode::saving ? 20000 : 50000;
        return {mode_, !on_mains && !alarm, at_once ? 0 : every_ms};
    }

 private:
    /// A mode is left upwards only five points above where it is entered, or it would change to and fro.
    PowerMode next(unsigned percent) const {
        const unsigned last_below = mode_ == PowerMode::last ? 15 : 10;
        const unsigned saving_below = mode_ == PowerMode::full ? 30 : 35;
        if (percent < last_below) {
            return PowerMode::last;
        }
        return percent < saving_below ? PowerMode::saving : PowerMode::full;
    }

    PowerMode mode_ = PowerMode::full;
};

}  // namespace fajma

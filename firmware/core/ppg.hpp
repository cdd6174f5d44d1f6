/// The pulse oximeter: counts of a red and an infrared LED become heart rate, SpO2 and how far both are to be believed.
///
/// A sample at a time goes through the filters into a window of the last eight seconds; whoever wants to know asks
/// `measure`. Nothing is allocated. About 13 KiB, which belong into static memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pack.hpp"
#include "ppg_filter.hpp"

namespace fajma {

/// What a sensor is like. The defaults are a MAX30102 (18 bit) averaged to 100 samples/s.
struct PpgSetup {
    float rate_hz = 100;                    ///< 50 to 200
    std::uint32_t full_scale = (1u << 18);  ///< counts, never reached: the largest is one less
    std::uint32_t off_below = 20000;        ///< counts of infrared: less comes back from no finger
};

struct PpgMeasurement {
    std::int32_t heart_rate = 0;  ///< /min, in units of 1/10 000
    std::int32_t spo2 = 0;        ///< %, in units of 1/10 000
    bool has_heart_rate = false;
    bool has_spo2 = false;
    std::uint8_t quality = 0;  ///< 0 to 100; below `Ppg::believed` nothing is measured
    Contact contact = Contact::unknown;
    bool moving = false;     ///< the light jumped as no pulse makes it, within the window
    bool saturated = false;  ///< the converter was at its end: too much light
    bool swapped = false;    ///< red and infrared look exchanged, as clones of the MAX30102 have them
    float ratio = 0;         ///< R, for calibration; 0 when there is none
};

class Ppg {
 public:
    static constexpr float window_s = 8;    ///< four beats at 30 /min
    static constexpr float shortest_s = 2;  ///< less is not judged
    static constexpr std::size_t capacity = 1600;
    static constexpr std::uint8_t believed = 50;

    explicit Ppg(const PpgSetup& setup);

    /// The next sample. Samples that the sensor lost must be told by `restart`.
    void take(std::uint32_t red, std::uint32_t infrared);

    /// Forgets the window: samples are missing.
    void restart();

    /// What the window says now.
    PpgMeasurement measure();

 private:
    bool jolted(std::uint32_t red, std::uint32_t infrared) const;
    void judge_order(float ratio);

    PpgSetup setup_;
    std::size_t window_;  // samples
    PulseFilter red_filter_;
    PulseFilter infrared_filter_;
    float red_[capacity];  // a ring of `window_` samples, as the next one
    float infrared_[capacity];
    std::size_t next_ = 0;
    std::size_t held_ = 0;
    std::uint32_t last_red_ = 0;  // 0 when there is none
    std::uint32_t last_infrared_ = 0;
    bool off_ = false;
    std::size_t settling_ = 0;   // samples still to be passed over
    std::size_t since_jolt_;     // samples, stops at `window_`
    std::size_t since_clipped_;  // likewise
    unsigned exchanged_ = 0;     // measurements in a row that look exchanged
    bool order_known_ = false;
};

}  // namespace fajma

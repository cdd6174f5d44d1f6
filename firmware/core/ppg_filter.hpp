/// What is left of one LED's light when everything but the pulse is taken away.
#pragma once

#include <cstdint>

namespace fajma {

/// A second-order section, transposed direct form II.
class Biquad {
 public:
    /// Butterworth sections by the bilinear transform. Args: `corner_hz` is below half of `rate_hz`.
    static Biquad low_pass(float rate_hz, float corner_hz);
    static Biquad high_pass(float rate_hz, float corner_hz);

    float take(float value);
    void restart() { first_ = second_ = 0; }

 private:
    float b0_ = 1, b1_ = 0, b2_ = 0, a1_ = 0, a2_ = 0;
    float first_ = 0, second_ = 0;
};

/// Counts of one LED to its pulse wave: the level (DC) is followed and removed, what remains is divided by it and
/// band-passed. Upright: more blood, which means less light, is a larger value.
///
/// The band holds the fundamental of 30 to 220 /min with what the shape of an upstroke needs, and no breathing.
/// Dividing by the level is what makes two LEDs comparable (Beer-Lambert, small pulsations; Webster, Design of
/// Pulse Oximeters, IOP Publishing 1997, chapter 4).
class PulseFilter {
 public:
    static constexpr float lowest_hz = 0.3f;
    static constexpr float highest_hz = 5;
    static constexpr float level_s = 1.5f;  ///< time constant of the level

    explicit PulseFilter(float rate_hz);

    /// Begins anew at this level, as though it had always been there: nothing rings.
    void restart(std::uint32_t counts);

    /// The pulse wave as a share of the level: 0.01 is a pulsation of 1 %. Args: `counts` is at least 1.
    float take(std::uint32_t counts);

    /// Counts.
    float level() const { return level_; }

 private:
    float level_ = 1;
    float level_share_;
    Biquad high_;
    Biquad low_;
};

}  // namespace fajma

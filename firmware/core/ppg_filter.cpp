#include "ppg_filter.hpp"

#include <cmath>

namespace fajma {
namespace {

constexpr float pi = 3.14159265f;
constexpr float butterworth = 1.41421356f;  // 1 / Q

}  // namespace

Biquad Biquad::low_pass(float rate_hz, float corner_hz) {
    const float k = std::tan(pi * corner_hz / rate_hz);
    const float norm = 1 / (1 + butterworth * k + k * k);
    Biquad section;
    section.b0_ = section.b2_ = k * k * norm;
    section.b1_ = 2 * section.b0_;
    section.a1_ = 2 * (k * k - 1) * norm;
    section.a2_ = (1 - butterworth * k + k * k) * norm;
    return section;
}

Biquad Biquad::high_pass(float rate_hz, float corner_hz) {
    Biquad section = low_pass(rate_hz, corner_hz);  // the same poles
    const float k = std::tan(pi * corner_hz / rate_hz);
    section.b0_ = section.b2_ = 1 / (1 + butterworth * k + k * k);
    section.b1_ = -2 * section.b0_;
    return section;
}

float Biquad::take(float value) {
    const float out = b0_ * value + first_;
    first_ = b1_ * value - a1_ * out + second_;
    second_ = b2_ * value - a2_ * out;
    return out;
}

PulseFilter::PulseFilter(float rate_hz)
    : level_share_(1 - std::exp(-1 / (level_s * rate_hz))),
      high_(Biquad::high_pass(rate_hz, lowest_hz)),
      low_(Biquad::low_pass(rate_hz, highest_hz)) {}

void PulseFilter::restart(std::uint32_t counts) {
    level_ = static_cast<float>(counts);
    high_.restart();
    low_.restart();
}

float PulseFilter::take(std::uint32_t counts) {
    const float above = static_cast<float>(counts) - level_;
    level_ += level_share_ * above;
    return low_.take(high_.take(-above / level_));
}

}  // namespace fajma

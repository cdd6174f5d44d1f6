#include "ppg.hpp"

#include <algorithm>
#include <cmath>

#include "ppg_beats.hpp"
#include "ppg_oxygen.hpp"
#include "ppg_quality.hpp"

namespace fajma {
namespace {

constexpr float jolt = 0.05f;            // of the light, from one sample to the next: no pulse at 50 samples/s does it
constexpr float settling_s = 0.1f;       // what a sensor sends just after a start or a jolt is not the finger yet
constexpr float ringing_s = 0.4f;        // after a start the filters' answer to it is passed over for SpO2
constexpr float steady_needed = 0.6f;    // of the beats have one R, for SpO2
constexpr float exchanged_ratio = 1.8f;  // nobody is put on a monitor at such an R, below 60 %; 1 / 1.8 is 96 %
constexpr float sound_ratio = 1.0f;      // exchanged it would be above 1: not with a healthy pulse
constexpr unsigned exchanged_needed = 3;
constexpr float lowest_spo2 = 50;  // what FAJMA holds for possible

}  // namespace

Ppg::Ppg(const PpgSetup& setup)
    : setup_(setup),
      window_(std::min(capacity, static_cast<std::size_t>(window_s * setup.rate_hz))),
      red_filter_(setup.rate_hz),
      infrared_filter_(setup.rate_hz),
      since_jolt_(window_),
      since_clipped_(window_) {}

void Ppg::restart() {
    next_ = held_ = 0;
    last_red_ = last_infrared_ = 0;
}

bool Ppg::jolted(std::uint32_t red, std::uint32_t infrared) const {
    const auto far = [](std::uint32_t now, std::uint32_t before) {
        const auto one = static_cast<float>(now);
        const auto other = static_cast<float>(before);
        return std::fabs(one - other) > jolt * other;
    };
    return far(red, last_red_) || far(infrared, last_infrared_);
}

void Ppg::take(std::uint32_t red, std::uint32_t infrared) {
    off_ = infrared < std::max(1u, setup_.off_below);
    since_jolt_ = std::min(since_jolt_ + 1, window_);
    since_clipped_ = std::min(since_clipped_ + 1, window_);
    if (off_) {
        restart();
        return;
    }
    red = std::max(1u, red);
    if (std::max(red, infrared) >= setup_.full_scale - 1) {
        since_clipped_ = 0;
    }
    const bool first = last_infrared_ == 0;
    const bool jolt_now = !first && jolted(red, infrared);
    const bool was_settled = settling_ == 0;
    if (first || jolt_now) {
        restart();
        settling_ = static_cast<std::size_t>(settling_s * setup_.rate_hz);
        since_jolt_ = jolt_now && was_settled ? 0 : since_jolt_;
    }
    last_red_ = red;
    last_infrared_ = infrared;
    if (settling_ > 0) {
        --settling_;
        red_filter_.restart(red);
        infrared_filter_.restart(infrared);
        return;
    }
    red_[next_] = red_filter_.take(red);
    infrared_[next_] = infrared_filter_.take(infrared);
    next_ = (next_ + 1) % window_;
    held_ = std::min(held_ + 1, window_);
}

PpgMeasurement Ppg::measure() {
    PpgMeasurement told;
    told.contact = off_ ? Contact::off : held_ == 0 ? Contact::unknown : Contact::on;
    told.moving = since_jolt_ < window_;
    told.saturated = since_clipped_ < window_;
    told.swapped = exchanged_ >= exchanged_needed;
    if (static_cast<float>(held_) < shortest_s * setup_.rate_hz) {
        return told;
    }
    if (held_ == window_) {  // the oldest first
        std::rotate(red_, red_ + next_, red_ + window_);
        std::rotate(infrared_, infrared_ + next_, infrared_ + window_);
        next_ = 0;
    }
    const Wave infrared = {infrared_, held_, setup_.rate_hz};
    const Beats beats(infrared);
    if (beats.count() < 3 || told.saturated) {
        return told;
    }
    const float rate = 60 * setup_.rate_hz / beats.interval();
    const QualityMarks marks = judge(infrared, beats);
    told.quality = marks.percent();
    told.moving = told.moving || marks.calm < 1;
    const std::size_t ringing = held_ < window_ ? static_cast<std::size_t>(ringing_s * setup_.rate_hz) : 0;
    const Ratio ratio = ratio_of_ratios({red_, held_, setup_.rate_hz}, infrared, beats, ringing);
    told.ratio = ratio.value;
    if (told.quality < believed) {
        return told;
    }
    told.has_heart_rate = true;
    told.heart_rate = static_cast<std::int32_t>(rate * 10 + 0.5f) * (scale / 10);
    if (ratio.value > 0 && ratio.steady >= steady_needed) {
        judge_order(ratio.value);
        told.swapped = exchanged_ >= exchanged_needed;
        const float percent = std::clamp(spo2_percent(ratio.value), lowest_spo2, 100.0f);
        told.has_spo2 = exchanged_ == 0;
        told.spo2 = static_cast<std::int32_t>(percent * 10 + 0.5f) * (scale / 10);
    }
    return told;
}

void Ppg::judge_order(float ratio) {
    if (ratio < sound_ratio) {
        order_known_ = true;
    }
    exchanged_ = !order_known_ && ratio > exchanged_ratio ? exchanged_ + 1 : 0;
}

}  // namespace fajma

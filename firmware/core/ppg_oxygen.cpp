#include "ppg_oxygen.hpp"

#include <algorithm>
#include <cmath>

namespace fajma {
namespace {

constexpr float change_s = 0.2f;
constexpr float alike = 0.25f;        // of the median R
constexpr float upstroke_in = 0.25f;  // of an interval, where the steepest point of a beat lies in it

/// Sums over the changes within one beat.
struct Changes {
    float infrared = 0, both = 0;

    void add(const Changes& other) {
        infrared += other.infrared;
        both += other.both;
    }
};

Changes changes(const Wave& red, const Wave& infrared, std::size_t begin, std::size_t end, std::size_t lag) {
    Changes sums;
    for (std::size_t index = begin; index + lag < end; ++index) {
        const float of_red = red.values[index + lag] - red.values[index];
        const float of_infrared = infrared.values[index + lag] - infrared.values[index];
        sums.add({of_infrared * of_infrared, of_red * of_infrared});
    }
    return sums;
}

}  // namespace

Ratio ratio_of_ratios(const Wave& red, const Wave& infrared, const Beats& beats, std::size_t begin) {
    const float interval = beats.interval();
    const auto lag = static_cast<std::size_t>(std::min(change_s * infrared.rate_hz, interval / 4) + 0.5f);
    Changes of_beat[Beats::capacity];
    float ratios[Beats::capacity];
    std::size_t found = 0;
    for (std::size_t beat = 0; beat < beats.count(); ++beat) {
        const float from = std::max(static_cast<float>(begin), beats[beat].at - upstroke_in * interval);
        const float to = std::min(static_cast<float>(infrared.size), from + interval);
        const Changes sums = changes(red, infrared, static_cast<std::size_t>(from), static_cast<std::size_t>(to), lag);
        if (sums.infrared > 0) {
            ratios[found] = sums.both / sums.infrared;
            of_beat[found++] = sums;
        }
    }
    if (found == 0) {
        return {};
    }
    const float usual = median(ratios, found);
    Changes all;
    float counted = 0;
    for (std::size_t beat = 0; beat < found; ++beat) {
        if (std::fabs(of_beat[beat].both / of_beat[beat].infrared - usual) <= alike * usual) {
            all.add(of_beat[beat]);
            ++counted;
        }
    }
    // None counts when the median is negative, as where red does not pulse.
    return counted > 0 ? Ratio{all.both / all.infrared, counted / static_cast<float>(found)} : Ratio{};
}

float spo2_percent(float ratio) { return 75.6f - 27.1f * std::log(ratio); }

}  // namespace fajma

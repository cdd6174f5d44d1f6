#include "ppg_beats.hpp"

#include <algorithm>

namespace fajma {
namespace {

constexpr float sum_s = 0.15f;          // of the slope sum: as long as an upstroke
constexpr float block_s = 2;            // long enough for one beat at 30 /min
constexpr std::size_t max_blocks = 16;  // more than any stretch has
constexpr float threshold = 0.4f;       // of the usual slope sum; weaker is noise
constexpr float strong = 0.7f;          // of the usual upstroke; a dicrotic wave is weaker
constexpr float faint = 0.45f;          // of the usual upstroke; weaker is no beat
constexpr float soon_after_s = 0.5f;    // a dicrotic wave is not later, however slow the heart; an extra beat may be
constexpr float soon_after = 0.45f;     // of the interval between strong ones

/// The slope sum function, sample after sample: how much the wave went up within `sum_s`.
class SlopeSum {
 public:
    explicit SlopeSum(const Wave& wave)
        : wave_(wave), width_(std::max<std::size_t>(2, static_cast<std::size_t>(sum_s * wave.rate_hz + 0.5f))) {}

    std::size_t width() const { return width_; }

    float rise(std::size_t at) const { return at == 0 ? 0 : std::max(0.0f, wave_.values[at] - wave_.values[at - 1]); }

    /// To be asked for each sample in turn.
    float at(std::size_t index) {
        sum_ += rise(index);
        if (index >= width_) {
            sum_ -= rise(index - width_);
        }
        return std::max(0.0f, sum_);
    }

 private:
    const Wave& wave_;
    std::size_t width_;
    float sum_ = 0;
};

/// How large the slope sum usually gets: the median of the largest in each block, which one jolt does not move.
float usual(const Wave& wave) {
    const auto block = static_cast<std::size_t>(block_s * wave.rate_hz);
    const std::size_t blocks = std::min(max_blocks, std::max<std::size_t>(1, (wave.size + block / 2) / block));
    float largest[max_blocks] = {};
    SlopeSum sum(wave);
    for (std::size_t index = 0; index < wave.size; ++index) {
        float& of_block = largest[std::min(blocks - 1, index / block)];
        of_block = std::max(of_block, sum.at(index));
    }
    std::sort(largest, largest + blocks);
    return largest[(blocks - 1) / 2];
}

/// Where the wave is steepest in the `width` samples up to `end`, between samples by a parabola.
float steepest(const SlopeSum& sum, std::size_t end, std::size_t size) {
    const std::size_t begin = end > sum.width() ? end - sum.width() : 1;
    std::size_t best = begin;
    for (std::size_t index = begin; index <= end; ++index) {
        if (sum.rise(index) > sum.rise(best)) {
            best = index;
        }
    }
    float shift = 0;
    if (best + 1 < size) {
        const float before = sum.rise(best - 1);
        const float after = sum.rise(best + 1);
        const float bend = before + after - 2 * sum.rise(best);
        if (bend < 0) {
            shift = std::clamp((before - after) / (2 * bend), -0.5f, 0.5f);
        }
    }
    return static_cast<float>(best) - 0.5f + shift;  // a rise lies between its two samples
}

/// From the foot of the upstroke that is steepest at `at` to its top.
float excursion(const Wave& wave, float at) {
    const float* const end = wave.values + wave.size;
    const float* foot = wave.values + static_cast<std::size_t>(at);
    const float* top = foot + 1;
    while (foot > wave.values && foot[-1] < foot[0]) {
        --foot;
    }
    while (top + 1 < end && top[1] > top[0]) {
        ++top;
    }
    return *top - *foot;
}

}  // namespace

float median(float* values, std::size_t count) {
    std::sort(values, values + count);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

float Wave::between(float at) const {
    const auto index = std::min(static_cast<std::size_t>(std::max(0.0f, at)), size - 1);
    const std::size_t next = std::min(index + 1, size - 1);
    return values[index] + (at - static_cast<float>(index)) * (values[next] - values[index]);
}

Beats::Beats(const Wave& wave) {
    const float level = usual(wave);
    if (!(level > 0)) {
        return;
    }
    SlopeSum sum(wave);
    std::size_t top = 0;
    float top_sum = 0;  // above 0 within an upstroke
    for (std::size_t index = 0; index < wave.size; ++index) {
        const float here = sum.at(index);
        if (here > threshold * level && here > top_sum) {
            top = index;
            top_sum = here;
        } else if (here <= threshold * level && top_sum > 0) {
            const float at = steepest(sum, top, wave.size);
            add({at, excursion(wave, at), top_sum >= strong * level}, shortest_s * wave.rate_hz);
            top_sum = 0;
        }
    }
    drop_dicrotic(wave.rate_hz);
}

float Beats::rise() const { return median_rise(false); }

float Beats::median_rise(bool of_steep) const {
    float rises[capacity];
    std::size_t found = 0;
    for (std::size_t index = 0; index < count_; ++index) {
        if (!of_steep || beats_[index].steep) {
            rises[found++] = beats_[index].rise;
        }
    }
    return found == 0 ? 0 : median(rises, found);
}

float Beats::median_interval(float weakest) const {
    float intervals[capacity];
    std::size_t found = 0;
    const Beat* last = nullptr;
    for (std::size_t index = 0; index < count_; ++index) {
        if (beats_[index].rise < weakest) {
            continue;
        }
        if (last != nullptr) {
            intervals[found++] = beats_[index].at - last->at;
        }
        last = &beats_[index];
    }
    return found == 0 ? 0 : median(intervals, found);
}

void Beats::add(const Beat& beat, float nearest) {
    if (count_ > 0 && beat.at - beats_[count_ - 1].at < nearest) {
        if (beat.rise > beats_[count_ - 1].rise) {
            beats_[count_ - 1] = beat;
        }
    } else if (count_ < capacity) {
        beats_[count_++] = beat;
    }
}

/// A weak upstroke soon after a strong one is its dicrotic wave. What stands half way may be every other beat of a
/// heart that beats strong and weak in turn, and stays: a rate must not be halved.
void Beats::drop_dicrotic(float rate_hz) {
    const float weakest = strong * median_rise(true);
    const float interval = median_interval(weakest);
    const float soon = std::min(soon_after * interval, soon_after_s * rate_hz);
    const float faintest = faint * median_rise(true);
    std::size_t kept = 0;
    const Beat* before = nullptr;  // the last strong one
    for (std::size_t index = 0; index < count_; ++index) {
        const Beat beat = beats_[index];
        const bool is_strong = beat.rise >= weakest;
        const bool apart = before == nullptr || beat.at - before->at >= soon;
        if (is_strong || (apart && beat.rise >= faintest)) {
            beats_[kept] = beat;
            before = is_strong ? &beats_[kept] : before;
            ++kept;
        }
    }
    count_ = kept;
}

}  // namespace fajma

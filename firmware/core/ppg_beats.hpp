/// Where the heart beats in a stretch of pulse wave.
#pragma once

#include <cstddef>

namespace fajma {

/// A stretch of an upright pulse wave, evenly sampled; whoever gave it must outlive it.
struct Wave {
    const float* values = nullptr;
    std::size_t size = 0;
    float rate_hz = 0;

    /// Between two samples by the straight line. Args: `at` is within the stretch.
    float between(float at) const;
};

struct Beat {
    float at = 0;        ///< the steepest point of its upstroke, in samples from the beginning of the stretch
    float rise = 0;      ///< from its foot to its top, in the unit of the wave
    bool steep = false;  ///< nearly as steep as the steepest are
};

/// Upstrokes by the slope sum function (Zong, Heldt, Moody, Mark, Computers in Cardiology 2003;30:259-62), with
/// a threshold from the stretch itself, and dicrotic waves told from beats by what stands beside them.
class Beats {
 public:
    static constexpr std::size_t capacity = 48;
    static constexpr float shortest_s = 0.25f;  ///< 240 /min

    explicit Beats(const Wave& wave);

    std::size_t count() const { return count_; }
    const Beat& operator[](std::size_t index) const { return beats_[index]; }

    /// The median interval in samples; 0 with less than two beats.
    float interval() const { return median_interval(0); }

    /// The median rise; 0 without beats.
    float rise() const;

 private:
    float median_interval(float weakest) const;
    void add(const Beat& beat, float nearest);
    float median_rise(bool of_steep) const;
    void drop_dicrotic(float rate_hz);

    Beat beats_[capacity];
    std::size_t count_ = 0;
};

/// The middle value, of an even number the mean of both. Sorts `values`, of which there is at least one.
float median(float* values, std::size_t count);

}  // namespace fajma

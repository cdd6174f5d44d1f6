#include "ppg_quality.hpp"

#include <algorithm>
#include <cmath>

namespace fajma {
namespace {

constexpr int points = 24;               // of a beat's shape
constexpr float before_upstroke = 0.3f;  // of an interval
constexpr float reach = 1.5f;            // of the usual upstroke
constexpr float after_upstroke = 0.6f;

/// A straight line from 0 at `nothing` to 1 at `all`.
float mark(float value, float nothing, float all) {
    return std::clamp((value - nothing) / (all - nothing), 0.0f, 1.0f);
}

/// One beat's shape at evenly spaced points, without its mean. False when it is not whole within the stretch.
bool shape_of(const Wave& wave, float at, float interval, float (&shape)[points]) {
    const float begin = at - before_upstroke * interval;
    const float end = at + after_upstroke * interval;
    if (begin < 0 || end > static_cast<float>(wave.size - 1)) {
        return false;
    }
    float mean = 0;
    for (int point = 0; point < points; ++point) {
        shape[point] = wave.between(begin + (end - begin) * static_cast<float>(point) / (points - 1));
        mean += shape[point] / points;
    }
    for (float& value : shape) {
        value -= mean;
    }
    return true;
}

/// Scales a shape to length 1; one of zeros stays.
void normalise(float (&shape)[points]) {
    float square = 0;
    for (const float value : shape) {
        square += value * value;
    }
    const float length = std::sqrt(square);
    for (float& value : shape) {
        value = length > 0 ? value / length : 0;
    }
}

/// The mean correlation of the beats with the mean beat.
float likeness(const Wave& wave, const Beats& beats, float interval) {
    float mean[points] = {};
    float shape[points];
    for (std::size_t beat = 0; beat < beats.count(); ++beat) {
        if (shape_of(wave, beats[beat].at, interval, shape)) {
            normalise(shape);
            for (int point = 0; point < points; ++point) {
                mean[point] += shape[point];
            }
        }
    }
    normalise(mean);
    float sum = 0;
    float whole = 0;
    for (std::size_t beat = 0; beat < beats.count(); ++beat) {
        if (shape_of(wave, beats[beat].at, interval, shape)) {
            normalise(shape);
            for (int point = 0; point < points; ++point) {
                sum += shape[point] * mean[point];
            }
            ++whole;
        }
    }
    return whole > 1 ? sum / whole : 0;  // one beat is like itself
}

}  // namespace

std::uint8_t QualityMarks::percent() const {
    return static_cast<std::uint8_t>(100 * std::min({shape, rhythm, steadiness, coverage, calm, strength}) + 0.5f);
}

QualityMarks judge(const Wave& wave, const Beats& beats) {
    QualityMarks marks;
    if (beats.count() < 3) {
        return marks;
    }
    const float interval = beats.interval();
    const float rise = beats.rise();
    float regular = 0;
    float alike = 0;
    for (std::size_t index = 0; index < beats.count(); ++index) {
        if (index > 0 && std::fabs(beats[index].at - beats[index - 1].at - interval) < 0.2f * interval) {
            ++regular;
        }
        if (beats[index].rise > 0.5f * rise && beats[index].rise < 2 * rise) {
            ++alike;
        }
    }
    float within = 0;
    for (std::size_t index = 0; index < wave.size; ++index) {
        within += std::fabs(wave.values[index]) <= reach * rise ? 1.0f : 0.0f;
    }
    const auto count = static_cast<float>(beats.count());
    marks.shape = mark(likeness(wave, beats, interval), 0.7f, 0.95f);
    marks.rhythm = mark(regular / (count - 1), 0.2f, 0.8f);
    marks.steadiness = mark(alike / count, 0.4f, 0.9f);
    marks.coverage = mark(count * interval / static_cast<float>(wave.size), 0.4f, 0.8f);
    marks.calm = mark(within / static_cast<float>(wave.size), 0.8f, 0.98f);
    marks.strength = mark(rise, 0.00003f, 0.0001f);
    return marks;
}

}  // namespace fajma

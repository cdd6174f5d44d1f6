#include "buzzer.hpp"

namespace fajma {
namespace {

unsigned ones(std::uint8_t bits) {
    unsigned count = 0;
    for (; bits != 0; bits = static_cast<std::uint8_t>(bits & (bits - 1))) {
        ++count;
    }
    return count;
}

}  // namespace

void Buzzer::take(const Reading& reading, const Config& config, std::uint64_t now_ms) {
    const bool worn = reading.contact != Contact::off;
    const bool pulse = worn && reading.has(Measure::heart_rate);
    const bool oxygen = worn && reading.has(Measure::spo2);
    const std::int32_t rate = reading.value(Measure::heart_rate);
    judge(0, pulse, rate <= config.heart_rate_low * scale, now_ms);
    judge(1, pulse, rate >= config.heart_rate_high * scale, now_ms);
    judge(2, oxygen, reading.value(Measure::spo2) < config.spo2_low * scale, now_ms);
    if ((pulse && oxygen) || !pulse_seen_) {
        pulse_seen_ = true;
        pulse_ms_ = now_ms;
    }
}

void Buzzer::judge(unsigned index, bool known, bool broken, std::uint64_t now_ms) {
    Guard& guard = guards_[index];
    if (!known) {
        return;  // says nothing for or against; that it lasts is told by another tone
    }
    guard.history = static_cast<std::uint8_t>((guard.history << 1 | (broken ? 1 : 0)) & ((1u << window) - 1));
    if (broken) {
        guard.broken_ms = now_ms;
    }
    if (!guard.sounding && ones(guard.history) >= needed) {
        guard.sounding = true;
        hushed_until_ms_ = 0;
    } else if (guard.sounding && now_ms - guard.broken_ms >= calm_ms) {
        guard.sounding = false;
        guard.history = 0;
    }
}

void Buzzer::hush(std::uint64_t now_ms) { hushed_until_ms_ = now_ms + hush_ms; }

Tone Buzzer::tone(std::uint64_t now_ms) const {
    if (now_ms < hushed_until_ms_) {
        return Tone::silent;
    }
    for (const Guard& guard : guards_) {
        if (guard.sounding) {
            return Tone::alarm;
        }
    }
    return pulse_seen_ && now_ms - pulse_ms_ >= technical_ms ? Tone::technical : Tone::silent;
}

}  // namespace fajma

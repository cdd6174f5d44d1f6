/// The pulse oximeter, stage by stage, on a synthetic finger.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "ppg.hpp"
#include "ppg_beats.hpp"
#include "ppg_filter.hpp"
#include "ppg_oxygen.hpp"
#include "ppg_quality.hpp"

using namespace fajma;

namespace {

constexpr float rate_hz = 100;

/// A small generator, the same on every machine. -1 to 1.
class Chance {
 public:
    float next() { return static_cast<float>(bits() % 20001) / 10000.0f - 1; }

    std::uint32_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<std::uint32_t>(state_ >> 33);
    }

 private:
    std::uint64_t state_ = 1;
};

float bump(float at, float middle, float width) { return std::exp(-0.5f * std::pow((at - middle) / width, 2.0f)); }

/// What a finger is like.
struct Finger {
    float rate = 75;           ///< /min
    float ratio = 0.5f;        ///< R
    float pulsation = 0.02f;   ///< of the light
    float dicrotic = 0.4f;     ///< of the systolic wave
    float weak_beats = 1;      ///< height of every other beat
    float early = 0;           ///< by how much of an interval every other beat comes too soon
    float noise = 0;           ///< of the light
    float breathing = 0.002f;  ///< of the light

    /// Upright, 0 to 1. The dicrotic wave comes as late as in people: systole shortens as the root of the interval.
    float pulse(float at_s) const {
        const float interval_s = 60 / rate;
        const auto beat = static_cast<int>(at_s / interval_s);
        float sum = 0;
        for (int each = beat - 1; each <= beat + 1; ++each) {
            const float due_s = (static_cast<float>(each) - (each % 2 == 0 ? 0 : early)) * interval_s;
            const float since = (at_s - due_s) / std::sqrt(interval_s);
            const float height = each % 2 == 0 ? 1 : weak_beats;
            sum += height * (bump(since, 0.18f, 0.08f) + dicrotic * bump(since, 0.46f, 0.09f));
        }
        return sum;
    }

    std::uint32_t counts(float level, float share, float at_s, Chance& chance) const {
        const float breath = breathing * std::sin(1.57f * at_s);
        return static_cast<std::uint32_t>(level *
                                          (1 - share * pulsation * pulse(at_s) + breath + noise * chance.next()));
    }
};

/// An oximeter and what it has been shown.
class Bench {
 public:
    explicit Bench(const PpgSetup& setup = {}) : ppg(std::make_unique<Ppg>(setup)), rate_(setup.rate_hz) {}

    PpgMeasurement watch(const Finger& finger, float seconds, bool exchanged = false) {
        for (int sample = 0; sample < static_cast<int>(seconds * rate_); ++sample) {
            const float at_s = static_cast<float>(samples_++) / rate_;
            std::uint32_t red = finger.counts(120000, finger.ratio, at_s, chance_);
            std::uint32_t infrared = finger.counts(150000, 1, at_s, chance_);
            if (exchanged) {
                std::swap(red, infrared);
            }
            ppg->take(red, infrared);
        }
        return ppg->measure();
    }

    PpgMeasurement show(std::uint32_t red, std::uint32_t infrared, float seconds) {
        for (int sample = 0; sample < static_cast<int>(seconds * rate_); ++sample) {
            ppg->take(red, infrared);
        }
        return ppg->measure();
    }

    std::unique_ptr<Ppg> ppg;

 private:
    Chance chance_;
    float rate_;
    int samples_ = 0;
};

float per_minute(const PpgMeasurement& told) { return static_cast<float>(told.heart_rate) / scale; }
float percent(const PpgMeasurement& told) { return static_cast<float>(told.spo2) / scale; }

/// A finger's wave, as the filter lets it through, without its first two seconds.
std::vector<float> filtered(const Finger& finger, float seconds) {
    PulseFilter filter(rate_hz);
    Chance chance;
    filter.restart(finger.counts(150000, 1, 0, chance));
    std::vector<float> wave;
    for (int sample = 0; sample < static_cast<int>((seconds + 2) * rate_hz); ++sample) {
        const float value = filter.take(finger.counts(150000, 1, static_cast<float>(sample) / rate_hz, chance));
        if (sample >= 2 * static_cast<int>(rate_hz)) {
            wave.push_back(value);
        }
    }
    return wave;
}

Wave seen(const std::vector<float>& values) { return {values.data(), values.size(), rate_hz}; }

float highest(const std::vector<float>& wave) { return *std::max_element(wave.begin(), wave.end()); }

}  // namespace

TEST_CASE("a constant light has no pulse, from its first sample on") {
    PulseFilter filter(rate_hz);
    filter.restart(200000);
    for (int sample = 0; sample < 500; ++sample) {
        CHECK(filter.take(200000) == 0);
    }
    CHECK(filter.level() == 200000);
}

TEST_CASE("the filter lets the pulse through upright and as a share of the light, and hardly any breathing") {
    Finger still;
    still.pulsation = 0;
    still.breathing = 0.01f;
    CHECK(highest(filtered(still, 8)) < 0.006f);
    Finger beating;
    beating.breathing = 0;
    beating.dicrotic = 0;
    const std::vector<float> wave = filtered(beating, 8);
    CHECK(highest(wave) == doctest::Approx(0.015f).epsilon(0.15));
    CHECK(-*std::min_element(wave.begin(), wave.end()) < highest(wave));  // systole is shorter than the rest
}

TEST_CASE("the filter's level follows a light that fades") {
    PulseFilter filter(rate_hz);
    filter.restart(200000);
    for (int sample = 0; sample < 1000; ++sample) {
        filter.take(100000);
    }
    CHECK(filter.level() == doctest::Approx(100000).epsilon(0.01));
}

TEST_CASE("every beat is found once at all rates, whatever its dicrotic wave") {
    for (const float rate : {30.0f, 40.0f, 60.0f, 75.0f, 100.0f, 150.0f, 220.0f}) {
        for (const float dicrotic : {0.0f, 0.4f, 0.6f}) {
            CAPTURE(rate);
            CAPTURE(dicrotic);
            Finger finger;
            finger.rate = rate;
            finger.dicrotic = dicrotic;
            const std::vector<float> wave = filtered(finger, 8);
            const Beats beats(seen(wave));
            CHECK(60 * rate_hz / beats.interval() == doctest::Approx(rate).epsilon(0.02));
            CHECK(std::fabs(static_cast<float>(beats.count()) - 8 * rate / 60) <= 1.5f);
        }
    }
}

TEST_CASE("a heart that beats strong and weak in turn is not halved") {
    Finger finger;
    finger.rate = 128;
    finger.weak_beats = 0.65f;
    const std::vector<float> wave = filtered(finger, 8);
    CHECK(60 * rate_hz / Beats(seen(wave)).interval() == doctest::Approx(128).epsilon(0.03));
}

TEST_CASE("small early beats, as of a bigeminy, are counted and not taken for dicrotic waves") {
    Finger finger;
    finger.rate = 78;
    finger.dicrotic = 0.1f;
    finger.weak_beats = 0.6f;
    finger.early = 0.2f;
    const std::vector<float> wave = filtered(finger, 8);
    CHECK(Beats(seen(wave)).count() >= 9);
}

TEST_CASE("a stretch may begin anywhere in a beat") {
    Finger finger;
    finger.rate = 32;
    finger.dicrotic = 0.6f;
    const std::vector<float> wave = filtered(finger, 12);
    for (std::size_t begin = 0; begin < 190; begin += 2) {
        CAPTURE(begin);
        const Beats beats({wave.data() + begin, wave.size() - begin, rate_hz});
        REQUIRE(beats.count() >= 5);
        CHECK(beats[1].at - beats[0].at == doctest::Approx(beats.interval()).epsilon(0.1));
    }
}

TEST_CASE("one jolt does not hide the beats around it") {
    std::vector<float> wave = filtered({}, 8);
    for (std::size_t sample = 300; sample < 330; ++sample) {
        wave[sample] += 0.2f * std::sin(static_cast<float>(sample - 300) / 30 * 3.14f);
    }
    const Beats beats(seen(wave));
    CHECK(60 * rate_hz / beats.interval() == doctest::Approx(75).epsilon(0.03));
    CHECK(beats.count() >= 8);
}

TEST_CASE("no beats are in a flat, a falling and a very short wave") {
    CHECK(Beats(seen(std::vector<float>(800, 0.01f))).count() == 0);
    std::vector<float> falling(800);
    for (std::size_t sample = 0; sample < falling.size(); ++sample) {
        falling[sample] = -static_cast<float>(sample);
    }
    CHECK(Beats(seen(falling)).count() == 0);
    CHECK(Beats(seen(std::vector<float>(1, 1.0f))).count() == 0);
    CHECK(Beats(seen({})).count() == 0);
    CHECK(Beats(seen({})).interval() == 0);
}

TEST_CASE("more upstrokes than there is room for are left out") {
    std::vector<float> wave(20000);
    for (std::size_t sample = 0; sample < wave.size(); ++sample) {
        wave[sample] = std::sin(static_cast<float>(sample) * 6.283f / 40);
    }
    CHECK(Beats(seen(wave)).count() == Beats::capacity);
}

TEST_CASE("the median of an even number lies between its two") {
    float odd[] = {5, 1, 3};
    float even[] = {8, 1, 3, 5};
    CHECK(median(odd, 3) == 3);
    CHECK(median(even, 4) == 4);
}

TEST_CASE("quality is high for a clean pulse and low for noise, and nothing without three beats") {
    const std::vector<float> clean = filtered({}, 8);
    CHECK(judge(seen(clean), Beats(seen(clean))).percent() >= 90);
    Finger noisy;
    noisy.pulsation = 0;
    noisy.noise = 0.02f;
    const std::vector<float> noise = filtered(noisy, 8);
    CHECK(judge(seen(noise), Beats(seen(noise))).percent() < Ppg::believed);
    const std::vector<float> brief(clean.begin(), clean.begin() + 120);
    CHECK(judge(seen(brief), Beats(seen(brief))).percent() == 0);
}

TEST_CASE("each fault costs quality by itself") {
    QualityMarks marks = {1, 1, 1, 1, 1, 1};
    CHECK(marks.percent() == 100);
    for (float QualityMarks::*mark : {&QualityMarks::shape, &QualityMarks::rhythm, &QualityMarks::steadiness,
                                      &QualityMarks::coverage, &QualityMarks::calm, &QualityMarks::strength}) {
        QualityMarks one = marks;
        one.*mark = 0.25f;
        CHECK(one.percent() == 25);
    }
}

TEST_CASE("R is how much red goes with infrared, noise of red or a beat in motion aside") {
    const std::vector<float> infrared = filtered({}, 8);
    const Beats beats(seen(infrared));
    Chance chance;
    std::vector<float> red;
    for (const float value : infrared) {
        red.push_back(0.8f * value + 0.0005f * chance.next());
    }
    Ratio ratio = ratio_of_ratios(seen(red), seen(infrared), beats, 0);
    CHECK(ratio.value == doctest::Approx(0.8).epsilon(0.03));
    CHECK(ratio.steady == 1);
    for (std::size_t sample = 310; sample < 370; ++sample) {
        red[sample] += 3 * infrared[sample];
    }
    ratio = ratio_of_ratios(seen(red), seen(infrared), beats, 0);
    CHECK(ratio.value == doctest::Approx(0.8).epsilon(0.05));
    CHECK(ratio.steady < 1);
}

TEST_CASE("there is no R without beats, without red and without infrared") {
    const std::vector<float> wave = filtered({}, 8);
    const std::vector<float> flat(wave.size(), 0.0f);
    CHECK(ratio_of_ratios(seen(wave), seen(flat), Beats(seen(flat)), 0).value == 0);
    CHECK(ratio_of_ratios(seen(flat), seen(wave), Beats(seen(wave)), 0).value == 0);
    CHECK(ratio_of_ratios(seen(wave), seen(flat), Beats(seen(wave)), 0).value == 0);
    CHECK(ratio_of_ratios(seen(wave), seen(wave), Beats(seen(wave)), wave.size()).value == 0);
}

TEST_CASE("SpO2 falls as R rises, everywhere") {
    for (float ratio = 0.2f; ratio < 3; ratio += 0.01f) {
        CHECK(spo2_percent(ratio + 0.01f) < spo2_percent(ratio));
    }
    CHECK(spo2_percent(0.45f) == doctest::Approx(97).epsilon(0.02));
    CHECK(spo2_percent(1.15f) == doctest::Approx(72).epsilon(0.02));
}

TEST_CASE("heart rate and SpO2 are right from 30 to 220 /min, in noise, and with little perfusion") {
    for (int rate = 30; rate <= 220; rate += 10) {
        for (const float pulsation : {0.05f, 0.02f, 0.005f}) {
            CAPTURE(rate);
            CAPTURE(pulsation);
            Finger finger;
            finger.rate = static_cast<float>(rate);
            finger.pulsation = pulsation;
            finger.noise = 0.0002f;
            finger.breathing = 0.1f * pulsation;
            Bench bench;
            const PpgMeasurement told = bench.watch(finger, 12);
            REQUIRE(told.has_heart_rate);
            CHECK(per_minute(told) == doctest::Approx(rate).epsilon(0.02));
            REQUIRE(told.has_spo2);
            CHECK(percent(told) == doctest::Approx(spo2_percent(0.5f)).epsilon(0.015));
            CHECK(told.contact == Contact::on);
            CHECK_FALSE(told.saturated);
            CHECK_FALSE(told.swapped);
        }
    }
}

TEST_CASE("SpO2 is told from 50 to 100 %") {
    Bench bench;
    Finger finger;
    finger.ratio = 0.2f;
    CHECK(percent(bench.watch(finger, 10)) == 100);
    finger.ratio = 3;
    CHECK(percent(bench.watch(finger, 10)) == 50);
}

TEST_CASE("noise with something like beats in it is not measured") {
    Finger noisy;
    noisy.pulsation = 0;
    noisy.noise = 0.01f;
    Bench bench;
    int judged = 0;
    for (int time = 0; time < 40; ++time) {
        const PpgMeasurement told = bench.watch(noisy, 4);
        judged += told.quality > 0;
        CHECK(told.has_heart_rate == (told.quality >= Ppg::believed));
        CHECK(told.quality < Ppg::believed);
    }
    CHECK(judged > 0);
}

TEST_CASE("a heart that is almost too slow for the window is counted right or not at all") {
    Finger slow;
    slow.rate = 22;
    slow.dicrotic = 0;
    slow.breathing = 0;
    Bench bench;
    for (int time = 0; time < 40; ++time) {
        const PpgMeasurement told = bench.watch(slow, 1.3f);
        CHECK((!told.has_heart_rate || per_minute(told) == doctest::Approx(22).epsilon(0.03)));
    }
}

TEST_CASE("beats that each have another R give no SpO2") {
    Bench bench;
    Finger finger;  // 0.8 s a beat
    for (int time = 0; time < 5; ++time) {
        for (const float ratio : {0.4f, 0.6f, 1.0f}) {
            finger.ratio = ratio;
            bench.watch(finger, 0.8f);
        }
    }
    const PpgMeasurement told = bench.ppg->measure();
    CHECK(told.has_heart_rate);
    CHECK_FALSE(told.has_spo2);
}

TEST_CASE("other sample rates are as good") {
    for (const float hz : {50.0f, 64.0f, 125.0f, 200.0f}) {
        CAPTURE(hz);
        PpgSetup setup;
        setup.rate_hz = hz;
        Bench bench(setup);
        const PpgMeasurement told = bench.watch({}, 12);
        REQUIRE(told.has_heart_rate);
        CHECK(per_minute(told) == doctest::Approx(75).epsilon(0.01));
    }
}

TEST_CASE("nothing is measured before three beats are there") {
    Bench bench;
    CHECK(bench.ppg->measure().contact == Contact::unknown);
    for (float at_s = 0; at_s < 1.9f; at_s += 0.1f) {
        const PpgMeasurement told = bench.watch({}, 0.1f);
        CHECK_FALSE(told.has_heart_rate);
        CHECK_FALSE(told.has_spo2);
    }
    CHECK(bench.watch({}, 3).has_heart_rate);
}

TEST_CASE("a finger that is taken away is off at once, and one that comes back begins anew") {
    Bench bench;
    REQUIRE(bench.watch({}, 10).has_heart_rate);
    PpgMeasurement told = bench.show(300, 500, 0.05f);
    CHECK(told.contact == Contact::off);
    CHECK_FALSE(told.has_heart_rate);
    CHECK(told.quality == 0);
    told = bench.watch({}, 1);
    CHECK(told.contact == Contact::on);
    CHECK_FALSE(told.has_heart_rate);
    CHECK(bench.watch({}, 6).has_heart_rate);
}

TEST_CASE("a jolt is told, and what was before it is not mixed with what comes after") {
    Bench bench;
    REQUIRE_FALSE(bench.watch({}, 10).moving);
    PpgMeasurement told = bench.show(90000, 100000, 0.05f);
    CHECK(told.moving);
    CHECK_FALSE(told.has_heart_rate);
    told = bench.watch({}, 7);
    CHECK(told.moving);  // within the window
    CHECK(told.has_heart_rate);
    CHECK_FALSE(bench.watch({}, 4).moving);
}

TEST_CASE("a constant, a dark and a saturated converter measure nothing") {
    Bench constant;
    CHECK_FALSE(constant.show(120000, 150000, 20).has_heart_rate);
    Bench dark;
    PpgMeasurement told = dark.show(0, 0, 20);
    CHECK(told.contact == Contact::off);
    CHECK_FALSE(told.has_heart_rate);
    Bench bright;
    told = bright.show((1u << 18) - 1, (1u << 18) - 1, 20);
    CHECK(told.saturated);
    CHECK_FALSE(told.has_heart_rate);
    CHECK(told.quality == 0);
}

TEST_CASE("a pulse whose tops are cut off by the converter is not measured") {
    Bench bench;
    Chance chance;
    Finger finger;
    for (int sample = 0; sample < 1200; ++sample) {
        const float at_s = static_cast<float>(sample) / rate_hz;
        const std::uint32_t light = finger.counts(262500, 1, at_s, chance);
        bench.ppg->take(finger.counts(120000, 0.5f, at_s, chance), std::min(light, (1u << 18) - 1));
    }
    CHECK(bench.ppg->measure().saturated);
    CHECK_FALSE(bench.ppg->measure().has_heart_rate);
}

TEST_CASE("a red LED that is dead costs SpO2 and not the heart rate") {
    Bench bench;
    Chance chance;
    for (int sample = 0; sample < 1200; ++sample) {
        bench.ppg->take(0, Finger().counts(150000, 1, static_cast<float>(sample) / rate_hz, chance));
    }
    const PpgMeasurement told = bench.ppg->measure();
    CHECK(told.has_heart_rate);
    CHECK_FALSE(told.has_spo2);
}

TEST_CASE("exchanged LEDs never give an SpO2, and are told when they look so three times") {
    Bench bench;
    PpgMeasurement told = bench.watch({}, 10, true);
    CHECK(told.has_heart_rate);
    CHECK_FALSE(told.has_spo2);
    CHECK_FALSE(told.swapped);
    CHECK_FALSE(bench.watch({}, 5, true).has_spo2);
    told = bench.watch({}, 5, true);
    CHECK_FALSE(told.has_spo2);
    CHECK(told.swapped);
}

TEST_CASE("a board whose order is known is believed when somebody suffocates") {
    Bench bench;
    REQUIRE(bench.watch({}, 10).has_spo2);
    Finger dying;
    dying.ratio = 2;
    for (int time = 0; time < 4; ++time) {
        const PpgMeasurement told = bench.watch(dying, 10);
        CHECK(told.has_spo2);
        CHECK(percent(told) < 60);
        CHECK_FALSE(told.swapped);
    }
}

TEST_CASE("samples that the sensor lost make it begin anew") {
    Bench bench;
    REQUIRE(bench.watch({}, 10).has_heart_rate);
    bench.ppg->restart();
    CHECK_FALSE(bench.ppg->measure().has_heart_rate);
    CHECK(bench.ppg->measure().contact == Contact::unknown);
}

TEST_CASE("whatever the counts, what is told is within its limits") {
    Chance chance;
    Bench bench;
    std::uint32_t base = 100000;
    int told_rates = 0;
    for (int sample = 0; sample < 200000; ++sample) {
        if (sample % 1500 == 0) {
            base = chance.bits();  // any 31 bits
        }
        const std::uint32_t spread = 1u << (sample / 4000 % 24);
        bench.ppg->take(base + chance.bits() % spread, base + chance.bits() % spread);
        if (sample % 250 == 0) {
            const PpgMeasurement told = bench.ppg->measure();
            told_rates += told.has_heart_rate;
            CHECK(told.quality <= 100);
            CHECK((!told.has_heart_rate || (per_minute(told) >= 15 && per_minute(told) <= 241)));
            CHECK((!told.has_spo2 || (percent(told) >= 50 && percent(told) <= 100)));
            CHECK(std::isfinite(told.ratio));
        }
    }
    CHECK(told_rates < 20);  // of 800: noise is not a heart
}

TEST_CASE("it fits into 13 KiB") { CHECK(sizeof(Ppg) <= 13 * 1024); }

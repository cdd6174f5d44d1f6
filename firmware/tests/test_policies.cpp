/// Decisions: when to send, to connect, to rest, to sound, to be reset.
#include <doctest/doctest.h>

#include "buzzer.hpp"
#include "power.hpp"
#include "supervisor.hpp"
#include "window.hpp"

using namespace fajma;

namespace {

constexpr std::uint32_t least_random = 0;
constexpr std::uint32_t most_random = 0xffffffff;

Reading reading_of(int heart_rate, int spo2) {
    Reading reading;
    reading.contact = Contact::on;
    if (heart_rate > 0) {
        reading.set(Measure::heart_rate, heart_rate * scale);
    }
    if (spo2 > 0) {
        reading.set(Measure::spo2, spo2 * scale);
    }
    return reading;
}

/// A buzzer that hears a reading every five seconds.
struct Bedside {
    Buzzer buzzer;
    Config config;
    std::uint64_t now_ms = 0;

    Tone after(const Reading& reading) {
        now_ms += 5000;
        buzzer.take(reading, config, now_ms);
        return buzzer.tone(now_ms);
    }
};

}  // namespace

TEST_CASE("waiting doubles up to its longest, less by up to a half") {
    CHECK(jittered_ms(500, 30000, 0, least_random) == 500);
    CHECK(jittered_ms(500, 30000, 0, most_random) == 250);
    CHECK(jittered_ms(500, 30000, 3, least_random) == 4000);
    CHECK(jittered_ms(500, 30000, 3, most_random) == 2000);
    CHECK(jittered_ms(500, 30000, 60, least_random) == 30000);
    CHECK(jittered_ms(500, 30000, 60, most_random) == 15000);
    const std::uint32_t middle = jittered_ms(3000, 60000, 1, most_random / 2);
    CHECK(middle == 4501);
}

TEST_CASE("one pack is outstanding until the journal has moved beyond its last record") {
    Window window;
    CHECK(window.open(0));
    window.sent(41, 1000, least_random);
    CHECK(!window.open(1000));
    CHECK(!window.open(3999));
    window.settled(41);  // its last record waits still
    CHECK(!window.open(3999));
    window.settled(42);
    CHECK(window.open(1001));
    CHECK(window.again_ms() == 0);
}

TEST_CASE("a pack without an answer is made again after three seconds, then twice as long each time") {
    Window window;
    std::uint64_t now_ms = 0;
    std::uint64_t expected_ms = 3000;
    for (int attempt = 0; attempt < 8; ++attempt) {
        window.sent(1, now_ms, least_random);
        CHECK(window.again_ms() == now_ms + expected_ms);
        CHECK(!window.open(now_ms + expected_ms - 1));
        now_ms += expected_ms;
        CHECK(window.open(now_ms));
        expected_ms = expected_ms * 2 < 60000 ? expected_ms * 2 : 60000;
    }
    window.sent(1, now_ms, least_random);
    window.connected();
    CHECK(window.open(now_ms));
    window.sent(1, now_ms, most_random);
    CHECK(window.again_ms() == now_ms + 1500);
}

TEST_CASE("reconnection waits longer with each failure, and starts anew after a success") {
    Reconnection reconnection;
    CHECK(reconnection.wait_ms(least_random) == 500);
    CHECK(reconnection.wait_ms(least_random) == 1000);
    for (int attempt = 0; attempt < 100; ++attempt) {
        CHECK(reconnection.wait_ms(least_random) <= 30000);
    }
    CHECK(reconnection.wait_ms(most_random) == 15000);
    reconnection.succeeded();
    CHECK(reconnection.wait_ms(least_random) == 500);
}

TEST_CASE("three of four readings beyond a limit sound, two do not") {
    const std::pair<Reading, const char*> beyond[] = {
        {reading_of(40, 97), "slow"}, {reading_of(131, 97), "fast"}, {reading_of(78, 89), "low oxygen"}};
    for (const auto& [broken, why] : beyond) {
        CAPTURE(why);
        Bedside bedside;
        const Reading good = reading_of(78, 97);
        CHECK(bedside.after(good) == Tone::silent);
        CHECK(bedside.after(broken) == Tone::silent);
        CHECK(bedside.after(good) == Tone::silent);
        CHECK(bedside.after(broken) == Tone::silent);
        CHECK(bedside.after(good) == Tone::silent);
        CHECK(bedside.after(broken) == Tone::silent);
        CHECK(bedside.after(broken) == Tone::alarm);
    }
    Bedside bedside;
    for (int count = 0; count < 20; ++count) {
        CHECK(bedside.after(reading_of(41, 90)) == Tone::silent);
        CHECK(bedside.after(reading_of(130, 90)) == Tone::silent);
    }
}

TEST_CASE("an alarm ends when the value has been back inside for half a minute") {
    Bedside bedside;
    for (int count = 0; count < 3; ++count) {
        bedside.after(reading_of(78, 85));
    }
    CHECK(bedside.buzzer.tone(bedside.now_ms) == Tone::alarm);
    for (int count = 0; count < 5; ++count) {
        CHECK(bedside.after(reading_of(78, 97)) == Tone::alarm);
    }
    CHECK(bedside.after(reading_of(78, 97)) == Tone::silent);
}

TEST_CASE("a probe that falls off neither starts nor ends an alarm, and is told after a minute") {
    Bedside bedside;
    for (int count = 0; count < 3; ++count) {
        bedside.after(reading_of(150, 97));
    }
    Reading off = reading_of(0, 0);
    off.contact = Contact::off;
    for (int count = 0; count < 30; ++count) {
        CHECK(bedside.after(off) == Tone::alarm);
    }
    Bedside other;
    CHECK(other.after(reading_of(78, 97)) == Tone::silent);
    for (int count = 0; count < 11; ++count) {
        CHECK(other.after(off) == Tone::silent);
    }
    CHECK(other.after(off) == Tone::technical);
    CHECK(other.after(reading_of(78, 97)) == Tone::silent);
    Bedside never_worn;
    never_worn.after(off);
    CHECK(never_worn.buzzer.tone(never_worn.now_ms + 60000) == Tone::technical);
}

TEST_CASE("the button silences for two minutes, but not what begins after it") {
    Bedside bedside;
    for (int count = 0; count < 3; ++count) {
        bedside.after(reading_of(150, 97));
    }
    bedside.buzzer.hush(bedside.now_ms);
    CHECK(bedside.after(reading_of(150, 97)) == Tone::silent);
    CHECK(bedside.buzzer.tone(bedside.now_ms + Buzzer::hush_ms) == Tone::alarm);
    bedside.after(reading_of(150, 85));
    bedside.after(reading_of(150, 85));
    CHECK(bedside.after(reading_of(150, 85)) == Tone::alarm);
}

TEST_CASE("limits are those of the configuration") {
    Bedside bedside;
    bedside.config.spo2_low = 85;
    for (int count = 0; count < 10; ++count) {
        CHECK(bedside.after(reading_of(78, 88)) == Tone::silent);
    }
}

TEST_CASE("the radio rests with a low battery, yet no pack waits until its readings are late") {
    PowerPolicy policy;
    CHECK(policy.plan(true, 3, false).send_every_ms == 0);
    CHECK(!policy.plan(true, 3, false).radio_sleeps);
    CHECK(policy.plan(false, 80, false).send_every_ms == 0);
    CHECK(policy.plan(false, 80, false).radio_sleeps);
    CHECK(policy.plan(false, 29, false).mode == PowerMode::saving);
    CHECK(policy.plan(false, 34, false).mode == PowerMode::saving);
    CHECK(policy.plan(false, 35, false).mode == PowerMode::full);
    CHECK(policy.plan(false, 9, false).mode == PowerMode::last);
    CHECK(policy.plan(false, 14, false).mode == PowerMode::last);
    CHECK(policy.plan(false, 15, false).mode == PowerMode::saving);
    for (unsigned percent = 0; percent <= 100; ++percent) {
        PowerPolicy fresh;
        CHECK(fresh.plan(false, percent, false).send_every_ms < 60000);
        const PowerPlan alarmed = fresh.plan(false, percent, true);
        CHECK(alarmed.send_every_ms == 0);
        CHECK(!alarmed.radio_sleeps);
    }
}

TEST_CASE("the watchdog is fed only while every task works, and the late one is named") {
    Supervisor supervisor({1000, 2000, 3000, 60000}, 10);
    Task late = Task::sending;
    CHECK(supervisor.all_well(1010, late));
    CHECK(!supervisor.all_well(1011, late));
    CHECK(late == Task::sampling);
    supervisor.alive(Task::sampling, 2000);
    supervisor.alive(Task::judging, 2000);
    CHECK(supervisor.all_well(3000, late));
    supervisor.alive(Task::sampling, 3500);
    CHECK(!supervisor.all_well(3500, late));
    CHECK(late == Task::storing);
}

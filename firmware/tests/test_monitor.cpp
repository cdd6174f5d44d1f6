/// The core as a whole: what it says, until it is acknowledged.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <random>

#include "fake_flash.hpp"
#include "mbedtls_aead.hpp"
#include "monitor.hpp"
#include "samples.hpp"
#include "senml.hpp"

using namespace fajma;
using fajma::testing::FakeFlash;
using fajma::testing::Octets;

namespace {

const Address device = {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7E}};
constexpr std::uint64_t first_number = Journal::numbers_per_enrolment;

class HandClock final : public Clock {
 public:
    std::uint64_t mono_ms() const override { return mono; }
    std::uint64_t unix_ms() const override { return unix; }
    void set_unix_ms(std::uint64_t now) override { unix = now; }

    std::uint64_t mono = 1000;
    std::uint64_t unix = 0;
};

class SeededRandom final : public Random {
 public:
    void fill(std::uint8_t* into, std::size_t size) override {
        for (std::size_t index = 0; index < size; ++index) {
            into[index] = static_cast<std::uint8_t>(engine_());
        }
    }

 private:
    std::mt19937 engine_;
};

/// A monitor and, for the other end, the same keys.
struct Ward {
    const Octets up_raw = Octets(32, 1);
    const Octets down_raw = Octets(32, 2);
    FakeFlash flash{8, 4096};
    HandClock clock;
    SeededRandom random;
    MbedtlsAead up{up_raw.data()};
    MbedtlsAead down{down_raw.data()};
    Journal journal{flash};
    std::unique_ptr<Monitor> monitor;
    PowerPlan plan{PowerMode::full, false, 0};

    Ward() {
        REQUIRE(journal.format(first_number, Config()));
        REQUIRE(journal.open() == Journal::Opened::sound);
        monitor = std::make_unique<Monitor>(clock, random, journal, Key{device, 1, up}, Key{device, 1, down});
    }

    void measure() {
        clock.mono += 5000;
        clock.unix += clock.unix > 0 ? 5000 : 0;
        Reading reading;
        reading.set(Measure::heart_rate, 78 * scale);
        reading.set(Measure::spo2, 97 * scale);
        reading.contact = Contact::on;
        REQUIRE(monitor->measure(reading));
    }

    /// Numbers of the records in what it publishes now.
    std::vector<std::uint64_t> said() {
        std::vector<std::uint64_t> numbers;
        const Bytes payload = monitor->outgoing(plan);
        if (payload.size == 0) {
            return numbers;
        }
        Octets copy(payload.data, payload.data + payload.size);
        Bytes content;
        REQUIRE(open(Key{device, 1, up}, topic_of(device, Channel::vitals).text(), copy.data(), copy.size(), content) ==
                Refusal::none);
        Records records(content, device, "seq");
        while (!records.at_end()) {
            Record record;
            REQUIRE(records.next(record) == Refusal::none);
            if (record.name == "seq") {
                numbers.push_back(record.value.argument - first_number);
            }
        }
        return numbers;
    }

    Refusal tell(Channel channel, Bytes content, Aead& with) {
        std::vector<std::uint8_t> buffer(seal_headroom + content.size + tag_bytes);
        std::memcpy(buffer.data() + seal_headroom, content.data, content.size);
        const Topic topic = topic_of(device, channel);
        const Bytes sealed =
            seal(Key{device, 1, with}, random, topic.text(), buffer.data() + seal_headroom, content.size);
        Octets payload(sealed.data, sealed.data + sealed.size);
        return monitor->hear(topic.text(), payload.data(), payload.size());
    }

    Refusal acknowledge(std::uint64_t record, Aead& with, std::uint64_t at_ms = 1772460120123) {
        std::uint8_t buffer[128];
        cbor::Writer writer(buffer, sizeof buffer);
        writer.array(1);
        writer.map(4);
        writer.whole(label::n);
        writer.text("ack");
        writer.whole(label::v);
        writer.whole(first_number + record);
        writer.integer(label::bn);
        writer.text(base_name(device).text());
        writer.integer(label::bt);
        writer.decimal(static_cast<std::int64_t>(at_ms), -3);
        return tell(Channel::ack, writer.written(), with);
    }
};

using Numbers = std::vector<std::uint64_t>;

}  // namespace

TEST_CASE("what is measured is said at once, and again until it is acknowledged") {
    Ward ward;
    CHECK(ward.said().empty());
    ward.measure();
    CHECK(ward.said() == Numbers{0});
    CHECK(ward.said().empty());  // one pack is outstanding
    ward.measure();              // five seconds later
    CHECK(ward.said() == Numbers{0, 1});
    CHECK(ward.acknowledge(1, ward.down) == Refusal::none);
    CHECK(ward.said().empty());
    ward.measure();
    CHECK(ward.said() == Numbers{2});
}

TEST_CASE("only our sealed acknowledgement of what was measured deletes") {
    Ward ward;
    ward.measure();
    ward.measure();
    CHECK(ward.acknowledge(0, ward.up) == Refusal::not_authentic);
    CHECK(ward.acknowledge(2, ward.down) == Refusal::stale);
    std::uint8_t nonsense[] = {'n', 'o'};
    CHECK(ward.monitor->hear(topic_of(device, Channel::ack).text(), nonsense, 2) == Refusal::not_cose);
    CHECK(ward.journal.oldest() == first_number);
    CHECK(ward.clock.unix == 0);
    CHECK(ward.acknowledge(0, ward.down) == Refusal::none);
    CHECK(ward.journal.oldest() == first_number + 1);
    CHECK(ward.clock.unix == 1772460120123);  // the clock that nobody had set
    CHECK(ward.acknowledge(0, ward.down, 1) != Refusal::none);
    CHECK(ward.clock.unix == 1772460120123);
}

TEST_CASE("a backlog goes pack after pack, fifty at a time, without waiting") {
    Ward ward;
    for (int count = 0; count < 120; ++count) {
        ward.measure();
    }
    std::vector<std::size_t> sizes;
    std::uint64_t acknowledged = 0;
    for (Numbers numbers = ward.said(); !numbers.empty(); numbers = ward.said()) {
        CHECK(numbers.front() == acknowledged);
        sizes.push_back(numbers.size());
        acknowledged = numbers.back() + 1;
        CHECK(ward.acknowledge(numbers.back(), ward.down) == Refusal::none);
    }
    CHECK(sizes == std::vector<std::size_t>{50, 50, 20});
}

TEST_CASE("an acknowledgement of less than the pack leaves the pack outstanding") {
    Ward ward;
    ward.measure();
    ward.measure();
    CHECK(ward.said() == Numbers{0, 1});
    CHECK(ward.acknowledge(0, ward.down) == Refusal::none);
    CHECK(ward.said().empty());
    ward.clock.mono += Window::first_wait_ms;
    CHECK(ward.said() == Numbers{1});
    ward.monitor->connected();
    CHECK(ward.said() == Numbers{1});
}

TEST_CASE("a clock that says what cannot be is as good as none") {
    Ward ward;
    for (const std::uint64_t absurd : {std::uint64_t{1000}, first_absolute_ms - 5001, year_10000_ms}) {
        ward.clock.unix = absurd;
        ward.measure();
    }
    ward.clock.unix = first_absolute_ms;
    ward.measure();
    Journal::Walk walk(ward.journal);
    Entry entry;
    for (const std::uint64_t expected : {0, 0, 0, 1}) {
        REQUIRE(walk.next(entry));
        CHECK((entry.reading.unix_ms != 0) == (expected == 1));
    }
}

TEST_CASE("a battery that is low makes packs rarer, never readings") {
    Ward ward;
    ward.plan.send_every_ms = 20000;
    ward.measure();
    CHECK(ward.said() == Numbers{0});
    CHECK(ward.acknowledge(0, ward.down) == Refusal::none);
    for (std::uint64_t number = 1; number < 4; ++number) {
        ward.measure();
        CHECK(ward.said().empty());
    }
    ward.measure();
    CHECK(ward.said() == Numbers{1, 2, 3, 4});
}

TEST_CASE("a configuration is obeyed once, and is still in force after a restart") {
    Ward ward;
    std::uint8_t buffer[128];
    cbor::Writer writer(buffer, sizeof buffer);
    writer.array(2);
    writer.map(3);
    writer.whole(label::n);
    writer.text("counter");
    writer.whole(label::v);
    writer.whole(1);
    writer.integer(label::bn);
    writer.text(base_name(device).text());
    writer.map(2);
    writer.whole(label::n);
    writer.text("period");
    writer.whole(label::v);
    writer.whole(2000);
    CHECK(ward.tell(Channel::config, writer.written(), ward.up) == Refusal::not_authentic);
    CHECK(ward.monitor->config().period_ms == 5000);
    CHECK(ward.tell(Channel::config, writer.written(), ward.down) == Refusal::none);
    CHECK(ward.tell(Channel::config, writer.written(), ward.down) == Refusal::stale);
    CHECK(ward.monitor->config().period_ms == 2000);
    Journal again(ward.flash);
    REQUIRE(again.open() == Journal::Opened::sound);
    CHECK(again.config().period_ms == 2000);
    CHECK(again.config().counter == 1);
}

TEST_CASE("the buzzer sounds with flash that takes nothing and no network") {
    Ward ward;
    ward.flash.cut_after(0, 1);
    for (int count = 0; count < 3; ++count) {
        Reading reading;
        reading.set(Measure::heart_rate, 150 * scale);
        ward.clock.mono += 5000;
        CHECK(!ward.monitor->measure(reading));
    }
    CHECK(ward.monitor->buzzer().tone(ward.clock.mono) == Tone::alarm);
}

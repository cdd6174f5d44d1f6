/// The journal, with the power cut at every moment.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>

#include "crc.hpp"
#include "fake_flash.hpp"
#include "journal.hpp"

using namespace fajma;
using fajma::testing::FakeFlash;

namespace {

constexpr std::uint64_t first_number = 7 * Journal::numbers_per_enrolment;

Reading reading_of(std::uint32_t seed) {
    Reading reading;
    reading.mono_ms = seed * 1000ull;
    reading.unix_ms = seed % 3 == 0 ? 0 : 1772460120000ull + seed;
    reading.set(Measure::heart_rate, static_cast<std::int32_t>(seed));
    reading.set(Measure::temperature, -static_cast<std::int32_t>(seed % 1000));
    reading.quality = static_cast<std::uint8_t>(seed % 101);
    reading.contact = static_cast<Contact>(seed % 3);
    return reading;
}

bool same(const Reading& one, const Reading& other) {
    return one.number == other.number && one.boot == other.boot && one.mono_ms == other.mono_ms &&
           one.unix_ms == other.unix_ms && one.measured == other.measured && one.quality == other.quality &&
           one.contact == other.contact && std::equal(one.values, one.values + measures, other.values);
}

std::vector<Entry> all(const Journal& journal) {
    std::vector<Entry> entries;
    Journal::Walk walk(journal);
    Entry entry;
    while (walk.next(entry)) {
        entries.push_back(entry);
    }
    return entries;
}

/// A device whose power may go at any moment, and beside it what must be true of its journal.
class Bench {
 public:
    Bench(std::size_t sectors, std::size_t sector_bytes)
        : flash(sectors, sector_bytes), slots_(sector_bytes / 64 - 2), sectors_(sectors) {
        Journal journal(flash);
        REQUIRE(journal.open() == Journal::Opened::blank);
        REQUIRE(journal.format(first_number, Config()));
        start();
    }

    /// Power comes back.
    void power_on() {
        flash.restore();
        start();
    }

    /// Everything that was in RAM is gone.
    void start() {
        journal.emplace(flash);
        const Journal::Opened opened = journal->open();
        if (flash.dead()) {
            return;
        }
        REQUIRE(opened == Journal::Opened::sound);
        slots_written += 2;
        CHECK(journal->boot() > boot_);
        boot_ = journal->boot();
        check();
    }

    void add(std::uint32_t seed) {
        Reading reading = reading_of(seed);
        const bool stored = journal->add(reading);
        slots_written += 2;  // the reading and maybe a mark
        if (reading.number == 0) {
            CHECK(flash.dead());
            return;
        }
        CHECK(reading.number > last_number_);  // never one twice
        last_number_ = reading.number;
        tried_[reading.number] = reading;
        if (stored) {
            CHECK(!flash.dead());
            stored_at_[reading.number] = slots_written;
        } else {
            CHECK(flash.dead());
        }
    }

    void acknowledge(std::uint64_t record) {
        if (journal->acknowledge(record)) {
            acknowledged_to_ = std::max(acknowledged_to_, record + 1);
        }
    }

    /// Whatever has become of the bits: what is yielded is what was measured.
    void check_rotten() {
        Journal rotten(flash);
        if (rotten.open() != Journal::Opened::sound) {
            return;
        }
        std::uint64_t expected = rotten.oldest();
        for (const Entry& entry : all(rotten)) {
            REQUIRE(entry.first() == expected);
            expected = entry.last() + 1;
            if (!entry.is_gap) {
                REQUIRE(tried_.count(entry.reading.number) == 1);
                CHECK(same(tried_[entry.reading.number], entry.reading));
                ++yielded;
            }
        }
    }

    /// Everything that must be true of what the journal holds.
    void check() {
        const std::vector<Entry> entries = all(*journal);
        CHECK(journal->oldest() <= acknowledged_to_);  // nothing is gone that was not acknowledged
        std::uint64_t expected = journal->oldest();
        std::uint64_t lost = 0;
        for (const Entry& entry : entries) {
            REQUIRE(entry.first() == expected);  // none missing, none twice, in order
            REQUIRE(entry.last() >= entry.first());
            expected = entry.last() + 1;
            if (!entry.is_gap) {
                const auto tried = tried_.find(entry.reading.number);
                REQUIRE(tried != tried_.end());
                CHECK(same(tried->second, entry.reading));
                continue;
            }
            lost += entry.gap.overwritten ? entry.gap.count : 0;
            for (auto at = stored_at_.lower_bound(entry.first()); at != stored_at_.end() && at->first <= entry.last();
                 ++at) {
                CHECK(entry.gap.overwritten);  // "left out" is never said of what was measured
                // Overwritten only when the ring had gone round.
                CHECK(slots_written - at->second >= (sectors_ - 2) * slots_);
            }
        }
        CHECK(expected == journal->next());
        CHECK(flash.misuses == 0);
        lost_ = lost;
    }

    std::uint64_t lost() const { return lost_; }

    FakeFlash flash;
    std::optional<Journal> journal;
    std::uint64_t slots_written = 0;  ///< at most
    std::uint64_t yielded = 0;        ///< readings, by flash that has rotted

 private:
    std::size_t slots_;
    std::size_t sectors_;
    std::uint32_t boot_ = 0;
    std::uint64_t last_number_ = first_number - 1;
    std::uint64_t acknowledged_to_ = first_number;
    std::uint64_t lost_ = 0;
    std::map<std::uint64_t, Reading> tried_;
    std::map<std::uint64_t, std::uint64_t> stored_at_;
};

/// One random step.
void go_on(Bench& bench, std::mt19937& random) {
    const std::uint32_t dice = random() % 10;
    if (dice < 7) {
        bench.add(random());
    } else if (dice < 9) {
        const std::uint64_t waiting = bench.journal->next() - bench.journal->oldest();
        bench.acknowledge(bench.journal->oldest() + random() % (waiting + 2) - 1);
    } else if (!bench.flash.dead() && random() % 4 == 0) {
        bench.start();
    }
}

}  // namespace

TEST_CASE("check sums are those of the standards") {
    const std::uint8_t digits[] = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
    CHECK(crc32({digits, 9}) == 0xCBF43926u);
    CHECK(crc32({digits + 4, 5}, crc32({digits, 4})) == 0xCBF43926u);
    CHECK(crc8_1wire({digits, 9}) == 0xA1);
}

TEST_CASE("what is added is there after a restart, with its own time, and numbers go on behind the block") {
    Bench bench(4, 4096);
    for (std::uint32_t seed = 0; seed < 10; ++seed) {
        bench.add(seed);
    }
    bench.acknowledge(first_number + 3);
    bench.start();
    const auto entries = all(*bench.journal);
    REQUIRE(bench.journal->oldest() == first_number);  // the acknowledgement was not worth a write of its own
    REQUIRE(entries.size() == 11);
    CHECK(entries[9].reading.number == first_number + 9);
    CHECK(entries[9].reading.boot == 1);
    CHECK(entries[9].reading.mono_ms == 9000);
    CHECK(entries[10].is_gap);
    CHECK(!entries[10].gap.overwritten);
    CHECK(entries[10].gap.first == first_number + 10);
    CHECK(entries[10].gap.count == Journal::block - 10);
    Reading reading = reading_of(1);
    REQUIRE(bench.journal->add(reading));
    CHECK(reading.number == first_number + Journal::block);
    CHECK(reading.boot == 2);
}

TEST_CASE("only what is named is deleted, and nothing that was never measured") {
    Bench bench(4, 4096);
    for (std::uint32_t seed = 0; seed < 5; ++seed) {
        bench.add(seed);
    }
    CHECK(!bench.journal->acknowledge(first_number + 5));
    CHECK(!bench.journal->acknowledge(first_number - 1));
    CHECK(bench.journal->acknowledge(first_number + 1));
    CHECK(!bench.journal->acknowledge(first_number + 1));
    CHECK(all(*bench.journal).size() == 3);
    CHECK(bench.journal->acknowledge(first_number + 4));
    CHECK(bench.journal->empty());
    CHECK(all(*bench.journal).empty());
}

TEST_CASE("a gap of numbers left out can be acknowledged in part") {
    Bench bench(4, 4096);
    bench.start();
    bench.acknowledge(first_number + 99);
    const auto entries = all(*bench.journal);
    REQUIRE(entries.size() == 1);
    CHECK(entries[0].gap.first == first_number + 100);
    CHECK(entries[0].gap.count == Journal::block - 100);
}

TEST_CASE("a full journal overwrites the oldest, says so exactly, and wears all sectors alike") {
    Bench bench(8, 512);  // 6 slots in a sector
    bench.add(1);
    bench.start();
    for (std::uint32_t seed = 0; seed < 1000; ++seed) {
        bench.add(seed);
        bench.check();
    }
    const auto entries = all(*bench.journal);
    REQUIRE(entries.size() > 3);
    CHECK(entries[0].gap.overwritten);
    CHECK(entries[0].gap.count == 1);
    CHECK(!entries[1].gap.overwritten);
    CHECK(entries[1].gap.count == Journal::block - 1);
    CHECK(entries[2].gap.overwritten);
    CHECK(bench.lost() + (entries.size() - 3) == 1001);
    CHECK(entries.size() - 3 >= 36);  // what all sectors but two hold
    const auto [least, most] = std::minmax_element(bench.flash.erased.begin(), bench.flash.erased.end());
    CHECK(*most - *least <= 1);
    bench.start();
    std::uint64_t readings = 0;
    for (const Entry& entry : all(*bench.journal)) {
        readings += entry.is_gap ? 0 : 1;
    }
    CHECK(bench.lost() + readings == 1001);
}

TEST_CASE("more stretches of missing numbers than a header holds are called lost, never left out") {
    Bench bench(4, 512);
    for (std::uint32_t seed = 0; seed < 40; ++seed) {
        bench.add(seed);
        bench.start();
        bench.check();
    }
}

TEST_CASE("a cut at every single operation of flash loses nothing that was stored") {
    for (std::uint32_t seed = 0; seed < 3; ++seed) {
        for (std::uint64_t cut = 0; cut < 160; ++cut) {
            CAPTURE(seed);
            CAPTURE(cut);
            Bench bench(4, 512);
            std::mt19937 random(seed);
            bench.flash.cut_after(cut, static_cast<std::uint32_t>(cut * 31 + seed));
            for (int step = 0; step < 220 && !bench.flash.dead(); ++step) {
                go_on(bench, random);
            }
            REQUIRE(bench.flash.dead());
            bench.power_on();
            for (int step = 0; step < 60; ++step) {
                go_on(bench, random);
            }
            bench.check();
        }
    }
}

TEST_CASE("thousands of cuts one after the other, also while it starts, lose nothing that was stored") {
    for (std::uint32_t seed = 0; seed < 4; ++seed) {
        CAPTURE(seed);
        std::mt19937 random(seed);
        Bench bench(3 + seed, seed % 2 == 0 ? 512 : 1024);
        for (int round = 0; round < 500; ++round) {
            bench.flash.cut_after(random() % 40, random());
            for (int step = 0; step < 80 && !bench.flash.dead(); ++step) {
                go_on(bench, random);
            }
            do {
                bench.flash.restore();
                if (random() % 3 == 0) {
                    bench.flash.cut_after(random() % 4, random());  // the start is cut too
                    bench.journal.emplace(bench.flash);
                    bench.journal->open();
                    bench.slots_written += 2;
                }
            } while (bench.flash.dead());
            bench.power_on();
        }
    }
}

TEST_CASE("a format that was cut short is done again, and never yields old records") {
    for (std::uint64_t cut = 0; cut < 6; ++cut) {
        CAPTURE(cut);
        Bench bench(4, 512);
        for (std::uint32_t seed = 0; seed < 20; ++seed) {
            bench.add(seed);
        }
        bench.flash.cut_after(cut, static_cast<std::uint32_t>(cut));
        const std::uint64_t again = first_number + Journal::numbers_per_enrolment;
        const bool formatted = Journal(bench.flash).format(again, Config());
        CHECK(formatted == (cut >= 5));
        bench.flash.restore();
        Journal journal(bench.flash);
        REQUIRE(journal.format(again, Config()));
        REQUIRE(journal.open() == Journal::Opened::sound);
        CHECK(journal.oldest() == again);
        CHECK(journal.boot() == 1);
        CHECK(all(journal).empty());
    }
}

TEST_CASE("a record whose bits have rotted is told as lost, and the others stay") {
    Bench bench(4, 4096);
    for (std::uint32_t seed = 0; seed < 6; ++seed) {
        bench.add(seed);
    }
    bench.flash.content[128 + 64 * 3 + 20] ^= 0x10;  // behind the header and the mark: the third record
    const auto entries = all(*bench.journal);
    REQUIRE(entries.size() == 6);
    CHECK(entries[2].is_gap);
    CHECK(entries[2].gap.overwritten);
    CHECK(entries[2].gap.count == 1);
    CHECK(same(entries[3].reading, [] {
        Reading reading = reading_of(3);
        reading.number = first_number + 3;
        reading.boot = 1;
        return reading;
    }()));
}

TEST_CASE("bits that rot anywhere never make a wrong record") {
    std::mt19937 random(3);
    Bench bench(4, 1024);
    for (int step = 0; step < 100; ++step) {
        go_on(bench, random);
    }
    const std::vector<std::uint8_t> sound = bench.flash.content;
    for (int round = 0; round < 3000; ++round) {
        bench.flash.content = sound;
        for (std::uint32_t flips = 1 + random() % 12; flips > 0; --flips) {
            bench.flash.content[random() % sound.size()] ^= static_cast<std::uint8_t>(1u << random() % 8);
        }
        if (round % 3 == 0) {  // a stretch from elsewhere
            const std::size_t from = random() % (sound.size() - 64);
            std::copy_n(sound.begin() + static_cast<std::ptrdiff_t>(from), 64,
                        bench.flash.content.begin() + static_cast<std::ptrdiff_t>(random() % (sound.size() / 64) * 64));
        }
        bench.check_rotten();
    }
    CHECK(bench.yielded > 10000);
}

TEST_CASE("whichever single byte rots, numbers and starts go on, and one record is lost at most") {
    std::mt19937 random(4);
    Bench bench(4, 1024);
    for (int step = 0; step < 150; ++step) {
        go_on(bench, random);
    }
    const std::vector<std::uint8_t> sound = bench.flash.content;
    const std::uint32_t boot = bench.journal->boot();
    const std::uint64_t next = bench.journal->next();
    const auto readings = [](const Journal& journal) {
        const auto entries = all(journal);
        return std::count_if(entries.begin(), entries.end(), [](const Entry& entry) { return !entry.is_gap; });
    };
    Journal before(bench.flash);
    REQUIRE(before.open() == Journal::Opened::sound);
    const auto all_of_them = readings(before);
    REQUIRE(all_of_them > 10);
    for (std::size_t at = 0; at < sound.size(); ++at) {
        CAPTURE(at);
        bench.flash.content = sound;
        bench.flash.content[at] ^= static_cast<std::uint8_t>(1u << at % 8);
        Journal journal(bench.flash);
        REQUIRE(journal.open() == Journal::Opened::sound);
        CHECK(journal.boot() > boot);
        CHECK(journal.next() > next);
        CHECK(readings(journal) >= all_of_them - 1);
    }
}

TEST_CASE("a sector whose header has rotted is known by its slots, the newest too") {
    for (const std::size_t sector : {0, 1, 2}) {
        CAPTURE(sector);
        Bench bench(4, 1024);  // 14 slots in a sector, the first of which is the mark of the start
        for (std::uint32_t seed = 0; seed < 35; ++seed) {
            bench.add(seed);
        }
        bench.flash.content[1024 * sector + 30] ^= 1;
        Journal journal(bench.flash);
        REQUIRE(journal.open() == Journal::Opened::sound);
        const auto entries = all(journal);
        REQUIRE(entries.size() == 36);
        for (std::size_t index = 0; index < 35; ++index) {
            CHECK(entries[index].reading.number == first_number + index);
        }
        CHECK(entries[35].gap.count == Journal::block - 35);
    }
}

TEST_CASE("readings prove what the rotten mark of their start said") {
    Bench bench(4, 4096);
    bench.start();
    bench.start();  // the third start: its numbers are beyond the second block
    bench.add(1);
    bench.add(2);
    bench.flash.content[128 + 64 * 2 + 20] ^= 1;
    Journal journal(bench.flash);
    REQUIRE(journal.open() == Journal::Opened::sound);
    CHECK(journal.boot() == 4);
    CHECK(journal.next() >= first_number + 2 * Journal::block + 2);
    const auto entries = all(journal);
    CHECK(std::count_if(entries.begin(), entries.end(), [](const Entry& entry) { return !entry.is_gap; }) == 2);
}

TEST_CASE("flash that nobody can read is damaged, not blank, so that numbers do not begin anew") {
    FakeFlash flash(4, 512);
    CHECK(Journal(flash).open() == Journal::Opened::blank);
    flash.content[5] = 0;
    CHECK(Journal(flash).open() == Journal::Opened::damaged);
}

TEST_CASE("flash that takes nothing for a moment is told at once, and costs nothing that was stored") {
    for (std::uint32_t randomness = 0; randomness < 30; ++randomness) {
        CAPTURE(randomness);
        Bench bench(4, 1024);
        bench.add(1);
        bench.flash.cut_after(0, randomness);
        bench.add(2);
        CHECK(bench.flash.dead());
        bench.flash.restore();
        bench.add(3);
        bench.check();
        bench.add(4);
        bench.start();
        bench.add(5);
        bench.check();
        CHECK(all(*bench.journal)[0].reading.number == first_number);
    }
}

TEST_CASE("a configuration that is obeyed stays so over restarts, whatever is written behind it") {
    Bench bench(4, 512);
    Config config;
    config.counter = 12;
    config.period_ms = 2000;
    config.heart_rate_low = 45;
    config.heart_rate_high = 140;
    config.spo2_low = 88;
    REQUIRE(bench.journal->obey(config));
    for (std::uint32_t seed = 0; seed < 100; ++seed) {
        bench.add(seed);
        if (seed % 7 == 0) {
            bench.start();
        }
        CHECK(bench.journal->config().counter == 12);
        CHECK(bench.journal->config().period_ms == 2000);
        CHECK(bench.journal->config().heart_rate_low == 45);
        CHECK(bench.journal->config().heart_rate_high == 140);
        CHECK(bench.journal->config().spo2_low == 88);
    }
    bench.flash.cut_after(0, 3);
    config.counter = 13;
    CHECK(!bench.journal->obey(config));
    CHECK(bench.journal->config().counter == 12);
}

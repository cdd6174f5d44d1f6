/// Packs, acknowledgements and what is under their seal: against the golden samples.
#include <doctest/doctest.h>

#include <set>

#include "ack.hpp"
#include "envelope.hpp"
#include "pack.hpp"
#include "samples.hpp"
#include "senml.hpp"

using namespace fajma;
using fajma::testing::Octets;
using fajma::testing::Sample;
using fajma::testing::samples;
using fajma::testing::unhex;

namespace {

const Address device = {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7E}};

Bytes view(const Octets& octets) { return {octets.data(), octets.size()}; }

/// What `Records` says of a whole pack.
Refusal judged(Bytes content, const char* timed = "seq") {
    Records records(content, device, timed);
    Record record;
    Refusal refusal = Refusal::none;
    do {
        refusal = records.next(record);
    } while (refusal == Refusal::none && !records.at_end());
    return refusal;
}

bool begins_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

}  // namespace

TEST_CASE("a pack of each canonical sample is written bit for bit") {
    int written = 0;
    for (const Sample& sample : samples()) {
        if (!sample.canonical || !sample.pack) {
            continue;
        }
        CAPTURE(sample.name);
        std::uint8_t buffer[max_sealed_bytes];
        PackWriter writer(buffer, sizeof buffer, device, sample.pack->oldest, sample.pack->boot, sample.pack->sent_ms);
        for (const Entry& entry : sample.pack->entries) {
            REQUIRE(writer.add(entry));
        }
        const Bytes content = writer.finish();
        CHECK(content == view(*sample.plaintext));
        CHECK(judged(content) == Refusal::none);
        ++written;
    }
    CHECK(written >= 13);
}

TEST_CASE("an entry that does not fit leaves the pack as it was") {
    std::uint8_t buffer[220];
    PackWriter writer(buffer, sizeof buffer, device, 1, 1, 1000);
    Entry entry;
    entry.reading.number = 1;
    entry.reading.set(Measure::spo2, 97 * scale);
    std::size_t taken = 0;
    while (writer.add(entry)) {
        ++taken;
        ++entry.reading.number;
    }
    CHECK(taken >= 2);
    CHECK(writer.entries() == taken);
    const Bytes content = writer.finish();
    CHECK(judged(content) == Refusal::none);
    PackWriter exact(buffer, sizeof buffer, device, 1, 1, 1000);
    std::uint8_t small[40];
    PackWriter hopeless(small, sizeof small, device, 1, 1, 1000);
    CHECK(hopeless.finish().size == 0);
}

TEST_CASE("what is under the seal of each sample is judged as Python judges it, as far as a device reads packs") {
    // These refusals are about CBOR and SenML as such; the others are rules for readings, which only we read.
    const std::set<std::string> ours = {"not_cbor",  "too_deep",       "duplicate_key",
                                        "not_senml", "not_understood", "wrong_device"};
    const std::set<std::string> of_records = {
        "refused_two_values",     "refused_two_odd_values", "refused_base_unit",           "refused_base_value",
        "refused_base_sum",       "refused_own_time",       "refused_base_time_elsewhere", "refused_no_base_name",
        "refused_late_base_name", "refused_name_number"};
    int refused = 0;
    for (const Sample& sample : samples()) {
        if (!sample.plaintext || begins_with(sample.name, "ack_")) {
            continue;
        }
        CAPTURE(sample.name);
        const std::string said = code(judged(view(*sample.plaintext)));
        if (ours.count(sample.error) > 0) {
            CHECK(said == sample.error);
            ++refused;
        } else if (of_records.count(sample.name) > 0) {
            CHECK(said == "bad_pack");
            ++refused;
        } else if (sample.error == "bad_pack") {
            CHECK((said == "none" || said == "bad_pack"));
        } else {
            CHECK(said == "none");
        }
    }
    CHECK(refused >= 35);
}

TEST_CASE("an acknowledgement of each sample is read as Python reads it") {
    int read = 0;
    for (const Sample& sample : samples()) {
        if (!begins_with(sample.name, "ack_") || !sample.plaintext) {
            continue;
        }
        CAPTURE(sample.name);
        Ack ack;
        const Refusal refusal = read_ack(view(*sample.plaintext), device, ack);
        ++read;
        if (!sample.error.empty()) {
            CHECK(std::string(code(refusal)) == sample.error);
            CHECK(ack.committed == 0);
            continue;
        }
        CHECK(refusal == Refusal::none);
        CHECK(ack.committed == sample.ack.committed);
        CHECK(ack.unix_ms == sample.ack.unix_ms);
    }
    CHECK(read >= 8);
}

TEST_CASE("times are rounded to milliseconds, half to even, and relative ones are refused") {
    const auto ms_of = [](const char* hex) {
        const Octets octets = unhex(hex);
        std::uint64_t ms = 1;
        const Refusal refusal = instant_ms(cbor::Cursor(view(octets)).next(), ms);
        return refusal == Refusal::none ? static_cast<std::int64_t>(ms) : -1;
    };
    CHECK(ms_of("00") == 0);
    CHECK(ms_of("1a10000000") == 268435456000);
    CHECK(ms_of("1a0fffffff") == -1);
    CHECK(ms_of("fb41b0000000000000") == 268435456000);
    CHECK(ms_of("fb41affffffffffff8") == 268435456000);   // rounded up to the first that counts
    CHECK(ms_of("fb41da69666dea0000") == 1772460471656);  // ....65625: half
    CHECK(ms_of("c4822319000f") == -1);
    CHECK(ms_of("c482221b00005c50aeb27305") == 101501598069509);
    CHECK(ms_of("c482001b00005c50aeb27305") == -1);  // the same number of seconds
    CHECK(ms_of("fb7ff8000000000000") == -1);
    CHECK(ms_of("fb7ff0000000000000") == -1);
    CHECK(ms_of("fbc1d26580b4800000") == -1);
    CHECK(ms_of("f97e00") == -1);
    CHECK(ms_of("f5") == -1);
    CHECK(ms_of("1b0000003afff44180") == -1);  // the year 10000
    CHECK(ms_of("1b0000003afff4417f") == 253402300799000);
}

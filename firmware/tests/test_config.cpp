/// What a device is told to do.
#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "cbor.hpp"
#include "config.hpp"
#include "senml.hpp"

using namespace fajma;

namespace {

const Address device = {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7E}};

struct Stated {
    const char* name;
    std::uint64_t value;
    const char* unit = nullptr;
};

/// A configuration as FAJMA would write it.
struct Pack {
    std::array<std::uint8_t, 512> buffer{};
    Bytes content;

    explicit Pack(std::vector<Stated> records, const Address& to = device) {
        cbor::Writer writer(buffer.data(), buffer.size());
        writer.array(records.size());
        bool first = true;
        for (const Stated& stated : records) {
            writer.map(2 + (first ? 1 : 0) + (stated.unit ? 1 : 0));
            if (first) {
                writer.integer(label::bn);
                writer.text(base_name(to).text());
            }
            first = false;
            writer.whole(label::n);
            writer.text(stated.name);
            if (stated.unit) {
                writer.whole(label::u);
                writer.text(stated.unit);
            }
            writer.whole(label::v);
            writer.whole(stated.value);
        }
        REQUIRE(writer.fits());
        content = writer.written();
    }
};

Refusal told(const Pack& pack, Config& config) { return read_config(pack.content, device, config); }

}  // namespace

TEST_CASE("a configuration is obeyed as far as it goes, the rest stays") {
    Config config;
    CHECK(told(Pack({{"counter", 3}, {"period", 2000, "ms"}, {"spo2_low", 85}, {"colour", 4}}), config) ==
          Refusal::none);
    CHECK(config.counter == 3);
    CHECK(config.period_ms == 2000);
    CHECK(config.spo2_low == 85);
    CHECK(config.heart_rate_high == Config().heart_rate_high);
    CHECK(told(Pack({{"counter", 9}, {"heart_rate_low", 50, "/min"}, {"heart_rate_high", 120}}), config) ==
          Refusal::none);
    CHECK(config.heart_rate_low == 50);
    CHECK(config.heart_rate_high == 120);
    CHECK(config.spo2_low == 85);
}

TEST_CASE("a configuration that is old, out of its limits or stated twice changes nothing") {
    Config config;
    config.counter = 5;
    const auto refused = [&](std::vector<Stated> records, const Address& to = device) {
        const Refusal refusal = told(Pack(std::move(records), to), config);
        CHECK(config.counter == 5);
        CHECK(config.period_ms == 5000);
        CHECK(config.spo2_low == 90);
        return refusal;
    };
    CHECK(refused({{"counter", 5}, {"period", 2000}}) == Refusal::stale);
    CHECK(refused({{"counter", 4}, {"period", 2000}}) == Refusal::stale);
    CHECK(refused({{"counter", 0}}) == Refusal::bad_pack);
    CHECK(refused({{"period", 2000}, {"counter", 6}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"counter", 7}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"period", 2000}, {"spo2_low", 0}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"spo2_low", 100}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"period", 999}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"period", 60001}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"period", 2, "s"}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"period", 2000}, {"period", 3000}}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}, {"silence_", 1}}) == Refusal::not_understood);
    CHECK(refused({}) == Refusal::bad_pack);
    CHECK(refused({{"counter", 6}}, {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7F}}) == Refusal::wrong_device);
}

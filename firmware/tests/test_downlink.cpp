/// What a device is told: configuration, and new firmware.
#include <doctest/doctest.h>
#include <sodium.h>

#include <array>
#include <functional>
#include <vector>

#include "cbor.hpp"
#include "config.hpp"
#include "ota.hpp"
#include "senml.hpp"
#include "sodium_verifier.hpp"

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

/// A manifest signed by a maker whose key is made for the test.
struct Maker {
    std::uint8_t public_key[crypto_sign_PUBLICKEYBYTES];
    std::uint8_t secret_key[crypto_sign_SECRETKEYBYTES];

    Maker() {
        REQUIRE(sodium_init() >= 0);
        std::uint8_t seed[crypto_sign_SEEDBYTES] = {1, 2, 3};
        crypto_sign_seed_keypair(public_key, secret_key, seed);
    }

    std::vector<std::uint8_t> signed_manifest(std::uint64_t version, const char* hardware, std::uint64_t size,
                                              std::size_t digest_bytes = 32) const {
        std::uint8_t payload[256];
        cbor::Writer inner(payload, sizeof payload);
        inner.map(4);
        inner.whole(1);
        inner.whole(version);
        inner.whole(2);
        inner.text(hardware);
        inner.whole(3);
        inner.whole(size);
        inner.whole(4);
        const std::vector<std::uint8_t> digest(digest_bytes, 0xAB);
        inner.bytes({digest.data(), digest.size()});
        const std::uint8_t header[] = {0xa1, 0x01, 0x27};
        std::uint8_t structure[512];
        cbor::Writer to_sign(structure, sizeof structure);
        to_sign.array(4);
        to_sign.text("Signature1");
        to_sign.bytes({header, sizeof header});
        to_sign.bytes({});
        to_sign.bytes(inner.written());
        std::uint8_t signature[crypto_sign_BYTES];
        crypto_sign_detached(signature, nullptr, to_sign.written().data, to_sign.written().size, secret_key);
        std::uint8_t message[512];
        cbor::Writer outer(message, sizeof message);
        outer.tag(18);
        outer.array(4);
        outer.bytes({header, sizeof header});
        outer.map(0);
        outer.bytes(inner.written());
        outer.bytes({signature, sizeof signature});
        REQUIRE(outer.fits());
        return {message, message + outer.written().size};
    }
};

Update offered(const std::vector<std::uint8_t>& message, const std::uint8_t* public_key, Manifest& manifest) {
    SodiumVerifier verifier(public_key);
    return read_manifest(verifier, {message.data(), message.size()}, "fajma-1", 7, 1 << 20, manifest);
}

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

TEST_CASE("firmware that its maker has signed for this hardware, newer than ours, is accepted") {
    const Maker maker;
    Manifest manifest;
    REQUIRE(offered(maker.signed_manifest(8, "fajma-1", 900000), maker.public_key, manifest) == Update::accepted);
    CHECK(manifest.version == 8);
    CHECK(manifest.size == 900000);
    CHECK(manifest.sha256[31] == 0xAB);
}

TEST_CASE("firmware that is not the maker's, older, too large or for another board is refused") {
    const Maker maker;
    Manifest manifest;
    const auto key = maker.public_key;
    CHECK(offered(maker.signed_manifest(7, "fajma-1", 9), key, manifest) == Update::not_newer);
    CHECK(offered(maker.signed_manifest(8, "fajma-2", 9), key, manifest) == Update::other_hardware);
    CHECK(offered(maker.signed_manifest(8, "fajma-1", (1 << 20) + 1), key, manifest) == Update::too_large);
    CHECK(offered(maker.signed_manifest(8, "fajma-1", 0), key, manifest) == Update::too_large);
    CHECK(offered(maker.signed_manifest(8, "fajma-1", 9, 31), key, manifest) == Update::malformed);
    std::uint8_t other_key[32] = {5};
    CHECK(offered(maker.signed_manifest(8, "fajma-1", 9), other_key, manifest) == Update::not_signed);
    const auto good = maker.signed_manifest(8, "fajma-1", 9);
    for (std::size_t at = 0; at < good.size(); ++at) {
        auto changed = good;
        changed[at] ^= 1;
        CHECK(offered(changed, key, manifest) != Update::accepted);
        CHECK(offered({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(at)}, key, manifest) ==
              Update::malformed);
    }
    CHECK(manifest.version == 0);
}

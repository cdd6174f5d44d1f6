/// Which firmware is let in.
#include <doctest/doctest.h>
#include <sodium.h>

#include <vector>

#include "cbor.hpp"
#include "ota.hpp"
#include "sodium_verifier.hpp"

using namespace fajma;

namespace {

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

/// The seal, by Mbed TLS, against the golden samples.
#include <doctest/doctest.h>

#include <set>

#include "ack.hpp"
#include "envelope.hpp"
#include "mbedtls_aead.hpp"
#include "samples.hpp"

using namespace fajma;
using fajma::testing::Octets;
using fajma::testing::Sample;
using fajma::testing::samples;

namespace {

const Address device = {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7E}};

class Given final : public Random {
 public:
    explicit Given(Octets octets) : octets_(std::move(octets)) {}
    void fill(std::uint8_t* into, std::size_t size) override {
        REQUIRE(size == octets_.size());
        std::memcpy(into, octets_.data(), size);
    }

 private:
    Octets octets_;
};

}  // namespace

TEST_CASE("each sample opens to its content, or is refused with its code") {
    int opened = 0;
    int refused = 0;
    const std::set<std::string> of_packs = {"not_senml", "not_understood", "bad_pack"};
    for (const Sample& sample : samples()) {
        CAPTURE(sample.name);
        const Octets& raw = sample.key;
        MbedtlsAead aead(raw.data());
        Octets payload = sample.payload;
        // The device and version that the sample is about, whichever they are: FAJMA looks the key up by them.
        Address named = device;
        Channel channel{};
        parse_topic(sample.topic, named, channel);
        std::uint16_t version = 1;
        if (payload.size() > 18 && payload[2] == 0x4d) {
            version = static_cast<std::uint16_t>(get_big(payload.data() + 14, 2));
        }
        Bytes content;
        const Refusal refusal = open({named, version, aead}, sample.topic, payload.data(), payload.size(), content);
        if (sample.plaintext &&
            (refusal == Refusal::none || of_packs.count(sample.error) > 0 || sample.error.empty())) {
            REQUIRE(refusal == Refusal::none);
            CHECK(content == Bytes{sample.plaintext->data(), sample.plaintext->size()});
            ++opened;
        } else {
            CHECK(std::string(code(refusal)) == sample.error);
            ++refused;
        }
    }
    CHECK(opened >= 100);
    CHECK(refused >= 25);
}

TEST_CASE("each canonical sample is sealed bit for bit") {
    int sealed = 0;
    for (const Sample& sample : samples()) {
        if (!sample.canonical) {
            continue;
        }
        CAPTURE(sample.name);
        const Octets& raw = sample.key;
        const Octets& plaintext = *sample.plaintext;
        MbedtlsAead aead(raw.data());
        Given nonce(*sample.nonce);
        const Octets& expected = sample.payload;
        const auto version = static_cast<std::uint16_t>(get_big(expected.data() + 14, 2));
        std::vector<std::uint8_t> buffer(seal_headroom + plaintext.size() + tag_bytes);
        std::memcpy(buffer.data() + seal_headroom, plaintext.data(), plaintext.size());
        const Bytes payload =
            seal({device, version, aead}, nonce, sample.topic, buffer.data() + seal_headroom, plaintext.size());
        CHECK(payload == Bytes{expected.data(), expected.size()});
        ++sealed;
    }
    CHECK(sealed >= 14);
}

TEST_CASE("a message with another version of the key, or for another device, is not opened") {
    const Octets raw(32, 7);
    MbedtlsAead aead(raw.data());
    Given nonce(Octets(12, 9));
    std::uint8_t buffer[seal_headroom + 3 + tag_bytes] = {};
    const Topic topic = topic_of(device, Channel::config);
    CHECK(topic.text() == "fajma/v2/A4CF12F03B7E/config");
    const Bytes sealed = seal({device, 2, aead}, nonce, topic.text(), buffer + seal_headroom, 3);
    REQUIRE(sealed.size > 0);
    const auto opened = [&](Address to, std::uint16_t version, std::string_view on) {
        Octets copy(sealed.data, sealed.data + sealed.size);
        Bytes content;
        return open({to, version, aead}, on, copy.data(), copy.size(), content);
    };
    const Address other = {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7F}};
    CHECK(opened(device, 2, topic.text()) == Refusal::none);
    CHECK(opened(device, 3, topic.text()) == Refusal::unknown_key);
    CHECK(opened(other, 2, topic.text()) == Refusal::unknown_key);
    CHECK(opened(device, 2, topic_of(other, Channel::config).text()) == Refusal::wrong_device);
    CHECK(opened(device, 2, topic_of(device, Channel::ota).text()) == Refusal::not_authentic);
    CHECK(opened(device, 2, "fajma/v2/A4CF12F03B7E/configs") == Refusal::bad_topic);
    CHECK(opened(device, 2, "fajma/v2/a4cf12f03b7e/config") == Refusal::bad_device);
}

TEST_CASE("what nobody would open is not sealed") {
    const Octets raw(32, 7);
    MbedtlsAead aead(raw.data());
    Given nonce(Octets(12, 9));
    std::vector<std::uint8_t> buffer(2 * max_sealed_bytes);
    const std::size_t most = max_sealed_bytes - seal_headroom - tag_bytes;
    const Topic topic = topic_of(device, Channel::vitals);
    CHECK(seal({device, 1, aead}, nonce, topic.text(), buffer.data() + seal_headroom, most).size == max_sealed_bytes);
    CHECK(seal({device, 1, aead}, nonce, topic.text(), buffer.data() + seal_headroom, most + 1).size == 0);
}

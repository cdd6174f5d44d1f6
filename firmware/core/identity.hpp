/// Who a device is: its address, its topics, its name in packs, its keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "bytes.hpp"
#include "ports.hpp"
#include "refusal.hpp"

namespace fajma {

/// A MAC address.
struct Address {
    std::uint8_t octets[6];
};

inline bool operator==(const Address& one, const Address& other) {
    return Bytes{one.octets, sizeof one.octets} == Bytes{other.octets, sizeof other.octets};
}

/// What is said below a device's topic.
enum class Channel : std::uint8_t { vitals, ack, config, ota, status };

/// A short text that carries its own room.
template <std::size_t Capacity>
struct Label {
    char characters[Capacity];
    std::size_t size = 0;

    std::string_view text() const { return {characters, size}; }

    void add(std::string_view more) {
        for (std::size_t index = 0; index < more.size() && size < Capacity; ++index) {
            characters[size++] = more[index];
        }
    }

    void add_hex(const std::uint8_t* octets, std::size_t count, const char* digits) {
        for (std::size_t index = 0; index < count; ++index) {
            const char pair[] = {digits[octets[index] >> 4], digits[octets[index] & 0xf]};
            add({pair, 2});
        }
    }
};

using Topic = Label<32>;

/// `fajma/v2/A4CF12F03B7E/vitals`.
Topic topic_of(const Address& device, Channel channel);

/// Whose topic it is and what is said there. Refuses with `bad_topic` or `bad_device`.
Refusal parse_topic(std::string_view topic, Address& device, Channel& channel);

/// `urn:dev:mac:a4cf12fffff03b7e:`: what every name in a pack begins with (RFC 9039, section 4.1: ffff in
/// the middle makes an EUI-64 of a MAC-48 address).
Label<32> base_name(const Address& device);

/// A key of one device, of one version and one direction.
struct Key {
    Address device;
    std::uint16_t version;
    Aead& aead;
};

}  // namespace fajma

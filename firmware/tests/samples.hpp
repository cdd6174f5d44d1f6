/// The golden samples of tests/samples/v2, which Python reads too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ack.hpp"
#include "pack.hpp"

namespace fajma::testing {

using Octets = std::vector<std::uint8_t>;

Octets unhex(const std::string& text);

/// What a pack must say.
struct Pack {
    std::uint64_t oldest;
    std::uint32_t boot;
    std::uint64_t sent_ms;
    std::vector<Entry> entries;
};

/// As docs/wire.md describes the files.
struct Sample {
    std::string name;
    std::string topic;
    Octets key;
    Octets payload;
    std::optional<Octets> nonce;
    std::optional<Octets> plaintext;
    bool canonical;
    std::string error;         ///< the code of a refusal; empty for none
    std::optional<Pack> pack;  ///< of canonical samples
    Ack ack;
};

/// All of them, in the order of their names.
std::vector<Sample> samples();

}  // namespace fajma::testing

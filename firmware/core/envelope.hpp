/// COSE_Encrypt0 (RFC 9052, section 5.2) with A256GCM (RFC 9053, section 4.1), as `fajma/wire/cose.py`.
///
/// Sealed and opened in place, so that one buffer is enough.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "bytes.hpp"
#include "identity.hpp"
#include "ports.hpp"
#include "refusal.hpp"

namespace fajma {

constexpr std::size_t max_sealed_bytes = 16 * 1024;

/// Room that must be before the content that is sealed; behind it there must be `tag_bytes`.
constexpr std::size_t seal_headroom = 34;

/// Seals `size` bytes at `content` for `topic`; empty when the cipher fails or nobody would open it.
///
/// The nonce is random: one key may seal 2^32 messages (NIST SP 800-38D, section 8.3), 136 years at one a
/// second.
///
/// Returns the payload; it begins in the headroom.
Bytes seal(const Key& key, Random& random, std::string_view topic, std::uint8_t* content, std::size_t size);

/// Opens a payload in place.
///
/// Args: `key` is that of the direction of the topic.
///
/// Refuses with `bad_topic`, `bad_device`, `too_large`, `not_cose`, `not_cbor`, `too_deep`, `duplicate_key`,
/// `wrong_algorithm`, `bad_key_id`, `wrong_device`, `unknown_key` (another version) or `not_authentic`.
Refusal open(const Key& key, std::string_view topic, std::uint8_t* payload, std::size_t size, Bytes& content);

}  // namespace fajma

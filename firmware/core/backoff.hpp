/// How long to wait before something is tried again.
#pragma once

#include <cstdint>

namespace fajma {

/// Twice as long with each attempt, less by up to a half, so that not all devices come at once after an outage.
///
/// Args: `attempt` counts from 0; `random` is any 32 bits.
inline std::uint32_t jittered_ms(std::uint32_t first_ms, std::uint32_t longest_ms, unsigned attempt,
                                 std::uint32_t random) {
    std::uint64_t whole = static_cast<std::uint64_t>(first_ms) << (attempt < 16 ? attempt : 16);
    whole = whole < longest_ms ? whole : longest_ms;
    const std::uint64_t half = whole / 2;
    return static_cast<std::uint32_t>(whole - half * random / 0xffffffffu);
}

}  // namespace fajma

/// When a pack is sent, and when the next (docs/wire.md, "When a v2 device sends"). Pure.
#pragma once

#include <cstdint>

#include "backoff.hpp"

namespace fajma {

/// One pack is outstanding at a time, until an acknowledgement settles it or time is up and it is made again.
class Window {
 public:
    static constexpr std::uint32_t first_wait_ms = 3000;
    static constexpr std::uint32_t longest_wait_ms = 60000;

    /// A new connection: whatever was outstanding is sent at once.
    void connected() {
        outstanding_ = false;
        attempt_ = 0;
    }

    /// Whether a pack may be sent now; whether there is anything to send, the journal knows.
    bool open(std::uint64_t now_ms) const { return !outstanding_ || now_ms >= again_ms_; }

    /// When a pack is sent again at the latest; 0 when none is outstanding.
    std::uint64_t again_ms() const { return outstanding_ ? again_ms_ : 0; }

    /// A pack was sent. Args: `last` is its last record; `random` is any 32 bits.
    void sent(std::uint64_t last, std::uint64_t now_ms, std::uint32_t random) {
        outstanding_ = true;
        last_ = last;
        again_ms_ = now_ms + jittered_ms(first_wait_ms, longest_wait_ms, attempt_, random);
        ++attempt_;
    }

    /// The journal has taken an acknowledgement. Args: `oldest` is the oldest record that it still holds.
    void settled(std::uint64_t oldest) {
        if (outstanding_ && oldest > last_) {
            connected();
        }
    }

 private:
    bool outstanding_ = false;
    unsigned attempt_ = 0;
    std::uint64_t last_ = 0;
    std::uint64_t again_ms_ = 0;
};

/// When to connect again.
class Reconnection {
 public:
    static constexpr std::uint32_t first_wait_ms = 500;
    static constexpr std::uint32_t longest_wait_ms = 30000;
    static constexpr std::uint32_t attempt_within_ms = 10000;  ///< CONNACK and SUBACK

    void succeeded() { attempt_ = 0; }

    /// An attempt failed, or the connection was lost. Returns how long to wait.
    std::uint32_t wait_ms(std::uint32_t random) {
        return jittered_ms(first_wait_ms, longest_wait_ms, attempt_++, random);
    }

 private:
    unsigned attempt_ = 0;
};

}  // namespace fajma

/// What a device is told about its readings.
#pragma once

#include <cstdint>

#include "bytes.hpp"
#include "identity.hpp"
#include "refusal.hpp"

namespace fajma {

struct Ack {
    std::uint64_t committed = 0;  ///< every record up to this one is committed, or settled otherwise
    std::uint64_t unix_ms = 0;    ///< the server's time
};

/// Reads what was sealed in an acknowledgement. Refuses as `Records` does.
Refusal read_ack(Bytes content, const Address& device, Ack& ack);

}  // namespace fajma

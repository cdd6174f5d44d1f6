/// The temperature probe: what its scratchpad says (DS18B20 datasheet, Maxim 19-7487, "Memory").
#pragma once

#include <cstdint>

#include "bytes.hpp"

namespace fajma {

enum class Probe : std::uint8_t {
    sound,
    absent,    ///< the bus is held low or high: no probe, or a broken wire
    garbled,   ///< the CRC does not fit
    power_on,  ///< 85 Cel is what it says before it has measured: it lost power meanwhile
    beyond,    ///< outside of what it can measure
};

/// Args: `scratchpad` has 9 bytes. `celsius` is in units of 1/10 000 and written when `sound`.
///
/// Bits that the configured resolution leaves undefined are masked. A patient never has 85 Cel, so a true
/// one is refused with the false.
Probe read_ds18b20(Bytes scratchpad, std::int32_t& celsius);

}  // namespace fajma

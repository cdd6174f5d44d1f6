/// Whether new firmware may be installed: a COSE_Sign1 (RFC 9052, section 4.2) with EdDSA over a manifest.
///
/// Who holds a site's downlink keys can offer firmware, but only what its maker has signed: the seal of the
/// message and the signature of the manifest are two locks with two owners.
#pragma once

#include <cstdint>
#include <string_view>

#include "bytes.hpp"
#include "ports.hpp"

namespace fajma {

enum class Update : std::uint8_t {
    accepted,
    malformed,
    not_signed,  ///< by whom we trust
    other_hardware,
    not_newer,  ///< an old version would bring old faults back
    too_large,  ///< for the partition
};

struct Manifest {
    std::uint64_t version = 0;
    std::uint64_t size = 0;        ///< of the image, bytes
    std::uint8_t sha256[32] = {};  ///< of the image
};

/// Reads `18([protected {1: -8}, {}, payload, signature])` whose payload is the map
/// `{1: version, 2: hardware, 3: size, 4: sha256}`, exactly.
///
/// Args: `running` is the version that runs, `room` the bytes of the partition.
Update read_manifest(Verifier& maker, Bytes message, std::string_view hardware, std::uint64_t running,
                     std::uint64_t room, Manifest& manifest);

}  // namespace fajma

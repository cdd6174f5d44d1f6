/// Ed25519 by libsodium: Debian's on the host, Espressif's component `espressif/libsodium` on the device.
#pragma once

#include <sodium.h>

#include "ports.hpp"

namespace fajma {

class SodiumVerifier final : public Verifier {
 public:
    /// Args: `public_key`, 32 bytes, is that of who releases firmware; it outlives this.
    explicit SodiumVerifier(const std::uint8_t* public_key) : public_key_(public_key), ready_(sodium_init() >= 0) {}

    bool verify(Bytes message, Bytes signature) override {
        return ready_ && signature.size == crypto_sign_BYTES &&
               crypto_sign_verify_detached(signature.data, message.data, message.size, public_key_) == 0;
    }

 private:
    const std::uint8_t* public_key_;
    bool ready_;
};

}  // namespace fajma

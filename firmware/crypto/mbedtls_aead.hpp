/// AES-256-GCM by Mbed TLS: of Debian on the host, of ESP-IDF (which uses the AES hardware) on the device.
#pragma once

#include <mbedtls/gcm.h>

#include "ports.hpp"

namespace fajma {

/// Mbed TLS takes memory when it gets the key, and none afterwards.
class MbedtlsAead final : public Aead {
 public:
    explicit MbedtlsAead(const std::uint8_t* key) {
        mbedtls_gcm_init(&gcm_);
        ready_ = mbedtls_gcm_setkey(&gcm_, MBEDTLS_CIPHER_ID_AES, key, 8 * key_bytes) == 0;
    }
    ~MbedtlsAead() { mbedtls_gcm_free(&gcm_); }  // wipes the key
    MbedtlsAead(const MbedtlsAead&) = delete;
    MbedtlsAead& operator=(const MbedtlsAead&) = delete;

    bool seal(const std::uint8_t* nonce, Bytes associated, std::uint8_t* text, std::size_t size,
              std::uint8_t* tag) override {
        return ready_ && mbedtls_gcm_crypt_and_tag(&gcm_, MBEDTLS_GCM_ENCRYPT, size, nonce, nonce_bytes,
                                                   associated.data, associated.size, text, text, tag_bytes, tag) == 0;
    }

    bool open(const std::uint8_t* nonce, Bytes associated, std::uint8_t* text, std::size_t size,
              const std::uint8_t* tag) override {
        return ready_ && mbedtls_gcm_auth_decrypt(&gcm_, size, nonce, nonce_bytes, associated.data, associated.size,
                                                  tag, tag_bytes, text, text) == 0;
    }

 private:
    mbedtls_gcm_context gcm_;
    bool ready_;
};

}  // namespace fajma

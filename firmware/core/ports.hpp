/// What the core needs of the machine that it runs on. Each board and each test brings its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bytes.hpp"

namespace fajma {

constexpr std::size_t key_bytes = 32;
constexpr std::size_t nonce_bytes = 12;
constexpr std::size_t tag_bytes = 16;

/// NOR flash behind a partition. Offsets count from its beginning.
class Flash {
 public:
    virtual std::size_t sector_bytes() const = 0;
    virtual std::size_t sectors() const = 0;

    /// All bytes of a sector become 0xFF. False when the flash says that it failed.
    virtual bool erase(std::size_t sector) = 0;

    /// Clears bits; `offset` and size are multiples of 32, the unit of ESP32's flash encryption, and no
    /// byte is programmed twice between two erasures. False when the flash says that it failed.
    virtual bool program(std::size_t offset, Bytes data) = 0;

    virtual bool read(std::size_t offset, std::uint8_t* into, std::size_t size) const = 0;

 protected:
    ~Flash() = default;
};

/// Two clocks: one that never steps, one that people set.
class Clock {
 public:
    /// Milliseconds since this start of the device.
    virtual std::uint64_t mono_ms() const = 0;

    /// Milliseconds since 1970; 0 when the clock was not set.
    virtual std::uint64_t unix_ms() const = 0;

    /// What the server says the time is.
    virtual void set_unix_ms(std::uint64_t now) = 0;

 protected:
    ~Clock() = default;
};

/// Numbers that nobody can guess (on the ESP32: the hardware's, with the radio on).
class Random {
 public:
    virtual void fill(std::uint8_t* into, std::size_t size) = 0;

 protected:
    ~Random() = default;
};

/// AES-256-GCM (NIST SP 800-38D) with one key, a nonce of 12 and a tag of 16 bytes, in place.
class Aead {
 public:
    /// `text` becomes ciphertext, `tag` is written.
    virtual bool seal(const std::uint8_t* nonce, Bytes associated, std::uint8_t* text, std::size_t size,
                      std::uint8_t* tag) = 0;

    /// `text` becomes plaintext; false, and nothing to be used in it, when the tag does not fit.
    virtual bool open(const std::uint8_t* nonce, Bytes associated, std::uint8_t* text, std::size_t size,
                      const std::uint8_t* tag) = 0;

 protected:
    ~Aead() = default;
};

/// Ed25519 (RFC 8032) with one public key.
class Verifier {
 public:
    virtual bool verify(Bytes message, Bytes signature) = 0;

 protected:
    ~Verifier() = default;
};

}  // namespace fajma

/// Bytes that belong to somebody else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace fajma {

/// A view; whoever gave it must outlive it.
struct Bytes {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;

    /// What stands behind the first `count` bytes, of which there must be as many.
    Bytes after(std::size_t count) const { return {data + count, size - count}; }

    std::string_view text() const { return {reinterpret_cast<const char*>(data), size}; }
};

inline bool operator==(Bytes one, Bytes other) {
    return one.size == other.size && (one.size == 0 || std::memcmp(one.data, other.data, one.size) == 0);
}

/// Unsigned, big endian, in `width` bytes.
inline void put_big(std::uint8_t* at, std::uint64_t value, std::size_t width) {
    for (std::size_t left = width; left > 0; --left, value >>= 8) {
        at[left - 1] = static_cast<std::uint8_t>(value);
    }
}

inline std::uint64_t get_big(const std::uint8_t* at, std::size_t width) {
    std::uint64_t value = 0;
    for (std::size_t index = 0; index < width; ++index) {
        value = value << 8 | at[index];
    }
    return value;
}

}  // namespace fajma

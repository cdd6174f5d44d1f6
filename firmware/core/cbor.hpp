/// The part of CBOR (RFC 8949) that v2 uses, as `fajma/wire/cbor.py`: a strict reader and deterministic
/// writing, without a heap.
///
/// Read are integers, byte and text strings, arrays, maps, decimal fractions (tag 4), floats and truth
/// values; everything else is refused. `check` comes first and once; a `Cursor` then walks over what is
/// known to be sound.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "bytes.hpp"
#include "refusal.hpp"

namespace fajma::cbor {

constexpr int max_depth = 4;
constexpr std::size_t max_text_bytes = 64;
constexpr int max_exponent = 6;

enum class Kind : std::uint8_t { whole, negative, bytes, text, array, map, decimal, truth, real };

/// One value. Of an array or a map it is the beginning: its elements follow.
struct Item {
    Kind kind = Kind::whole;
    /// The number of `whole`; n of `negative`, which is -1 - n; count of elements or pairs; 0 or 1 of `truth`.
    std::uint64_t argument = 0;
    /// Of `bytes` and `text`.
    Bytes bytes;
    /// mantissa * 10^exponent of `decimal`.
    std::int64_t mantissa = 0;
    std::int8_t exponent = 0;
    /// A `decimal` within its limits; any other is not a number, without hiding what stands beside it.
    bool believed = true;
    double real = 0;
};

/// Whether `data` is one value of the kind that monitors write, and nothing else.
///
/// Takes time in proportion to the square of the largest map: a device's buffers for what it is told are
/// small, and that is what bounds it.
///
/// Returns `none`, `not_cbor`, `too_deep` or `duplicate_key`.
Refusal check(Bytes data);

/// Goes over bytes that `check` has found sound.
class Cursor {
 public:
    explicit Cursor(Bytes checked) : data_(checked) {}

    Item next();

    /// Passes over one value with all that is in it.
    void skip();

 private:
    Bytes data_;
    std::size_t at_ = 0;
};

/// Writes into a buffer of fixed size. What does not fit is not written, and `fits` tells.
class Writer {
 public:
    Writer(std::uint8_t* buffer, std::size_t capacity) : buffer_(buffer), capacity_(capacity) {}

    void whole(std::uint64_t value) { head(0, value); }
    void integer(std::int64_t value);
    void bytes(Bytes value);
    void text(std::string_view value);
    void array(std::size_t count) { head(4, count); }
    void map(std::size_t pairs) { head(5, pairs); }
    void tag(std::uint64_t number) { head(6, number); }
    void truth(bool value);
    void decimal(std::int64_t mantissa, int exponent);

    bool fits() const { return fits_; }
    Bytes written() const { return {buffer_, size_}; }

    /// Forgets what was written beyond `size`.
    void back_to(std::size_t size) {
        size_ = size;
        fits_ = true;
    }

 private:
    void head(std::uint8_t major, std::uint64_t argument);
    void raw(const std::uint8_t* data, std::size_t size);

    std::uint8_t* buffer_;
    std::size_t capacity_;
    std::size_t size_ = 0;
    bool fits_ = true;
};

}  // namespace fajma::cbor

/// Packs of readings, written as `fajma/wire/v2.py` writes them: no units, nothing stated twice.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bytes.hpp"
#include "cbor.hpp"
#include "identity.hpp"

namespace fajma {

enum class Measure : std::uint8_t { heart_rate, spo2, temperature, systolic, diastolic };
constexpr std::size_t measures = 5;

/// Values are in units of 1/10 000 of what docs/wire.md says (/min, %, Cel, mm[Hg]): the decimals that it keeps.
constexpr std::int32_t scale = 10000;

enum class Contact : std::uint8_t { unknown, off, on };

constexpr std::uint8_t quality_unknown = 255;

/// What was measured at one moment.
struct Reading {
    std::uint64_t number = 0;   ///< its place among all records of the device, ever
    std::uint32_t boot = 0;     ///< number of the start that `mono_ms` counts from
    std::uint64_t mono_ms = 0;  ///< below 2^42
    std::uint64_t unix_ms = 0;  ///< by the device's clock; 0 when it was not set
    std::int32_t values[measures] = {};
    std::uint8_t measured = 0;               ///< one bit for each measure that has a value
    std::uint8_t quality = quality_unknown;  ///< of the pulse wave, 0 to 100 %
    Contact contact = Contact::unknown;

    void set(Measure measure, std::int32_t value) {
        values[static_cast<std::size_t>(measure)] = value;
        measured = static_cast<std::uint8_t>(measured | 1u << static_cast<unsigned>(measure));
    }

    bool has(Measure measure) const { return (measured >> static_cast<unsigned>(measure) & 1) != 0; }
    std::int32_t value(Measure measure) const { return values[static_cast<std::size_t>(measure)]; }
};

/// Records that will never come: overwritten, or else numbers that a restart left out.
struct Gap {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    bool overwritten = false;
};

/// A reading or a gap.
struct Entry {
    bool is_gap = false;
    Reading reading;
    Gap gap;

    std::uint64_t first() const { return is_gap ? gap.first : reading.number; }
    std::uint64_t last() const { return is_gap ? gap.first + gap.count - 1 : reading.number; }
};

/// Writes one pack, entry after entry, until no more fit.
class PackWriter {
 public:
    /// Args: `oldest` is the oldest record that the device holds; `sent_ms` is now, counted from start `boot`.
    PackWriter(std::uint8_t* buffer, std::size_t capacity, const Address& device, std::uint64_t oldest,
               std::uint32_t boot, std::uint64_t sent_ms);

    /// False, and nothing is written, when it does not fit any more.
    bool add(const Entry& entry);

    std::size_t entries() const { return entries_; }

    /// The pack; empty when not even its beginning fitted.
    Bytes finish();

 private:
    void begin(std::size_t pairs, const char* name);
    void count(const char* name, std::uint64_t value);
    void truth(const char* name, bool value);
    void reading(const Reading& reading);

    std::uint8_t* buffer_;
    cbor::Writer writer_;
    std::size_t records_ = 0;
    std::size_t entries_ = 0;
    std::uint32_t boot_;
    bool clock_stated_ = false;
    bool clock_set_ = false;
    bool time_in_force_ = false;
};

}  // namespace fajma

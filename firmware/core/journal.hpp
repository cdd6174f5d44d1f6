/// What was measured and is not acknowledged yet, in flash; it survives a power cut at any moment.
///
/// The rules:
///
/// 1. The sectors are a ring. Each begins with a header that holds a running number and all that was known
///    when the sector was begun; behind it stand slots of 64 bytes. The sector with the largest number is
///    written; the next one in the ring is erased when it is full, so that all wear alike.
/// 2. A slot is a reading or a mark. It is programmed once, whole, with a CRC-32 that also covers the
///    number of its sector. A slot that does not fit its CRC was not written to its end: it is passed over.
/// 3. Numbers are reserved a block at a time by a mark, before the first of them is used. Each start begins
///    behind the last block, and its mark says which numbers are left out. So none is used twice, whatever
///    becomes of the last thing that was written.
/// 4. When there is no room the oldest sector is erased. What was in it and not acknowledged is a gap, kept in
///    RAM and in each header. A number that nothing in flash speaks of is told as overwritten too.
/// 5. An acknowledgement is noted with the next header or mark. One that a restart forgets makes records come
///    again, which their numbers show; a record that is not acknowledged never goes for one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "config.hpp"
#include "pack.hpp"
#include "ports.hpp"

namespace fajma {

/// Needs at least two sectors.
class Journal {
 public:
    /// Numbers that are reserved at once.
    static constexpr std::uint64_t block = 256;

    /// Numbers between two enrolments: a device that is erased and enrolled again does not meet its old ones.
    static constexpr std::uint64_t numbers_per_enrolment = std::uint64_t{1} << 32;

    static constexpr std::size_t slot_bytes = 64;
    static constexpr std::size_t header_bytes = 128;

    enum class Opened : std::uint8_t {
        sound,    ///< ready
        blank,    ///< erased flash: `format` it
        damaged,  ///< no sector has a header that can be read: enrol the device anew, then `format`
        failed,   ///< the flash does not take what is written
    };

    class Walk;

    explicit Journal(Flash& flash) : flash_(flash) {}

    /// Erases everything and begins at `first`, with a configuration that may be of before (its counter never
    /// starts again). If it is cut short it must be done again, so whoever enrols a device notes that it is
    /// enrolled when this has returned true.
    bool format(std::uint64_t first, const Config& config);

    /// Finds out what is there, and counts this start.
    Opened open();

    /// Takes a reading, with its number and start filled in. True: it is in flash, and survives.
    bool add(Reading& reading);

    /// Gives every record up to this one away; whether the acknowledgement was a new one of what was measured.
    bool acknowledge(std::uint64_t record);

    /// What is in force, and stays so over a restart once `obey` has returned true.
    const Config& config() const { return state_.config; }
    bool obey(const Config& config);

    std::uint32_t boot() const { return state_.boot; }
    std::uint64_t oldest() const { return state_.oldest; }
    std::uint64_t next() const { return state_.next; }
    bool empty() const { return state_.oldest == state_.next; }

 private:
    static constexpr std::size_t max_gaps = 6;

    struct State {
        std::uint32_t boot = 0;
        std::uint64_t oldest = 0;
        std::uint64_t next = 0;
        std::uint64_t reserved_to = 0;
        /// What is missing from `oldest` on, one stretch behind the other.
        struct {
            std::uint64_t count;
            bool overwritten;
        } gaps[max_gaps] = {};
        std::size_t gap_count = 0;
        Config config;
    };

    struct Place {
        std::uint64_t sequence = 0;  ///< of the sector
        std::size_t slot = 0;
    };

    /// What stands in a slot.
    struct Slot {
        enum class Kind : std::uint8_t { blank, torn, reading, mark } kind = Kind::torn;
        Reading reading;
        std::uint32_t boot = 0;  // of a mark, and all that follows
        std::uint64_t reserved_to = 0;
        std::uint64_t oldest = 0;
        std::uint64_t gap_first = 0;
        std::uint64_t gap_count = 0;
        Config config;
    };

    std::size_t slots() const { return (flash_.sector_bytes() - header_bytes) / slot_bytes; }
    std::size_t offset(Place place) const;
    bool before_end(const Place& place) const;
    void step(Place& place) const;
    bool has_sector(std::uint64_t sequence) const;
    bool read_header(std::size_t sector, std::uint64_t& sequence, State& state) const;
    Slot read_slot(Place place) const;
    bool entry_at(Place place, Entry& entry) const;
    void replay_head();
    void settle(std::uint64_t record);
    bool write_header(std::uint64_t sequence);
    bool begin_sector();
    void give_up(std::uint64_t sequence);
    void miss(std::uint64_t count, bool overwritten);
    std::uint64_t gaps_end() const;
    bool append(std::uint8_t (&slot)[slot_bytes]);
    bool mark(std::uint64_t reserved_to, std::uint64_t gap_first, std::uint64_t gap_count);

    Flash& flash_;
    State state_;
    Place head_;  ///< where the next slot is written
    Place tail_;  ///< nothing before it is needed any more
};

/// Goes from the oldest record to the newest, gaps included, without a hole between them. Adding or
/// acknowledging ends its life.
class Journal::Walk {
 public:
    explicit Walk(const Journal& journal);
    bool next(Entry& entry);

 private:
    const Journal& journal_;
    Place place_;
    std::size_t gap_ = 0;
    std::uint64_t expected_;
};

}  // namespace fajma

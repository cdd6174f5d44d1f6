#include "journal.hpp"

#include <cstring>

#include "crc.hpp"

namespace fajma {
namespace {

constexpr std::uint8_t magic[4] = {'F', 'J', '0', '1'};
constexpr std::uint8_t kind_reading = 'R';
constexpr std::uint8_t kind_mark = 'M';
constexpr std::uint64_t max_sequence = std::uint64_t{1} << 48;  // sectors that wear out long before
constexpr std::uint64_t max_number = (std::uint64_t{1} << 63) - 1;
constexpr std::uint64_t max_mono_ms = (std::uint64_t{1} << 42) - 1;
constexpr std::uint64_t overwritten_bit = std::uint64_t{1} << 63;
constexpr int attempts = 3;  // of writing, at another place each time

bool is_blank(Bytes data) {
    for (std::size_t index = 0; index < data.size; ++index) {
        if (data.data[index] != 0xFF) {
            return false;
        }
    }
    return true;
}

/// CRC-32 of all but its own four bytes at the end, and of the sector's number.
std::uint32_t check_sum(const std::uint8_t* data, std::size_t size, std::uint64_t sequence) {
    std::uint8_t number[8];
    put_big(number, sequence, sizeof number);
    return crc32({data, size - 4}, crc32({number, sizeof number}));
}

constexpr std::size_t config_bytes = 18;

void put_config(std::uint8_t* at, const Config& config) {
    put_big(at, config.counter, 8);
    put_big(at + 8, config.period_ms, 4);
    put_big(at + 12, config.heart_rate_low, 2);
    put_big(at + 14, config.heart_rate_high, 2);
    put_big(at + 16, config.spo2_low, 2);
}

Config get_config(const std::uint8_t* at) {
    Config config;
    config.counter = get_big(at, 8);
    config.period_ms = static_cast<std::uint32_t>(get_big(at + 8, 4));
    config.heart_rate_low = static_cast<std::uint16_t>(get_big(at + 12, 2));
    config.heart_rate_high = static_cast<std::uint16_t>(get_big(at + 14, 2));
    config.spo2_low = static_cast<std::uint16_t>(get_big(at + 16, 2));
    return config;
}

bool fits(const std::uint8_t* data, std::size_t size, std::uint64_t sequence) {
    return get_big(data + size - 4, 4) == check_sum(data, size, sequence);
}

}  // namespace

// --- places ------------------------------------------------------------------------------------------------

std::size_t Journal::offset(Place place) const {
    const std::size_t sector = static_cast<std::size_t>(place.sequence % flash_.sectors());
    return sector * flash_.sector_bytes() + header_bytes + place.slot * slot_bytes;
}

bool Journal::before_end(const Place& place) const {
    return place.sequence < head_.sequence || (place.sequence == head_.sequence && place.slot < head_.slot);
}

void Journal::step(Place& place) const {
    if (++place.slot < slots() || place.sequence == head_.sequence) {
        return;
    }
    place.slot = 0;
    do {
        ++place.sequence;
    } while (place.sequence < head_.sequence && !has_sector(place.sequence));
}

/// Whether the ring holds this sector still. One whose header has rotted is known by its slots.
bool Journal::has_sector(std::uint64_t sequence) const {
    std::uint64_t found = 0;
    State unused;
    if (read_header(static_cast<std::size_t>(sequence % flash_.sectors()), found, unused)) {
        return found == sequence;
    }
    for (Place place{sequence, 0}; place.slot < slots(); ++place.slot) {
        const Slot::Kind kind = read_slot(place).kind;
        if (kind == Slot::Kind::reading || kind == Slot::Kind::mark) {
            return true;
        }
    }
    return false;
}

// --- reading -----------------------------------------------------------------------------------------------

bool Journal::read_header(std::size_t sector, std::uint64_t& sequence, State& state) const {
    std::uint8_t raw[header_bytes];
    if (!flash_.read(sector * flash_.sector_bytes(), raw, sizeof raw) || std::memcmp(raw, magic, sizeof magic) != 0) {
        return false;
    }
    sequence = get_big(raw + 4, 8);
    if (sequence >= max_sequence || sequence % flash_.sectors() != sector || !fits(raw, sizeof raw, sequence)) {
        return false;
    }
    state.boot = static_cast<std::uint32_t>(get_big(raw + 12, 4));
    state.reserved_to = get_big(raw + 16, 8);
    state.oldest = get_big(raw + 24, 8);
    state.next = get_big(raw + 32, 8);
    state.gap_count = raw[40];
    if (state.reserved_to > max_number || state.next > state.reserved_to || state.oldest > state.next ||
        state.gap_count > max_gaps) {
        return false;
    }
    std::uint64_t room = state.next - state.oldest;
    for (std::size_t index = 0; index < state.gap_count; ++index) {
        const std::uint64_t stated = get_big(raw + 44 + 8 * index, 8);
        state.gaps[index].count = stated & ~overwritten_bit;
        state.gaps[index].overwritten = (stated & overwritten_bit) != 0;
        if (state.gaps[index].count == 0 || state.gaps[index].count > room) {
            return false;
        }
        room -= state.gaps[index].count;
    }
    state.config = get_config(raw + header_bytes - 4 - config_bytes);
    return true;
}

Journal::Slot Journal::read_slot(Place place) const {
    Slot slot;
    std::uint8_t raw[slot_bytes];
    if (!flash_.read(offset(place), raw, sizeof raw)) {
        return slot;
    }
    if (is_blank({raw, sizeof raw})) {
        slot.kind = Slot::Kind::blank;
        return slot;
    }
    if (!fits(raw, sizeof raw, place.sequence)) {
        return slot;
    }
    if (raw[0] == kind_mark) {
        slot.reserved_to = get_big(raw + 4, 8);
        slot.boot = static_cast<std::uint32_t>(get_big(raw + 12, 4));
        slot.oldest = get_big(raw + 16, 8);
        slot.gap_first = get_big(raw + 24, 8);
        slot.gap_count = get_big(raw + 32, 8);
        slot.config = get_config(raw + 40);
        if (slot.reserved_to <= max_number && slot.oldest <= slot.reserved_to && slot.gap_first <= slot.reserved_to &&
            slot.gap_count <= slot.reserved_to - slot.gap_first) {
            slot.kind = Slot::Kind::mark;
        }
        return slot;
    }
    Reading& reading = slot.reading;
    reading.measured = raw[1];
    reading.quality = raw[2];
    reading.number = get_big(raw + 4, 8);
    reading.boot = static_cast<std::uint32_t>(get_big(raw + 12, 4));
    reading.mono_ms = get_big(raw + 16, 8);
    reading.unix_ms = get_big(raw + 24, 8);
    for (std::size_t index = 0; index < measures; ++index) {
        reading.values[index] = static_cast<std::int32_t>(get_big(raw + 32 + 4 * index, 4));
    }
    const bool sound = raw[0] == kind_reading && reading.measured < 1u << measures &&
                       (reading.quality <= 100 || reading.quality == quality_unknown) && raw[3] <= 2 &&
                       reading.number < max_number && reading.mono_ms <= max_mono_ms && reading.unix_ms <= max_number;
    if (sound) {
        reading.contact = static_cast<Contact>(raw[3]);
        slot.kind = Slot::Kind::reading;
    }
    return slot;
}

/// The entry at a place; false when there is none, or none of numbers that were given out.
bool Journal::entry_at(Place place, Entry& entry) const {
    const Slot slot = read_slot(place);
    if (slot.kind == Slot::Kind::reading) {
        entry.is_gap = false;
        entry.reading = slot.reading;
    } else if (slot.kind == Slot::Kind::mark && slot.gap_count > 0) {
        entry.is_gap = true;
        entry.gap = {slot.gap_first, slot.gap_count, false};
    } else {
        return false;
    }
    return entry.last() < state_.next;
}

// --- starting ----------------------------------------------------------------------------------------------

bool Journal::format(std::uint64_t first, const Config& config) {
    for (std::size_t sector = 0; sector < flash_.sectors(); ++sector) {
        if (!flash_.erase(sector)) {
            return false;
        }
    }
    state_ = State();
    state_.config = config;
    state_.oldest = state_.next = state_.reserved_to = first;
    head_ = tail_ = Place();
    return write_header(0);
}

Journal::Opened Journal::open() {
    bool found = false;
    bool blank = true;
    const std::size_t sectors = flash_.sectors();
    for (std::size_t sector = 0; sector < sectors; ++sector) {
        std::uint64_t sequence = 0;
        State state;
        if (read_header(sector, sequence, state)) {
            if (!found || sequence > head_.sequence) {
                head_.sequence = sequence;
                state_ = state;
            }
            found = true;
        } else if (blank) {
            std::uint8_t raw[header_bytes];
            blank = flash_.read(sector * flash_.sector_bytes(), raw, sizeof raw) && is_blank({raw, sizeof raw});
        }
    }
    if (!found) {
        return blank ? Opened::blank : Opened::damaged;
    }
    replay_head();
    for (std::size_t left = sectors; left > 1 && has_sector(head_.sequence + 1); --left) {
        ++head_.sequence;  // its header has rotted, but said nothing that is not known by now
        replay_head();
    }
    tail_ = {head_.sequence < sectors ? 0 : head_.sequence - sectors + 1, 0};
    while (tail_.sequence < head_.sequence && !has_sector(tail_.sequence)) {
        ++tail_.sequence;
    }
    ++state_.boot;
    const std::uint64_t left_out = state_.reserved_to - state_.next;
    return mark(state_.reserved_to + block, state_.next, left_out) ? Opened::sound : Opened::failed;
}

/// What happened since the last sector was begun, and where it goes on.
void Journal::replay_head() {
    head_.slot = 0;
    for (Place place{head_.sequence, 0}; place.slot < slots(); ++place.slot) {
        const Slot slot = read_slot(place);
        if (slot.kind == Slot::Kind::blank) {
            continue;
        }
        head_.slot = place.slot + 1;
        if (slot.kind == Slot::Kind::mark) {
            const std::uint64_t gap_end = slot.gap_first + slot.gap_count;
            state_.boot = slot.boot;
            state_.config = slot.config;
            if (slot.reserved_to > state_.reserved_to) {
                state_.reserved_to = slot.reserved_to;
            }
            if (slot.gap_count > 0 && gap_end > state_.next) {
                state_.next = gap_end;
            }
            if (slot.oldest > state_.oldest && slot.oldest <= state_.next) {
                settle(slot.oldest - 1);
            }
        } else if (slot.kind == Slot::Kind::reading && slot.reading.number >= state_.next) {
            // A reading proves what the mark before it said, should that have rotted.
            state_.next = slot.reading.number + 1;
            state_.reserved_to = state_.next > state_.reserved_to ? state_.next : state_.reserved_to;
            state_.boot = slot.reading.boot > state_.boot ? slot.reading.boot : state_.boot;
        }
    }
}

// --- writing -----------------------------------------------------------------------------------------------

bool Journal::add(Reading& reading) {
    if (state_.next >= state_.reserved_to && !mark(state_.next + block, 0, 0)) {
        return false;
    }
    reading.number = state_.next;
    reading.boot = state_.boot;
    std::uint8_t raw[slot_bytes] = {};
    raw[0] = kind_reading;
    raw[1] = reading.measured;
    raw[2] = reading.quality;
    raw[3] = static_cast<std::uint8_t>(reading.contact);
    put_big(raw + 4, reading.number, 8);
    put_big(raw + 12, reading.boot, 4);
    put_big(raw + 16, reading.mono_ms, 8);
    put_big(raw + 24, reading.unix_ms, 8);
    for (std::size_t index = 0; index < measures; ++index) {
        put_big(raw + 32 + 4 * index, static_cast<std::uint32_t>(reading.values[index]), 4);
    }
    const bool stored = append(raw);
    // A number is used up even when flash refused the record: what the cells say later nobody knows.
    ++state_.next;
    return stored;
}

bool Journal::obey(const Config& config) {
    const Config before = state_.config;
    state_.config = config;
    const bool kept = mark(state_.reserved_to, 0, 0);
    if (!kept) {
        state_.config = before;
    }
    return kept;
}

bool Journal::mark(std::uint64_t reserved_to, std::uint64_t gap_first, std::uint64_t gap_count) {
    std::uint8_t raw[slot_bytes] = {};
    raw[0] = kind_mark;
    put_big(raw + 4, reserved_to, 8);
    put_big(raw + 12, state_.boot, 4);
    put_big(raw + 16, state_.oldest, 8);
    put_big(raw + 24, gap_first, 8);
    put_big(raw + 32, gap_count, 8);
    put_config(raw + 40, state_.config);
    if (reserved_to > max_number || !append(raw)) {
        return false;
    }
    state_.reserved_to = reserved_to;
    if (gap_count > 0) {
        state_.next = gap_first + gap_count;
    }
    return true;
}

/// Writes a slot, all but its CRC given, into the next place that takes it.
bool Journal::append(std::uint8_t (&slot)[slot_bytes]) {
    for (int left = attempts; left > 0; --left) {
        if (head_.slot >= slots() && !begin_sector()) {
            return false;
        }
        put_big(slot + slot_bytes - 4, check_sum(slot, slot_bytes, head_.sequence), 4);
        const std::size_t at = offset(head_);
        ++head_.slot;
        std::uint8_t back[slot_bytes];
        if (flash_.program(at, {slot, slot_bytes}) && flash_.read(at, back, slot_bytes) &&
            std::memcmp(slot, back, slot_bytes) == 0) {
            return true;
        }
    }
    return false;
}

/// Erases the next sector of the ring, whatever is in it, and begins it. One that cannot be used is passed
/// over at the next attempt: one only, so that flash that fails for a moment does not cost what is in it.
bool Journal::begin_sector() {
    const std::uint64_t sequence = head_.sequence + 1;
    if (sequence >= flash_.sectors()) {
        give_up(sequence - flash_.sectors());
    }
    bool begun = false;
    for (int left = attempts; left > 0 && !begun; --left) {
        begun = flash_.erase(static_cast<std::size_t>(sequence % flash_.sectors())) && write_header(sequence);
    }
    head_ = {sequence, begun ? 0 : slots()};
    return begun;
}

bool Journal::write_header(std::uint64_t sequence) {
    std::uint8_t raw[header_bytes] = {};
    std::memcpy(raw, magic, sizeof magic);
    put_big(raw + 4, sequence, 8);
    put_big(raw + 12, state_.boot, 4);
    put_big(raw + 16, state_.reserved_to, 8);
    put_big(raw + 24, state_.oldest, 8);
    put_big(raw + 32, state_.next, 8);
    raw[40] = static_cast<std::uint8_t>(state_.gap_count);
    for (std::size_t index = 0; index < state_.gap_count; ++index) {
        const std::uint64_t flag = state_.gaps[index].overwritten ? overwritten_bit : 0;
        put_big(raw + 44 + 8 * index, state_.gaps[index].count | flag, 8);
    }
    put_config(raw + header_bytes - 4 - config_bytes, state_.config);
    put_big(raw + header_bytes - 4, check_sum(raw, header_bytes, sequence), 4);
    const std::size_t at = static_cast<std::size_t>(sequence % flash_.sectors()) * flash_.sector_bytes();
    std::uint8_t back[header_bytes];
    return flash_.program(at, {raw, sizeof raw}) && flash_.read(at, back, sizeof back) &&
           std::memcmp(raw, back, sizeof raw) == 0;
}

/// Takes what waits in a sector for overwritten.
void Journal::give_up(std::uint64_t sequence) {
    if (tail_.sequence > sequence) {
        return;
    }
    while (tail_.sequence == sequence && before_end(tail_)) {
        Entry entry;
        if (entry_at(tail_, entry) && entry.last() >= gaps_end()) {
            if (entry.first() > gaps_end()) {
                miss(entry.first() - gaps_end(), true);
            }
            miss(entry.last() - gaps_end() + 1, !entry.is_gap);
        }
        step(tail_);
    }
}

/// Notes that the next records behind the gaps so far are missing.
void Journal::miss(std::uint64_t count, bool overwritten) {
    if (state_.gap_count > 0) {
        auto& last = state_.gaps[state_.gap_count - 1];
        if (last.overwritten == overwritten || state_.gap_count == max_gaps) {
            last.count += count;
            last.overwritten = last.overwritten || overwritten;  // never call lost what was lost "left out"
            return;
        }
    }
    state_.gaps[state_.gap_count++] = {count, overwritten};
}

std::uint64_t Journal::gaps_end() const {
    std::uint64_t end = state_.oldest;
    for (std::size_t index = 0; index < state_.gap_count; ++index) {
        end += state_.gaps[index].count;
    }
    return end;
}

bool Journal::acknowledge(std::uint64_t record) {
    if (record < state_.oldest || record >= state_.next) {
        return false;
    }
    settle(record);
    Entry entry;
    while (before_end(tail_) && (!entry_at(tail_, entry) || entry.last() < state_.oldest)) {
        step(tail_);
    }
    return true;
}

void Journal::settle(std::uint64_t record) {
    std::uint64_t settled = record - state_.oldest + 1;
    state_.oldest = record + 1;
    std::size_t kept = 0;
    for (std::size_t index = 0; index < state_.gap_count; ++index) {
        auto gap = state_.gaps[index];
        const std::uint64_t gone = gap.count < settled ? gap.count : settled;
        settled -= gone;
        gap.count -= gone;
        if (gap.count > 0) {
            state_.gaps[kept++] = gap;
        }
    }
    state_.gap_count = kept;
}

// --- going through it --------------------------------------------------------------------------------------

Journal::Walk::Walk(const Journal& journal)
    : journal_(journal), place_(journal.tail_), expected_(journal.state_.oldest) {}

bool Journal::Walk::next(Entry& entry) {
    const State& state = journal_.state_;
    if (gap_ < state.gap_count) {
        const auto& gap = state.gaps[gap_++];
        entry.is_gap = true;
        entry.gap = {expected_, gap.count, gap.overwritten};
        expected_ += gap.count;
        return true;
    }
    for (; journal_.before_end(place_); journal_.step(place_)) {
        if (!journal_.entry_at(place_, entry) || entry.last() < expected_) {
            continue;
        }
        if (entry.first() > expected_) {
            const std::uint64_t missing = entry.first() - expected_;  // and the same place again next time
            entry.is_gap = true;
            entry.gap = {expected_, missing, true};
            expected_ += missing;
            return true;
        }
        if (entry.is_gap) {
            entry.gap.count = entry.last() - expected_ + 1;  // the part that is not acknowledged
            entry.gap.first = expected_;
        }
        expected_ = entry.last() + 1;
        journal_.step(place_);
        return true;
    }
    if (expected_ == state.next) {
        return false;
    }
    entry.is_gap = true;
    entry.gap = {expected_, state.next - expected_, true};
    expected_ = state.next;
    return true;
}

}  // namespace fajma

#include "pack.hpp"

#include "senml.hpp"

namespace fajma {
namespace {

constexpr const char* measure_names[measures] = {"heart_rate", "spo2", "temperature", "systolic", "diastolic"};

/// Longest head of an array that any pack needs; the shortest that fits is written into its end.
constexpr std::size_t array_head = 3;

/// A value without decimals that say nothing.
void write_value(cbor::Writer& writer, std::int32_t value) {
    int exponent = -4;
    while (exponent < 0 && value % 10 == 0) {
        value /= 10;
        ++exponent;
    }
    if (exponent == 0) {
        writer.integer(value);
    } else {
        writer.decimal(value, exponent);
    }
}

}  // namespace

PackWriter::PackWriter(std::uint8_t* buffer, std::size_t capacity, const Address& device, std::uint64_t oldest,
                       std::uint32_t boot, std::uint64_t sent_ms)
    : buffer_(buffer), writer_(buffer + array_head, capacity < array_head ? 0 : capacity - array_head), boot_(boot) {
    writer_.map(3);  // shorter keys first, then in the order of their bytes: 0, 2, -2
    writer_.whole(label::n);
    writer_.text("oldest");
    writer_.whole(label::v);
    writer_.whole(oldest);
    writer_.integer(label::bn);
    writer_.text(base_name(device).text());
    ++records_;
    count("boot", boot);
    count("sent", sent_ms);
}

bool PackWriter::add(const Entry& entry) {
    const PackWriter before = *this;
    if (entry.is_gap) {
        count("seq", entry.gap.first);
        count(entry.gap.overwritten ? "lost" : "unused", entry.gap.count);
    } else {
        reading(entry.reading);
    }
    if (!writer_.fits()) {
        *this = before;
        return false;
    }
    ++entries_;
    return true;
}

Bytes PackWriter::finish() {
    if (!writer_.fits()) {
        return {};
    }
    std::uint8_t head[array_head];
    cbor::Writer list(head, sizeof head);
    list.array(records_);
    const std::size_t width = list.written().size;
    std::uint8_t* const start = buffer_ + array_head - width;
    std::memcpy(start, head, width);
    return {start, width + writer_.written().size};
}

void PackWriter::begin(std::size_t pairs, const char* name) {
    writer_.map(pairs);
    writer_.whole(label::n);
    writer_.text(name);
    ++records_;
}

void PackWriter::count(const char* name, std::uint64_t value) {
    begin(2, name);
    writer_.whole(label::v);
    writer_.whole(value);
}

void PackWriter::truth(const char* name, bool value) {
    begin(2, name);
    writer_.whole(label::vb);
    writer_.truth(value);
}

void PackWriter::reading(const Reading& reading) {
    if (reading.boot != boot_) {
        boot_ = reading.boot;
        count("boot", boot_);
    }
    const bool clock_set = reading.unix_ms != 0;
    const bool states_time = clock_set || time_in_force_;
    begin(states_time ? 3 : 2, "seq");
    writer_.whole(label::v);
    writer_.whole(reading.number);
    if (states_time) {
        writer_.integer(label::bt);
        if (clock_set) {
            writer_.decimal(static_cast<std::int64_t>(reading.unix_ms), -3);
        } else {
            writer_.whole(0);  // takes the time of an earlier record back
        }
        time_in_force_ = clock_set;
    }
    count("mono", reading.mono_ms);
    if (!clock_stated_ || clock_set != clock_set_) {
        clock_stated_ = true;
        clock_set_ = clock_set;
        truth("clock", clock_set);
    }
    for (std::size_t index = 0; index < measures; ++index) {
        if (reading.has(static_cast<Measure>(index))) {
            begin(2, measure_names[index]);
            writer_.whole(label::v);
            write_value(writer_, reading.values[index]);
        }
    }
    if (reading.quality != quality_unknown) {
        count("quality", reading.quality);
    }
    if (reading.contact != Contact::unknown) {
        truth("contact", reading.contact == Contact::on);
    }
}

}  // namespace fajma

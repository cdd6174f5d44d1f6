#include "config.hpp"

#include "senml.hpp"

namespace fajma {
namespace {

constexpr unsigned known = 4;

/// A number that a configuration may state.
struct Field {
    std::string_view name;
    std::string_view unit;
    std::uint64_t least;
    std::uint64_t most;
};

constexpr Field fields[known] = {
    {"period", "ms", 1000, 60000},
    {"heart_rate_low", "/min", 20, 100},
    {"heart_rate_high", "/min", 101, 250},
    {"spo2_low", "%", 60, 99},
};

}  // namespace

Refusal read_config(Bytes content, const Address& device, Config& config) {
    Records records(content, device, "");
    Config read = config;
    bool counted = false;
    unsigned stated = 0;
    for (;;) {
        const bool more = !records.at_end();
        Record record;
        Refusal refusal = records.next(record);
        if (refusal != Refusal::none) {
            return refusal;
        }
        if (!more) {
            break;
        }
        std::uint64_t number = 0;
        if (!counted) {
            if (record.name != "counter" || count_of(record, number) != Refusal::none || number == 0) {
                return Refusal::bad_pack;
            }
            counted = true;
            read.counter = number;
            continue;
        }
        if (record.name == "counter") {
            return Refusal::bad_pack;
        }
        for (unsigned index = 0; index < known; ++index) {
            const Field& field = fields[index];
            if (record.name != field.name) {
                continue;
            }
            const bool unit_ours =
                !record.has_unit || (record.unit.kind == cbor::Kind::text && record.unit.bytes.text() == field.unit);
            if (!unit_ours || (stated >> index & 1) != 0 || count_of(record, number) != Refusal::none ||
                number < field.least || number > field.most) {
                return Refusal::bad_pack;
            }
            stated |= 1u << index;
            switch (index) {
                case 0:
                    read.period_ms = static_cast<std::uint32_t>(number);
                    break;
                case 1:
                    read.heart_rate_low = static_cast<std::uint16_t>(number);
                    break;
                case 2:
                    read.heart_rate_high = static_cast<std::uint16_t>(number);
                    break;
                default:
                    read.spo2_low = static_cast<std::uint16_t>(number);
            }
        }
    }
    if (!counted) {
        return Refusal::bad_pack;
    }
    if (read.counter <= config.counter) {
        return Refusal::stale;
    }
    config = read;
    return Refusal::none;
}

}  // namespace fajma

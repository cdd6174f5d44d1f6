#include "senml.hpp"

#include <cstring>

namespace fajma {
namespace {

constexpr std::uint64_t senml_version = 10;
constexpr std::uint64_t count_limit = std::uint64_t{1} << 63;

/// What the labels of one record say, before anything is refused for it.
struct Labels {
    bool to_understand = false;
    bool version_known = true;
    bool has_base_name = false;
    bool base_name_ours = true;
    bool unwanted = false;
    bool name_is_text = true;
    unsigned values = 0;
};

bool must_be_understood(std::string_view name) { return !name.empty() && name.back() == '_'; }

std::uint64_t divided_half_to_even(std::uint64_t value, std::uint64_t by) {
    const std::uint64_t whole = value / by;
    const std::uint64_t twice = 2 * (value % by);
    return whole + (twice > by || (twice == by && whole % 2 == 1) ? 1 : 0);
}

/// False when it is negative or far beyond any time; `ms` otherwise.
bool decimal_ms(const cbor::Item& stated, std::uint64_t& ms) {
    if (stated.mantissa < 0) {
        return false;
    }
    ms = static_cast<std::uint64_t>(stated.mantissa);
    int shift = stated.exponent + 3;
    std::uint64_t divisor = 1;
    for (; shift < 0; ++shift) {
        divisor *= 10;
    }
    for (; shift > 0; --shift) {
        if (ms > year_10000_ms) {
            return false;
        }
        ms *= 10;
    }
    ms = divided_half_to_even(ms, divisor);
    return true;
}

bool real_ms(double seconds, std::uint64_t& ms) {
    // From 2^27 on a double holds no fraction finer than 2^-25; below nothing is a time. Written so that
    // NaN fails too.
    if (!(seconds >= 134217728.0 && seconds < 253402300800.0)) {
        return false;
    }
    const std::uint64_t whole = static_cast<std::uint64_t>(seconds);
    const std::uint64_t fraction = static_cast<std::uint64_t>((seconds - static_cast<double>(whole)) * 33554432.0);
    // whole * 1000 is even, so it can be added after rounding.
    ms = whole * 1000 + divided_half_to_even(fraction * 1000, 33554432);
    return true;
}

}  // namespace

Records::Records(Bytes content, const Address& device, std::string_view timed)
    : cursor_(content), base_name_(base_name(device)), timed_(timed) {
    refusal_ = cbor::check(content);
    if (refusal_ != Refusal::none) {
        return;
    }
    const cbor::Item list = cursor_.next();
    if (list.kind != cbor::Kind::array) {
        refusal_ = Refusal::not_senml;
        return;
    }
    left_ = list.argument;
}

Refusal Records::next(Record& record) {
    record = Record();
    if (refusal_ == Refusal::none && left_ > 0) {
        --left_;
        refusal_ = take(record);
    }
    if (refusal_ != Refusal::none) {
        left_ = 0;
    }
    return refusal_;
}

Refusal Records::take(Record& record) {
    cbor::Cursor inside = cursor_;
    cursor_.skip();
    const cbor::Item map = inside.next();
    if (map.kind != cbor::Kind::map) {
        return Refusal::not_senml;
    }
    Labels labels;
    for (std::uint64_t index = 0; index < map.argument; ++index) {
        const cbor::Item key = inside.next();
        cbor::Cursor at_value = inside;
        inside.skip();
        if (key.kind == cbor::Kind::text) {
            labels.to_understand = labels.to_understand || must_be_understood(key.bytes.text());
            continue;
        }
        if (key.argument > 8) {
            continue;  // none of RFC 8428
        }
        const cbor::Item value = at_value.next();
        const std::int64_t number = static_cast<std::int64_t>(key.argument);
        switch (key.kind == cbor::Kind::negative ? -1 - number : number) {
            case label::bver:
                labels.version_known = value.kind == cbor::Kind::whole && value.argument == senml_version;
                break;
            case label::bn:
                labels.has_base_name = true;
                labels.base_name_ours = value.kind == cbor::Kind::text && value.bytes.text() == base_name_.text();
                break;
            case label::bt:
                record.has_base_time = true;
                record.base_time = value;
                break;
            case label::bu:
            case label::bv:
            case label::bs:
            case label::t:
                labels.unwanted = true;
                break;
            case label::n:
                labels.name_is_text = value.kind == cbor::Kind::text;
                record.name = labels.name_is_text ? value.bytes.text() : std::string_view();
                break;
            case label::u:
                record.has_unit = true;
                record.unit = value;
                break;
            case label::v:
                record.has_value = true;
                record.value = value;
                ++labels.values;
                break;
            case label::vb:
                record.has_truth = true;
                record.truth = value;
                ++labels.values;
                break;
            case label::vs:
            case label::vd:
                ++labels.values;
                break;
            default:
                break;
        }
    }
    named_ = named_ || labels.has_base_name;
    if (!named_ || !labels.name_is_text) {
        return Refusal::bad_pack;
    }
    // "Implementations MUST ignore fields they don't recognize unless that field has a label name that ends
    // with the '_' character" (RFC 8428, section 4.4).
    if (must_be_understood(record.name) || labels.to_understand || !labels.version_known) {
        return Refusal::not_understood;
    }
    if (!labels.base_name_ours) {
        return Refusal::wrong_device;
    }
    if (labels.unwanted || (record.has_base_time && record.name != timed_) || labels.values > 1) {
        return Refusal::bad_pack;
    }
    return Refusal::none;
}

Refusal count_of(const Record& record, std::uint64_t& count) {
    if (!record.has_value || record.value.kind != cbor::Kind::whole || record.value.argument >= count_limit) {
        return Refusal::bad_pack;
    }
    count = record.value.argument;
    return Refusal::none;
}

Refusal instant_ms(const cbor::Item& stated, std::uint64_t& unix_ms) {
    bool known = false;
    switch (stated.kind) {
        case cbor::Kind::whole:
            known = stated.argument <= year_10000_ms / 1000;
            unix_ms = known ? stated.argument * 1000 : 0;
            break;
        case cbor::Kind::decimal:
            known = stated.believed && decimal_ms(stated, unix_ms);
            if (known && stated.mantissa != 0 && unix_ms == 0) {
                return Refusal::bad_pack;  // a fraction of a millisecond after 1970 is no "not known"
            }
            break;
        case cbor::Kind::real:
            unix_ms = 0;
            known = stated.real == 0.0 || real_ms(stated.real, unix_ms);
            break;
        default:
            break;
    }
    if (!known || (unix_ms != 0 && (unix_ms < first_absolute_ms || unix_ms >= year_10000_ms))) {
        return Refusal::bad_pack;
    }
    return Refusal::none;
}

}  // namespace fajma

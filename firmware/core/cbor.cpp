#include "cbor.hpp"

#include <cstring>

namespace fajma::cbor {
namespace {

constexpr std::uint8_t decimal_fraction = 4;
constexpr std::uint8_t array_of_two = 0x82;

struct Head {
    std::uint8_t major;
    std::uint8_t minor;
    std::uint64_t argument;
};

/// False when it is cut short, reserved, or begins an indefinite length.
bool read_head(Bytes data, std::size_t& at, Head& head) {
    if (at >= data.size) {
        return false;
    }
    head.major = data.data[at] >> 5;
    head.minor = data.data[at] & 0x1f;
    head.argument = head.minor;
    ++at;
    if (head.minor < 24) {
        return true;
    }
    if (head.minor > 27) {
        return false;
    }
    const std::size_t width = std::size_t{1} << (head.minor - 24);
    if (data.size - at < width) {
        return false;
    }
    head.argument = get_big(data.data + at, width);
    at += width;
    return true;
}

bool is_utf8(const std::uint8_t* text, std::size_t size) {
    std::size_t at = 0;
    while (at < size) {
        const std::uint8_t lead = text[at++];
        if (lead < 0x80) {
            continue;
        }
        std::size_t more;
        std::uint8_t low = 0x80;   // of the second byte: neither longer than necessary, nor a surrogate,
        std::uint8_t high = 0xbf;  // nor beyond U+10FFFF (RFC 3629, section 4)
        if (lead >= 0xc2 && lead <= 0xdf) {
            more = 1;
        } else if (lead >= 0xe0 && lead <= 0xef) {
            more = 2;
            low = lead == 0xe0 ? 0xa0 : 0x80;
            high = lead == 0xed ? 0x9f : 0xbf;
        } else if (lead >= 0xf0 && lead <= 0xf4) {
            more = 3;
            low = lead == 0xf0 ? 0x90 : 0x80;
            high = lead == 0xf4 ? 0x8f : 0xbf;
        } else {
            return false;
        }
        if (size - at < more) {
            return false;
        }
        for (; more > 0; --more, ++at, low = 0x80, high = 0xbf) {
            if (text[at] < low || text[at] > high) {
                return false;
            }
        }
    }
    return true;
}

bool same_key(const Item& one, const Item& other) {
    if (one.kind != other.kind) {
        return false;
    }
    return one.kind == Kind::text ? one.bytes == other.bytes : one.argument == other.argument;
}

/// The checker, one function for each kind that holds others; they call each other `max_depth` deep at most.
class Checker {
 public:
    explicit Checker(Bytes data) : data_(data) {}

    Refusal value(int levels) {
        Head head;
        if (!read_head(data_, at_, head)) {
            return Refusal::not_cbor;
        }
        switch (head.major) {
            case 0:
            case 1:
                return Refusal::none;
            case 2:
            case 3:
                return string(head);
            case 4:
                return array(head.argument, levels);
            case 5:
                return map(head.argument, levels);
            case 6:
                return fraction(head.argument, levels);
            default:
                return head.minor == 20 || head.minor == 21 || head.minor >= 25 ? Refusal::none : Refusal::not_cbor;
        }
    }

    bool at_end() const { return at_ == data_.size; }

 private:
    Refusal string(const Head& head) {
        if (head.argument > data_.size - at_) {
            return Refusal::not_cbor;
        }
        const std::size_t size = static_cast<std::size_t>(head.argument);
        if (head.major == 3 && (size > max_text_bytes || !is_utf8(data_.data + at_, size))) {
            return Refusal::not_cbor;
        }
        at_ += size;
        return Refusal::none;
    }

    Refusal array(std::uint64_t count, int levels) {
        if (levels == 0) {
            return Refusal::too_deep;
        }
        for (; count > 0; --count) {  // ends with the data, whatever the length claims
            const Refusal refusal = value(levels - 1);
            if (refusal != Refusal::none) {
                return refusal;
            }
        }
        return Refusal::none;
    }

    Refusal map(std::uint64_t pairs, int levels) {
        if (levels == 0) {
            return Refusal::too_deep;
        }
        const std::size_t first = at_;
        for (std::uint64_t index = 0; index < pairs; ++index) {
            const std::size_t key_at = at_;
            Refusal refusal = value(levels - 1);
            if (refusal != Refusal::none) {
                return refusal;
            }
            const Item key = Cursor(data_.after(key_at)).next();
            if (key.kind != Kind::whole && key.kind != Kind::negative && key.kind != Kind::text) {
                return Refusal::not_cbor;  // nothing else is a label
            }
            Cursor before(data_.after(first));
            for (std::uint64_t earlier = 0; earlier < index; ++earlier) {
                if (same_key(before.next(), key)) {
                    return Refusal::duplicate_key;
                }
                before.skip();
            }
            refusal = value(levels - 1);
            if (refusal != Refusal::none) {
                return refusal;
            }
        }
        return Refusal::none;
    }

    Refusal fraction(std::uint64_t tag, int levels) {
        // Looked at before reading on, or else tags in tags would nest without end.
        if (tag != decimal_fraction || at_ >= data_.size || data_.data[at_] != array_of_two) {
            return Refusal::not_cbor;
        }
        if (levels == 0) {
            return Refusal::too_deep;
        }
        ++at_;
        bool integers = true;
        for (int part = 0; part < 2; ++part) {
            integers = integers && at_ < data_.size && data_.data[at_] >> 5 <= 1;
            const Refusal refusal = value(levels - 1);
            if (refusal != Refusal::none) {
                return refusal;
            }
        }
        return integers ? Refusal::none : Refusal::not_cbor;
    }

    Bytes data_;
    std::size_t at_ = 0;
};

double real_of(std::uint8_t minor, std::uint64_t bits) {
    double value = 0;
    if (minor == 27) {
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    if (minor == 26) {
        const std::uint32_t narrow = static_cast<std::uint32_t>(bits);
        float single = 0;
        std::memcpy(&single, &narrow, sizeof single);
        return static_cast<double>(single);
    }
    // Half precision (RFC 8949, appendix D), put together as a double.
    const std::uint64_t sign = bits >> 15 & 1;
    const std::uint64_t exponent = bits >> 10 & 0x1f;
    const std::uint64_t fraction = bits & 0x3ff;
    if (exponent == 0) {
        value = static_cast<double>(fraction) / 16777216.0;  // 2^-24
        return sign ? -value : value;
    }
    const std::uint64_t wide = exponent == 0x1f ? 0x7ff : exponent + (1023 - 15);
    const std::uint64_t made = sign << 63 | wide << 52 | fraction << 42;
    std::memcpy(&value, &made, sizeof value);
    return value;
}

}  // namespace

Refusal check(Bytes data) {
    Checker checker(data);
    const Refusal refusal = checker.value(max_depth);
    if (refusal == Refusal::none && !checker.at_end()) {
        return Refusal::not_cbor;
    }
    return refusal;
}

Item Cursor::next() {
    Head head;
    Item item;
    if (!read_head(data_, at_, head)) {
        return item;  // beyond the end, which a caller who counts never sees
    }
    item.argument = head.argument;
    switch (head.major) {
        case 0:
            break;
        case 1:
            item.kind = Kind::negative;
            break;
        case 2:
        case 3:
            item.kind = head.major == 2 ? Kind::bytes : Kind::text;
            item.bytes = {data_.data + at_, static_cast<std::size_t>(head.argument)};
            at_ += item.bytes.size;
            break;
        case 4:
            item.kind = Kind::array;
            break;
        case 5:
            item.kind = Kind::map;
            break;
        case 6: {
            ++at_;
            const Item exponent = next();
            const Item mantissa = next();
            item.kind = Kind::decimal;
            const std::uint64_t most = max_exponent - (exponent.kind == Kind::negative ? 1 : 0);
            item.believed = exponent.argument <= most && mantissa.argument >> 63 == 0;
            if (item.believed) {
                const int size = static_cast<int>(exponent.argument);
                item.exponent = static_cast<std::int8_t>(exponent.kind == Kind::negative ? -1 - size : size);
                const std::int64_t digits = static_cast<std::int64_t>(mantissa.argument);
                item.mantissa = mantissa.kind == Kind::negative ? -1 - digits : digits;
            }
            break;
        }
        default:
            if (head.minor < 24) {
                item.kind = Kind::truth;
                item.argument = head.minor == 21;
            } else {
                item.kind = Kind::real;
                item.real = real_of(head.minor, head.argument);
            }
    }
    return item;
}

void Cursor::skip() {
    for (std::uint64_t left = 1; left > 0; --left) {
        const Item item = next();
        if (item.kind == Kind::array) {
            left += item.argument;
        } else if (item.kind == Kind::map) {
            left += 2 * item.argument;
        }
    }
}

void Writer::integer(std::int64_t value) {
    if (value < 0) {
        head(1, static_cast<std::uint64_t>(-1 - value));
    } else {
        head(0, static_cast<std::uint64_t>(value));
    }
}

void Writer::bytes(Bytes value) {
    head(2, value.size);
    raw(value.data, value.size);
}

void Writer::text(std::string_view value) {
    head(3, value.size());
    raw(reinterpret_cast<const std::uint8_t*>(value.data()), value.size());
}

void Writer::truth(bool value) {
    const std::uint8_t byte = value ? 0xf5 : 0xf4;
    raw(&byte, 1);
}

void Writer::decimal(std::int64_t mantissa, int exponent) {
    tag(decimal_fraction);
    array(2);
    integer(exponent);
    integer(mantissa);
}

void Writer::head(std::uint8_t major, std::uint64_t argument) {
    std::uint8_t bytes[9];
    std::size_t width = 0;
    std::uint8_t minor = static_cast<std::uint8_t>(argument);
    if (argument >= 24) {
        minor = argument <= 0xff ? 24 : argument <= 0xffff ? 25 : argument <= 0xffffffff ? 26 : 27;
        width = std::size_t{1} << (minor - 24);
    }
    bytes[0] = static_cast<std::uint8_t>(major << 5 | minor);
    put_big(bytes + 1, argument, width);
    raw(bytes, 1 + width);
}

void Writer::raw(const std::uint8_t* data, std::size_t size) {
    if (!fits_ || size > capacity_ - size_) {
        fits_ = false;
        return;
    }
    if (size > 0) {
        std::memcpy(buffer_ + size_, data, size);
    }
    size_ += size;
}

}  // namespace fajma::cbor
